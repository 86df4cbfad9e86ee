"""Edits as the studio makes them: a request and its pictures in, pictures with their metadata out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from piti.diffusion.samplers import OnStep
from piti.editing import Edited, EditSettings, edit
from piti.editing.files import Names, edit_text
from piti.frames import Frame
from piti.images import png_bytes
from piti.settings import seed_of
from piti.studio.loading import Loaded
from piti.studio.requests import EditRequest
from piti.studio.store import Picture


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
        return EditSettings(**self.request.model_dump(exclude={"model", "num", "seed"}, exclude_none=True))

    @cached_property
    def frame(self) -> Frame:
        """Of the pictures that are made. Raises UserError for settings or a condition that the model cannot use."""
        pipeline = self.loaded.pipeline
        return pipeline.frame(self.to, self.settings.sampling(pipeline), self.request.size)

    def made(self, on_step: OnStep) -> tuple[list[Picture], tuple[str, ...]]:
        """The pictures, and what a person should know of them. Raises EditError, and what `on_step` raises."""
        asked, pipeline = self.request, self.loaded.pipeline
        fitted = pipeline.fitted(self.to, self.frame)
        generators = [torch.Generator().manual_seed(seed_of(asked.seed, fitted, k)) for k in range(asked.num)]
        edited = edit(
            pipeline,
            self.image,
            self.to,
            self.from_,
            self.region,
            self.settings,
            asked.num,
            generators,
            on_step=on_step,
        )
        return [self._picture(image, k) for k, image in enumerate(edited.images)], _notes(edited)

    def _picture(self, image: Image.Image, number: int) -> Picture:
        names = Names(self.source, "the drawing", None if self.from_ is None else "the image's own")
        asked, pipeline = self.request, self.loaded.pipeline
        text = edit_text(pipeline, self.settings, self.loaded.name, asked.seed, number, names, self.to)
        return Picture(png_bytes(image, text), number, *image.size, self.loaded.name, self.to)


def _notes(edited: Edited) -> tuple[str, ...]:
    """How much was repainted, and how exactly the rest came back."""
    repainted = f"{100 * edited.share:.0f}% of the picture was repainted"
    measured = [value for value in edited.outside if value is not None]
    if not measured:
        return (repainted,)
    worst = min(measured)
    kept = "the rest is as it was, to the bit" if math.isinf(worst) else f"the rest came back within {worst:.1f} dB"
    return (f"{repainted}; {kept}",)
