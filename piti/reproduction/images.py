"""A row's images: sampled from its runs, or a base's images enlarged by other methods; existing images are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from piti.baselines.rrdb import load_real_esrgan
from piti.core.devices import usable_device
from piti.core.errors import UserError, option
from piti.core.files import OutputError, whole_file
from piti.core.images import read_rgb, save_png
from piti.core.progress import steps_bar
from piti.diffusion.guidance import Guidance
from piti.generation.options import SHEET, GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline
from piti.reproduction.files import DatasetFiles, contents_sha256, training_conditions
from piti.reproduction.rows import Generated, Plan, Row
from piti.reproduction.runs import Workspace, recipe_of
from piti.training.build import build_condition

ENLARGEMENT = 4
"""Factor of methods that replace the upsampler, as of Real-ESRGAN x4plus."""


def sampled(
    row: Row,
    runs: Sequence[Path],
    seed: int,
    workspace: Workspace,
    chosen: DatasetFiles,
    console: Console,
    square: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """A row's images of all validation conditions, and what they depend on. runs: of base and upsampler."""
    if row.enlarger:
        small = sampled(row.sampled, runs, seed, workspace, chosen, console, square)
        return _enlarged(row, small, seed, workspace, console)
    folder, sampling = workspace.images(row, seed), row.options.sampling.model_copy(update={"square": square})
    options = replace(row.options, sampling=sampling, seed=seed)
    made_of = {
        "models": [contents_sha256(run / "model") for run in runs],
        "conditions": chosen.conditions_sha256,
        "sampling": _plain(row.options),
        "seed": seed,
        "square": square,
    }
    begin_folder(folder, made_of)
    _translated(folder, runs, chosen.conditions, options, workspace, console)
    return folder, made_of


def generated(plan: Plan, wanted: Generated, seed: int, workspace: Workspace, console: Console) -> None:
    """Generate a trained base's images of the training conditions, uncropped, for training an upsampler."""
    base, options = wanted.base, replace(wanted.options, seed=seed)
    recipe = recipe_of(plan, base, seed, workspace)
    data = workspace.out / "data" / base.data
    conditions = training_conditions(build_condition(recipe), recipe.data, data)
    folder, run = workspace.generated(base, seed), workspace.run(base, seed)
    made_of = {
        "models": [contents_sha256(run / "model")],
        "conditions": contents_sha256(conditions),
        "sampling": _plain(options),
        "seed": seed,
    }
    begin_folder(folder, made_of)
    _translated(folder, [run], conditions, options, workspace, console)


def _translated(
    folder: Path,
    runs: Sequence[Path],
    conditions: Path,
    options: GenerationOptions,
    workspace: Workspace,
    console: Console,
) -> None:
    """Generate the images of all conditions in a folder."""
    expected = options.num * sum(1 for _ in conditions.iterdir())
    if _count(folder) == expected and (folder / SHEET).is_file():
        return
    pipeline = PITIPipeline.from_pretrained(runs[0], upsampler=runs[1] if len(runs) > 1 else None)
    pipeline = pipeline.to(usable_device(workspace.device))
    pipeline.set_progress_bar_config(disable=True)
    console.log(f"{folder.name}: generating {expected} images, {_count(folder)} exist")
    with steps_bar(console, f"images of {folder.name}") as on_step:
        translate_files(pipeline, TranslationFiles([conditions], folder), options, folder.name, on_step=on_step)


# Enlarged by other methods


def _enlarged(
    row: Row, small: tuple[Path, dict[str, Any]], seed: int, workspace: Workspace, console: Console
) -> tuple[Path, dict[str, Any]]:
    """The base's images enlarged. Raises UserError if the weights for that are not given."""
    source, told = small
    folder, weights = workspace.images(row, seed), None
    if row.enlarger == "real-esrgan":
        weights = workspace.real_esrgan
        if weights is None:
            raise UserError("its weights are not given", remedy=f"give {option('real_esrgan')} FILE")
    made_of = told | {"enlarger": row.enlarger, "weights": weights and contents_sha256(weights)}
    begin_folder(folder, made_of)
    files = sorted(path for path in source.glob("*.png") if path.name != SHEET)
    lacking = [path for path in files if not (folder / path.name).is_file()]
    if lacking:
        console.log(f"{folder.name}: enlarging {len(lacking)} images by {row.enlarger}")
        device = usable_device(workspace.device)
        enlarge = _bicubic if weights is None else load_real_esrgan(weights).to(device).enlarged
        for path in lacking:
            save_png(enlarge(read_rgb(path)), folder / path.name)
    return folder, made_of


def _bicubic(small: Image.Image) -> Image.Image:
    return small.resize((ENLARGEMENT * small.width, ENLARGEMENT * small.height), Image.Resampling.BICUBIC)


# Folders


def begin_folder(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Prepare a folder for images: remove images with other dependencies. Raises OutputError for other files."""
    mark = folder.with_name(f"{folder.name}.json")
    text = json.dumps(made_of, indent=1, sort_keys=True)
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return
    if folder.exists() and any(folder.iterdir()):
        if not mark.is_file():
            raise OutputError(
                "contains other files, which would be removed", remedy=f"give another {option('out')}", source=folder
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(mark, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _count(folder: Path) -> int:
    return sum(path.name != SHEET for path in folder.glob("*.png"))


def _plain(options: GenerationOptions) -> dict[str, Any]:
    """Options that images depend on, as JSON, without the batch size."""
    always = ("steps", "sampler", "guidance", "upsampler_steps")
    told = {key: value for key, value in options.sampling.to_flat().items() if key in always or value}
    plain = {key: value.to_dict() if isinstance(value, Guidance) else value for key, value in told.items()}
    return {"num": options.num} | plain
