"""Edits as the studio makes them: a request and its pictures in, pictures with their metadata out."""

from __future__ import annotations

from dataclasses import dataclass

from piti.diffusion.samplers import OnStep
from piti.editing import EditInput, EditSettings
from piti.generation.edits import Names, make_edits
from piti.studio.service.models import Loaded
from piti.studio.service.schema import EditRequest
from piti.studio.service.storage import Picture


@dataclass(frozen=True)
class Edit:
    """One edit to make."""

    loaded: Loaded
    request: EditRequest
    settings: EditSettings
    given: EditInput
    source: str
    """What the photograph is called."""

    def made(self, on_step: OnStep) -> tuple[list[Picture], tuple[str, ...]]:
        """The pictures, and what a person should know of them. Raises EditError, and what `on_step` raises."""
        asked, given, name = self.request, self.given, self.loaded.name
        names = Names(name, self.source, "the drawing", None if given.from_ is None else "the image's own")
        edits = make_edits(self.loaded.pipeline, given, self.settings, names, asked.num, asked.seed, on_step)
        pictures = [Picture.of(made, name, edits.edited.shows) for made in edits.images]
        unknown = given.from_ is None and given.region is None
        notes = ["what the photograph shows is not known, so all of it was repainted"] if unknown else []
        return pictures, (edits.words(), *notes, *edits.notes)
