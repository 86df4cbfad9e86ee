"""Edits as the studio makes them: a request and its pictures in, pictures with their metadata out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from torch import Tensor

from piti.diffusion.samplers import OnStep
from piti.editing import EditSettings
from piti.editing.options import frame_to_edit
from piti.generation.edits import Names, make_edits
from piti.pipelines.canvas import Frame
from piti.studio.service.models import Loaded
from piti.studio.service.schema import EditRequest
from piti.studio.service.storage import Picture


@dataclass(frozen=True)
class Edit:
    """One edit to make: `image`, which shows `from_` (None: not known), is to show `to`."""

    loaded: Loaded
    request: EditRequest
    image: Image.Image
    to: Tensor
    from_: Tensor | None
    region: Image.Image | None
    source: str
    """What the photograph is called."""

    @cached_property
    def settings(self) -> EditSettings:
        """Those that the request names, else editing's own."""
        return self.request.settings()

    @cached_property
    def frame(self) -> Frame:
        """Of the pictures that are made. Raises UserError for settings or a condition that the model cannot use."""
        return frame_to_edit(self.loaded.pipeline, self.image, self.to, self.settings)

    def made(self, on_step: OnStep) -> tuple[list[Picture], tuple[str, ...]]:
        """The pictures, and what a person should know of them. Raises EditError, and what `on_step` raises."""
        asked, name = self.request, self.loaded.name
        names = Names(self.source, "the drawing", None if self.from_ is None else "the image's own")
        edits = make_edits(
            self.loaded.pipeline,
            self.image,
            self.to,
            self.from_,
            self.region,
            self.settings,
            name,
            names,
            asked.num,
            asked.seed,
            on_step,
        )
        pictures = [Picture.of(made, name, edits.edited.shows) for made in edits.images]
        unknown = self.from_ is None and self.region is None
        notes = ["what the photograph shows is not known, so all of it was repainted"] if unknown else []
        return pictures, (edits.words(), *notes, *edits.notes)
