"""A file in, files out: an image and its conditions on disk to edited images on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from piti.atomic import check_file
from piti.conditions import Given, SeveralCondition, TextCondition
from piti.diffusion.guidance import Guidance
from piti.editing.regions import EditError
from piti.editing.resynthesis import Edited, EditSettings, edit
from piti.images import grid, open_image, read_rgb, save_png
from piti.pipeline import PITIPipeline
from piti.provenance import PREFIX, condition_text, surroundings
from piti.remake import carried_condition
from piti.settings import seed_of

SHEET = "sheet.png"
_SIDE = 256  # of a picture on the sheet, its longer side

EditCondition = Path | str | Mapping[str, Given]
"""A file, a text, or a file of each part by its name."""


@dataclass(frozen=True)
class EditFiles:
    """What is edited."""

    image: Path
    to: EditCondition
    from_: EditCondition | None = None
    region: Path | None = None


@dataclass(frozen=True)
class EditReport:
    """What was written, and what a person should know of it."""

    made: list[Path]
    edited: Edited
    sheet: Path | None

    def words(self) -> str:
        """How much was repainted, and how exactly the rest came back."""
        parts = [f"{100 * self.edited.share:.1f}% of the image repainted"]
        if self.edited.returned is not None:
            parts.append(f"inversion and return {_decibels(self.edited.returned)}")
        outside = [value for value in self.edited.outside if value is not None]
        if outside:
            parts.append(f"outside the region {_decibels(min(outside))}")
        return ", ".join(parts)


def edit_file(
    pipeline: PITIPipeline,
    files: EditFiles,
    out: Path,
    settings: EditSettings,
    name: str,
    num: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> EditReport:
    """Edit an image into `out`, a .png file, or a folder: `STEM_0.png` … and `sheet.png`.

    name: of the model, for the metadata. seed: with the condition that is to be shown and an image's number it decides
    the fresh noise. on_step: (steps done, steps in all). Nothing is written before all is made. Raises EditError
    for what cannot be edited or written there, ImageError and ConditionError for files, UserError for settings.
    """
    targets, sheet = _targets(files, out, num)
    for target in targets if sheet is None else [*targets, sheet]:
        _check_target(target, files, overwrite)
    image = read_rgb(files.image)
    region = None if files.region is None else open_image(files.region)
    before = _before(pipeline, files)
    after = pipeline.read(_named(pipeline, files.to, "to"))
    frame = pipeline.frame(after, settings.sampling(pipeline), settings.size, _words(files.to))
    fitted = pipeline.fitted(after, frame)
    generators = [torch.Generator().manual_seed(seed_of(seed, fitted, k)) for k in range(num)]
    edited = edit(
        pipeline,
        image,
        after,
        before,
        region,
        settings,
        num,
        generators,
        on_step=None if on_step is None else lambda done, total, _: on_step(done, total),
    )
    told = "the image's own" if files.from_ is None and before is not None else None
    names = Names(
        files.image.name,
        _words(files.to),
        told if files.from_ is None else _words(files.from_),
        None if files.region is None else files.region.name,
    )
    for number, (made, target) in enumerate(zip(edited.images, targets, strict=True)):
        save_png(made, target, edit_text(pipeline, settings, name, seed, number, names, after))
    if sheet is not None:
        conditions = [raw for raw in (before, after) if raw is not None]
        shown = [preview for raw in conditions for preview in pipeline.condition.previews(raw)]
        save_png(grid([[_fit(picture) for picture in (image, *shown, edited.region, *edited.images)]]), sheet)
    return EditReport(targets, edited, sheet)


@dataclass(frozen=True)
class Names:
    """What a person calls an edit's image and conditions."""

    image: str
    to: str
    from_: str | None = None
    region: str | None = None


def edit_text(
    pipeline: PITIPipeline, settings: EditSettings, name: str, seed: int, number: int, names: Names, after: Tensor
) -> dict[str, str]:
    """The metadata of an edited image: the model, names, every setting, and what it shows.

    after: that condition in raw form; with it the image can be edited again.
    """
    sampling = settings.sampling(pipeline)
    values = {key: value for key, value in vars(settings).items() if key != "measure"}
    values |= {"guidance": sampling.base.guidance}
    if sampling.upsampler is not None:
        values |= {"upsampler_steps": sampling.upsampler.steps}
    plain = {key: value.to_dict() if isinstance(value, Guidance) else value for key, value in values.items()}
    said = {
        "edited": names.image,
        "edit": json.dumps(plain, sort_keys=True),
        "edit_to": names.to,
        **({} if names.from_ is None else {"edit_from": names.from_}),
        **({} if names.region is None else {"edit_region": names.region}),
        "model": name,
        "seed": seed,
        "number": number,
    }
    text = {f"{PREFIX}{key}": str(value) for key, value in said.items()} | surroundings(pipeline)
    return text | condition_text(pipeline, after, pipeline.frame(after, sampling, settings.size), names.to)


def _before(pipeline: PITIPipeline, files: EditFiles) -> Tensor | None:
    """What the image shows: as given, else as a PNG of piti's says itself; None where nobody says."""
    if files.from_ is not None:
        return pipeline.read(_named(pipeline, files.from_, "from"))
    return carried_condition(files.image, pipeline.condition)


def _targets(files: EditFiles, out: Path, num: int) -> tuple[list[Path], Path | None]:
    """Where the images go, and the sheet, if `out` is a folder. Raises EditError."""
    if num < 1:
        raise EditError(f"--num {num} must be at least 1")
    if out.suffix.lower() == ".png" and not out.is_dir():
        if num > 1:
            raise EditError(f"--out {out}: is one file and --num {num} makes more; give a folder")
        return [out], None
    if out.suffix and not out.is_dir():
        raise EditError(f"--out {out}: images are written as PNG; end the name in .png, or give a folder")
    return [out / f"{files.image.stem}_{number}.png" for number in range(num)], out / SHEET


def _check_target(target: Path, files: EditFiles, overwrite: bool) -> None:
    """Raises EditError where a target is an input, OutputError where it is there already."""
    inputs = [files.image, *_files_of(files.to), *_files_of(files.from_), *_files_of(files.region)]
    if target.resolve() in {path.resolve() for path in inputs}:
        raise EditError(f"{target}: is an input, which would be lost; give another --out")
    check_file(target, overwrite)


def _files_of(given: EditCondition | None) -> list[Path]:
    items = given.values() if isinstance(given, Mapping) else [given]
    return [item for item in items if isinstance(item, Path)]


def _named(pipeline: PITIPipeline, given: EditCondition, flag: str) -> EditCondition:
    """What is given, if the model reads its like. Raises EditError that names the flag."""
    condition = pipeline.condition
    if isinstance(given, Mapping) and not isinstance(condition, SeveralCondition):
        raise EditError(f"--{flag} {next(iter(given))}=…: this model reads one {condition.kind}; give a file alone")
    if isinstance(condition, SeveralCondition) and not isinstance(given, Mapping):
        first = next(iter(condition.parts))
        raise EditError(
            f"--{flag} {given}: of which part is it? This model reads {', '.join(condition.parts)}: --{flag} "
            f"{first}=FILE, once for each part that is given"
        )
    if isinstance(given, str) and not isinstance(condition, TextCondition):
        text = "text" if flag == "to" else "from-text"
        raise EditError(f"--{text}: this model reads a {condition.kind}; give --{flag} FILE, or name a prior")
    return given


def _words(given: EditCondition) -> str:
    """What a condition is called: its file's name, the parts' names, or the text itself."""
    if isinstance(given, Mapping):
        return ", ".join(f"{part}={_words(item)}" for part, item in given.items() if isinstance(item, Path | str))
    return given.name if isinstance(given, Path) else given


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.1f} dB"


def _fit(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC if factor < 1 else Image.Resampling.NEAREST)
