"""Editing of image files with conditions on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from piti.conditions import Given, SeveralCondition, TextCondition
from piti.conditions.coverage import unlabelled_note
from piti.core.errors import Message, option, text_of
from piti.core.files import check_file, check_place
from piti.core.images import ImageError, open_image, own_text, read_rgb, save_png
from piti.core.sheets import grid
from piti.core.walk import list_images
from piti.editing import BATCH, EditInput, EditSettings, prepare_edit
from piti.editing.options import check_exact
from piti.editing.regions import EditError
from piti.generation.edits import THE_IMAGES_OWN, EditJob, Edits, Names
from piti.generation.generate import MadeImage
from piti.generation.kept import check_kept
from piti.generation.metadata_schema import RemakeError, own_condition
from piti.generation.options import SHEET, check_one, is_one_file
from piti.generation.readers import mapped_note
from piti.pipelines.pipeline import PITIPipeline

_SIDE = 256  # longer side of an image on the sheet

EditCondition = Path | str | Mapping[str, Given]
"""A file, a text, or a file of each part by its name."""


@dataclass(frozen=True)
class EditFiles:
    """Inputs and output of an edit."""

    image: Path
    to: EditCondition
    out: Path
    """A .png file, or a folder."""
    from_: EditCondition | None = None
    region: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class EditOptions:
    """Options of an edit of files, besides its settings."""

    model: str
    """The model's name, for the metadata."""
    num: int = 1
    """Number of images."""
    seed: int = 0
    """With the new condition and an image's number, it determines the new noise."""
    batch: int = BATCH
    """Images sampled at once."""


@dataclass(frozen=True)
class EditReport:
    """Result of an edit, with messages for the user."""

    made: list[Path]
    kept: list[Path]
    edits: Edits
    sheet: Path | None
    notes: list[str]


def edit_file(
    pipeline: PITIPipeline,
    files: EditFiles,
    settings: EditSettings,
    options: EditOptions,
    on_step: Callable[[int, int], None] | None = None,
) -> EditReport:
    """Edit an image into `files.out`, a .png file, or a folder: `STEM_0.png` … and `sheet.png`, which replaces that of
    earlier results.

    Images are written as soon as their batch is done. Existing ones are kept unless `files.overwrite`, if their
    metadata matches the inputs, settings, seed and weights. on_step: called as (steps done, total).

    Raises EditError for invalid inputs, OutputError for outputs that cannot be written and existing images that differ,
    ImageError and ConditionError for files, UserError for settings, all before anything is written.
    """
    targets, sheet = _targets(files, options.num)
    _check_outputs(files, targets, sheet)
    given, notes = _read(pipeline, files, settings)
    job = EditJob.of(pipeline, given, settings, _names(options.model, files, given.from_ is not None), options.seed)
    if not files.overwrite:
        check_kept([job.requested(target, number) for number, target in enumerate(targets)])
    missing = [number for number, target in enumerate(targets) if files.overwrite or not target.exists()]

    def on_made(made: MadeImage) -> None:
        save_png(made.image, targets[made.number], made.text)

    stepped = None if on_step is None else lambda done, total, _: on_step(done, total)
    returned = job.make(missing, on_made, options.batch, stepped)
    images = [job.numbered(read_rgb(target), number) for number, target in enumerate(targets)]
    edits = job.edits(images, returned)
    if sheet is not None:
        save_png(_contact_sheet(pipeline, given, edits), sheet)
    notes += [*_smaller(given.image, edits.edited.images[0]), *edits.notes]
    made, kept = ([target for k, target in enumerate(targets) if (k in missing) is new] for new in (True, False))
    return EditReport(made, kept, edits, sheet, [*map(Message, notes)])


def _check_outputs(files: EditFiles, targets: Sequence[Path], sheet: Path | None) -> None:
    """Raise EditError if an output is an input, OutputError if it cannot be written. Existing images are left to
    `check_kept`."""
    for target in targets:
        _check_target(target, files, overwrite=True)
    if sheet is not None:
        _check_target(sheet, files, files.overwrite or _beside_ours(sheet))
    check_place(targets[0].parent)


def _read(pipeline: PITIPipeline, files: EditFiles, settings: EditSettings) -> tuple[EditInput, list[str]]:
    """The inputs of an edit from its files, with notes on them."""
    if settings.keep_exact:
        check_exact(files.image, str(files.image))
    image = read_rgb(files.image)
    region = None if files.region is None else open_image(files.region)
    before, unknown = _before(pipeline, files)
    after = prepare_edit(pipeline, image, _named(pipeline, files.to, "to"), settings)
    return EditInput(image, after, before, region), [
        *unknown,
        *_cut(pipeline, files),
        *mapped_note(pipeline.condition, files.to),
        *unlabelled_note(pipeline.condition, after.raw),
    ]


def _contact_sheet(pipeline: PITIPipeline, given: EditInput, edits: Edits) -> Image.Image:
    """The image, its conditions, the region and the results side by side."""
    conditions = [raw for raw in (given.from_, given.to.raw) if raw is not None]
    previews = [preview for raw in conditions for preview in pipeline.condition.previews(raw)]
    pictures = [given.image, *previews, edits.edited.region, *edits.edited.images]
    return grid([[_fit(picture) for picture in pictures]])


def _before(pipeline: PITIPipeline, files: EditFiles) -> tuple[Tensor | None, list[str]]:
    """The image's current condition: as given, else from its metadata; None if unknown, with a note."""
    if files.from_ is not None:
        return pipeline.read(_named(pipeline, files.from_, "from")), []
    try:
        return own_condition(files.image, pipeline.condition), []
    except RemakeError as error:
        done = "all of it is repainted" if files.region is None else "it is inverted without a condition"
        flag = option("from_text") if isinstance(pipeline.condition, TextCondition) else option("from")
        return None, [f"{text_of(error)}: {done}; give its current condition with {flag}"]


def _smaller(image: Image.Image, made: Image.Image) -> list[str]:
    """A note if the results are smaller than the image, which is compared with them at their size."""
    if made.width * made.height >= image.width * image.height:
        return []
    return [
        f"edited at {made.width} x {made.height}, but the image has {image.width} x {image.height}: "
        f"{option('keep_exact')} restores its size, {option('size')} edits it at a larger size"
    ]


def _names(model: str, files: EditFiles, known: bool) -> Names:
    own = THE_IMAGES_OWN if known else None
    return Names(
        model,
        files.image.name,
        _words(files.to),
        own if files.from_ is None else _words(files.from_),
        None if files.region is None else files.region.name,
    )


def _cut(pipeline: PITIPipeline, files: EditFiles) -> list[str]:
    """Notes on truncated texts."""
    condition = pipeline.condition
    if not isinstance(condition, TextCondition):
        return []
    given = {option("text"): files.to, option("from_text"): files.from_}
    found = {flag: condition.cut(text) for flag, text in given.items() if isinstance(text, str)}
    return [f"{flag}: {note}" for flag, note in found.items() if note]


def _targets(files: EditFiles, num: int) -> tuple[list[Path], Path | None]:
    """Paths of the images, and of the sheet if the output is a folder. Raises EditError, OutputError."""
    out = files.out
    if num < 1:
        raise EditError("expected at least 1 image", option="num", value=num)
    if is_one_file(out):
        check_one(out, num)
        return [out], None
    return [out / f"{files.image.stem}_{number}.png" for number in range(num)], out / SHEET


def _check_target(target: Path, files: EditFiles, overwrite: bool) -> None:
    """Raises EditError if a target is an input, OutputError if it exists, unless `overwrite`."""
    inputs = [files.image, *_files_of(files.to), *_files_of(files.from_), *_files_of(files.region)]
    if target.resolve() in {path.resolve() for path in inputs}:
        raise EditError(
            "is an input, which would be overwritten", remedy=f"give another {option('out')}", source=target
        )
    check_file(target, overwrite)


def _beside_ours(sheet: Path) -> bool:
    """Whether a sheet belongs to an earlier result and may be replaced: images from piti are beside it."""
    for path in list_images(sheet.parent) if sheet.exists() else []:
        with suppress(ImageError):
            if own_text(path):
                return True
    return False


def _files_of(given: EditCondition | None) -> list[Path]:
    items = given.values() if isinstance(given, Mapping) else [given]
    return [item for item in items if isinstance(item, Path)]


def _named(pipeline: PITIPipeline, given: EditCondition, name: str) -> EditCondition:
    """The given condition, if it has the type that the model reads. name: of the option. Raises EditError, which names
    it."""
    condition = pipeline.condition
    if isinstance(given, Mapping) and not isinstance(condition, SeveralCondition):
        raise EditError(
            f"this model reads one {condition.kind}",
            remedy="give one file",
            option=name,
            value=f"{next(iter(given))}=…",
        )
    if isinstance(condition, SeveralCondition) and not isinstance(given, Mapping):
        first = next(iter(condition.parts))
        raise EditError(
            f"the part is not named; this model reads {', '.join(condition.parts)}",
            remedy=f"give {option(name)} {first}=FILE, once for each part",
            option=name,
            value=given,
        )
    if isinstance(given, str) and not isinstance(condition, TextCondition):
        raise EditError(
            f"this model reads a {condition.kind}",
            remedy=f"give {option(name)} FILE, or use a prior",
            option="text" if name == "to" else "from_text",
        )
    return given


def _words(given: EditCondition) -> str:
    """The name of a condition: its file name, the parts' names, or the text itself."""
    if isinstance(given, Mapping):
        return ", ".join(f"{part}={_words(item)}" for part, item in given.items() if isinstance(item, Path | str))
    return given.name if isinstance(given, Path) else given


def _fit(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC if factor < 1 else Image.Resampling.NEAREST)
