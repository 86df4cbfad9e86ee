"""Editing of image files with conditions on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from piti.editing import EditInput, EditSettings, prepare_edit
from piti.editing.options import check_exact
from piti.editing.regions import EditError
from piti.generation.edits import THE_IMAGES_OWN, Edits, Names, make_edits
from piti.generation.metadata_schema import RemakeError, own_condition
from piti.generation.options import SHEET, check_one, is_one_file
from piti.generation.readers import mapped_note
from piti.pipelines.pipeline import PITIPipeline

_SIDE = 256  # of a picture on the sheet, its longer side

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
class EditReport:
    """Result of an edit, with messages for the user."""

    made: list[Path]
    edits: Edits
    sheet: Path | None
    notes: list[str]


def edit_file(
    pipeline: PITIPipeline,
    files: EditFiles,
    settings: EditSettings,
    name: str,
    num: int = 1,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> EditReport:
    """Edit an image into `files.out`, a .png file, or a folder: `STEM_0.png` … and `sheet.png`, in the place of that of
    images that were made there before.

    name: of the model, for the metadata. seed: with the condition that is to be shown and an image's number it decides
    the fresh noise. on_step: (steps done, steps in all). Nothing is written before all is made. Raises EditError and
    OutputError for what cannot be edited or written there, ImageError and ConditionError for files, UserError for
    settings.
    """
    targets, sheet = _targets(files, num)
    for target in targets:
        _check_target(target, files, files.overwrite)
    if sheet is not None:
        _check_target(sheet, files, files.overwrite or _beside_ours(sheet))
    check_place(targets[0].parent)
    if settings.keep_exact:
        check_exact(files.image, str(files.image))
    image = read_rgb(files.image)
    region = None if files.region is None else open_image(files.region)
    before, unknown = _before(pipeline, files)
    after = prepare_edit(pipeline, image, _named(pipeline, files.to, "to"), settings)
    stepped = None if on_step is None else lambda done, total, _: on_step(done, total)
    names = _names(name, files, before is not None)
    edits = make_edits(pipeline, EditInput(image, after, before, region), settings, names, num, seed, stepped)
    for made, target in zip(edits.images, targets, strict=True):
        save_png(made.image, target, made.text)
    if sheet is not None:
        conditions = [raw for raw in (before, after.raw) if raw is not None]
        shown = [preview for raw in conditions for preview in pipeline.condition.previews(raw)]
        pictures = [image, *shown, edits.edited.region, *edits.edited.images]
        save_png(grid([[_fit(picture) for picture in pictures]]), sheet)
    said = [*unknown, *_cut(pipeline, files), *_seen(pipeline, files, after.raw)]
    said += [*_smaller(image, edits.edited.images[0]), *edits.notes]
    return EditReport(targets, edits, sheet, [*map(Message, said)])


def _before(pipeline: PITIPipeline, files: EditFiles) -> tuple[Tensor | None, list[str]]:
    """What the image shows: as given, else as a PNG of ours says itself; None where nobody says, and a note why."""
    if files.from_ is not None:
        return pipeline.read(_named(pipeline, files.from_, "from")), []
    try:
        return own_condition(files.image, pipeline.condition), []
    except RemakeError as error:
        done = "all of it is repainted" if files.region is None else "it is inverted without a condition"
        flag = option("from_text") if isinstance(pipeline.condition, TextCondition) else option("from")
        return None, [f"{text_of(error)}: {done}; give {flag}, what it shows now"]


def _seen(pipeline: PITIPipeline, files: EditFiles, raw: Tensor) -> list[str]:
    """What to say of the condition that is to be shown."""
    return [*mapped_note(pipeline.condition, files.to), *unlabelled_note(pipeline.condition, raw)]


def _smaller(image: Image.Image, made: Image.Image) -> list[str]:
    """What to say where the results are smaller than the image, which is compared with them in their size."""
    if made.width * made.height >= image.width * image.height:
        return []
    return [
        f"edited at {made.width} x {made.height}, where the image is {image.width} x {image.height}: "
        f"{option('keep_exact')} gives it in its own size, {option('size')} edits it at a larger one"
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
    """What to say of texts that are longer than what is read."""
    condition = pipeline.condition
    if not isinstance(condition, TextCondition):
        return []
    given = {option("text"): files.to, option("from_text"): files.from_}
    found = {flag: condition.cut(text) for flag, text in given.items() if isinstance(text, str)}
    return [f"{flag}: {note}" for flag, note in found.items() if note]


def _targets(files: EditFiles, num: int) -> tuple[list[Path], Path | None]:
    """Where the images go, and the sheet, if that is a folder. Raises EditError, OutputError."""
    out = files.out
    if num < 1:
        raise EditError("expected at least 1 image", option="num", value=num)
    if is_one_file(out):
        check_one(out, num)
        return [out], None
    return [out / f"{files.image.stem}_{number}.png" for number in range(num)], out / SHEET


def _check_target(target: Path, files: EditFiles, overwrite: bool) -> None:
    """Raises EditError where a target is an input, OutputError where it is there already, unless `overwrite`."""
    inputs = [files.image, *_files_of(files.to), *_files_of(files.from_), *_files_of(files.region)]
    if target.resolve() in {path.resolve() for path in inputs}:
        raise EditError("is an input, which would be lost", remedy=f"give another {option('out')}", source=target)
    check_file(target, overwrite)


def _beside_ours(sheet: Path) -> bool:
    """Whether a sheet is that of an earlier result, which this one's may replace: images of ours lie beside it."""
    for path in list_images(sheet.parent) if sheet.exists() else []:
        with suppress(ImageError):
            if own_text(path):
                return True
    return False


def _files_of(given: EditCondition | None) -> list[Path]:
    items = given.values() if isinstance(given, Mapping) else [given]
    return [item for item in items if isinstance(item, Path)]


def _named(pipeline: PITIPipeline, given: EditCondition, name: str) -> EditCondition:
    """What is given, if the model reads its like. name: of the option. Raises EditError that names it."""
    condition = pipeline.condition
    if isinstance(given, Mapping) and not isinstance(condition, SeveralCondition):
        raise EditError(
            f"this model reads one {condition.kind}",
            remedy="give a file alone",
            option=name,
            value=f"{next(iter(given))}=…",
        )
    if isinstance(condition, SeveralCondition) and not isinstance(given, Mapping):
        first = next(iter(condition.parts))
        raise EditError(
            f"of which part is it? This model reads {', '.join(condition.parts)}",
            remedy=f"give {option(name)} {first}=FILE, once for each part",
            option=name,
            value=given,
        )
    if isinstance(given, str) and not isinstance(condition, TextCondition):
        raise EditError(
            f"this model reads a {condition.kind}",
            remedy=f"give {option(name)} FILE, or name a prior",
            option="text" if name == "to" else "from_text",
        )
    return given


def _words(given: EditCondition) -> str:
    """What a condition is called: its file's name, the parts' names, or the text itself."""
    if isinstance(given, Mapping):
        return ", ".join(f"{part}={_words(item)}" for part, item in given.items() if isinstance(item, Path | str))
    return given.name if isinstance(given, Path) else given


def _fit(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC if factor < 1 else Image.Resampling.NEAREST)
