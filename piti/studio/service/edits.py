"""Edits in the studio: from a request with images to results; packed while waiting."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from piti.conditions.coverage import unlabelled_note
from piti.core.images import same_proportions
from piti.diffusion.samplers import OnStep
from piti.editing import EditInput, EditSettings
from piti.editing.regions import white_of
from piti.generation.edits import Names, make_edits
from piti.studio.service.inputs import Upload, photograph
from piti.studio.service.models import Loaded
from piti.studio.service.schema import EditRequest
from piti.studio.service.storage import Held, Picture, held_image, held_prepared, held_tensor

_NONE = Image.new("RGB", (1, 1))


@dataclass(frozen=True)
class Edit:
    """A requested edit."""

    loaded: Loaded
    request: EditRequest
    settings: EditSettings
    given: EditInput
    names: Names
    """Names of the inputs, for messages and metadata."""

    def made(self, on_step: OnStep) -> tuple[list[Picture], tuple[str, ...]]:
        """The images, with notes. Raises EditError, and errors of `on_step`."""
        asked, given, name = self.request, self.given, self.loaded.name
        edits = make_edits(self.loaded.pipeline, given, self.settings, self.names, asked.num, asked.seed, on_step)
        pictures = [Picture.of(made, name, edits.edited.shows, asked.seed) for made in edits.images]
        unknown = given.from_ is None and given.region is None
        notes = ["the current condition of the photograph is unknown, so all of it was repainted"] if unknown else []
        unlabelled = unlabelled_note(self.loaded.condition, given.to.raw)
        return pictures, (edits.words(), *notes, *edits.notes, *unlabelled)


def held_edit(edit: Edit, upload: Upload | None = None) -> Held[Edit]:
    """A packed edit, with only the white part of its region. upload: see `held_photograph`.

    Raises ImageError for a region with an unsupported mode.
    """
    given = edit.given
    image, to = held_photograph(edit, upload), held_prepared(given.to)
    before = None if given.from_ is None else held_tensor(given.from_)
    white = None if given.region is None else white_of(given.region).numpy()
    region = None if white is None else held_image(Image.fromarray(white))
    bare = replace(edit, given=EditInput(_NONE, given.to.bare()))

    def out() -> Edit:
        own = None if before is None else before.out()
        white = None if region is None else region.out()
        return replace(bare, given=EditInput(image.out(), to.out(), own, white))

    return Held(sum(part.size for part in (image, to, before, region) if part is not None), out)


def held_photograph(edit: Edit, upload: Upload | None = None) -> Held[Image.Image]:
    """The packed photograph of an edit. upload: the file that it was read from, if any.

    If its size is kept, it is stored unchanged, an upload in its compressed form. Else it is resized to the editing
    size, as editing would do; one with another aspect ratio than its condition is left for editing to refuse.
    """
    image, raw, canvas = edit.given.image, edit.given.to.raw, edit.given.to.canvas
    size = (canvas.image_width, canvas.image_height)
    pixels = image.width * image.height
    if edit.request.keep_exact and upload is not None:
        return Held(len(upload.data), lambda: photograph(upload, upload.name, pixels))
    large = pixels > size[0] * size[1] and image.mode == "RGB"
    over = edit.loaded.condition.spatial and same_proportions(image.size, (raw.shape[-1], raw.shape[-2]))
    if large and over and not edit.request.keep_exact:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return Held(image.width * image.height * len(image.getbands()), lambda: image)
