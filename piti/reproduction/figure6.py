"""Figure 6: plain against normalised guidance (eq. 7 and 8) as w grows, of the same noise, with numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from piti.checkpoints.folder import ModelFolder, find_model
from piti.conditions import Condition, NoCondition, SeveralCondition
from piti.core.errors import Message, UserError, option
from piti.core.files import whole_file
from piti.core.images import open_image, read_rgb
from piti.core.progress import steps_bar
from piti.core.sheets import grid
from piti.data.pairs import FolderSpec, key_hash
from piti.diffusion.guidance import Guidance
from piti.evaluation.generating import weights_sha256
from piti.evaluation.result import Evaluation, Measure
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline, usable_device
from piti.reproduction.cells import cell_of, decimals_for, number, title_of
from piti.reproduction.files import DatasetFiles, choose, count_pairs
from piti.reproduction.image_statistics import LOOKS, Look, look_of, mean_look
from piti.reproduction.images import begin_folder
from piti.reproduction.make import check_alone, check_judges
from piti.reproduction.pictures import SIDE, preview_of, save_jpeg, square
from piti.reproduction.published import ABOUT
from piti.reproduction.runs import Workspace, evaluated

STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
RULES = {"plain": "plain (eq. 7)", "normalized": "normalised (eq. 8)"}
SHOWN = 3
"""Conditions in the picture."""
BATCH = 16
SEED = 0
SECONDS = (1.0, 3.0)
"""For an image of a base of 64 px on two CPU cores: from and to."""
MEASURES = ("fd", "kid", "miou", "pixel_accuracy")


@dataclass(frozen=True)
class Point:
    """One rule at one strength."""

    rule: str
    w: float
    folder: Path
    """Of its images. At w = 0 both rules are one."""
    look: Look
    evaluation: Evaluation | None


def data_folder(given: Sequence[str]) -> Path:
    """The data's root of values of --data. Raises UserError unless it is one folder."""
    if len(given) != 1:
        raise UserError(
            f"{len(given)} folders are given" if given else "no folder is given",
            remedy="give one with images/ and the conditions that the model reads, such as labels/ or sketches/: its "
            "guidance is shown on those of the validation split",
            option="data",
        )
    folder = Path(given[0].partition("=")[2] or given[0])
    if not folder.is_dir():
        raise UserError("no such folder", remedy="check the path", option="data", value=folder)
    return folder


def plan_rows(model: str, data: Path | None) -> list[dict[str, str]]:
    """What would be done, a row a line. data: its root, whose conditions are counted. Raises ModelError, DataError."""
    condition = _guided(model).condition
    settings = 1 + len(RULES) * (len(STRENGTHS) - 1)
    if data is None:
        conditions = Message(f"each validation condition ({option('data')} is not given: they are not counted)")
        hours = "unknown"
    else:
        count = count_pairs(condition, _spec(condition, data))[1]
        low, high = (f"{count * settings * seconds / 3600:.1f}" for seconds in SECONDS)
        conditions, hours = f"each of {count:,} validation conditions", f"about {low} to {high}"
    return [
        {"what": "model", "plan": f"{model}, its base alone; nothing is trained"},
        {"what": "guidance", "plan": f"{' and '.join(RULES.values())} at w = {', '.join(f'{w:g}' for w in STRENGTHS)}"},
        {
            "what": "images",
            "plan": f"one of {conditions} at each of {settings} settings, of the same noise",
        },
        {"what": "hours", "plan": f"{hours}, for a base of 64 px on two CPU cores"},
    ]


def _guided(model: str) -> ModelFolder:
    """The model's folder. Raises ModelError, UserError for one whose guidance cannot be changed or shown."""
    folder = ModelFolder.open(find_model(model))
    if "base" not in folder or isinstance(folder.condition, NoCondition | SeveralCondition):
        several = isinstance(folder.condition, SeveralCondition)
        raise UserError(
            "reads several conditions at once" if several else "has no base that follows a condition",
            remedy="name a model whose base reads one condition: its guidance is shown",
            option="model",
            value=model,
        )
    folder.check_translator("base")
    student = folder.student("base")
    if student is not None:
        raise UserError(
            "was distilled, and its one guidance is part of its weights",
            remedy=f"name {student.origin}",
            option="model",
            value=model,
        )
    return folder


def _spec(condition: Condition, data: Path) -> FolderSpec:
    """The data's pairs for a model's condition. Raises UserError where their folders are not there."""
    spec = FolderSpec(root=data, conditions=condition.usual_folder or "labels")
    lacking = [name for name in (spec.images, str(spec.conditions)) if not (data / name).is_dir()]
    if lacking:
        raise UserError(
            f"holds no {' and no '.join(f'{name}/' for name in lacking)}",
            remedy=f"give one with {spec.images}/ and {spec.conditions}/: the model reads conditions of the kind "
            f"{condition.kind}",
            option="data",
            value=data,
        )
    return spec


def reproduce(model: str, data: Path, workspace: Workspace, judges: bool, console: Console) -> Path:
    """Write `figure6.md`, `.json` and `.jpg`; the former's path.

    judges: whether `workspace.judges.features` were asked for. Raises UserError.
    """
    check_alone()
    condition = _guided(model).condition
    features = workspace.judges.features if judges else ()
    workspace = replace(workspace, judges=replace(workspace.judges, features=features))
    judging = bool(features or workspace.judges.segmenter)
    if judging:
        check_judges(workspace.judges, workspace.device, console, conditions=[condition])
    pipeline = PITIPipeline.from_pretrained(model, base_only=True).to(usable_device(workspace.device))
    pipeline.set_progress_bar_config(disable=True)
    chosen = choose(condition, _spec(condition, data), "train", workspace.out / "data" / "figure6")
    side = int(pipeline.base.image_size)
    weights = weights_sha256(pipeline)
    points = []
    for rule in RULES:
        for w in STRENGTHS:
            folder, made_of = _sampled(pipeline, weights, model, Guidance(kind=rule, w=w), workspace, chosen, console)  # type: ignore[arg-type]
            found = evaluated(folder, made_of, side, workspace, chosen, console) if judging else None
            points.append(Point(rule, w, folder, _look(folder, chosen), found))
    photographs = mean_look(
        look_of(np.asarray(square(read_rgb(path), side))) for path in sorted(chosen.photographs.iterdir())
    )
    save_jpeg(picture(points, chosen), workspace.out / "figure6.jpg")
    return _write(model, points, photographs, len(chosen.stems), side, workspace.out)


def _sampled(
    pipeline: PITIPipeline,
    weights: str,
    model: str,
    guidance: Guidance,
    workspace: Workspace,
    chosen: DatasetFiles,
    console: Console,
) -> tuple[Path, dict[str, Any]]:
    """The images of one setting, and what they were made of. weights: the hash of the pipeline's."""
    name = f"figure6-{guidance.kind}-{guidance.w:g}" if guidance.w else "figure6-0"
    folder = workspace.out / "images" / name
    rule = guidance if guidance.w else Guidance(kind="plain", w=0.0)  # where all rules are the same images
    options = GenerationOptions.from_flat(num=1, seed=SEED, guidance=rule, batch=BATCH, square=True)
    base = options.sampling.resolve(pipeline).base
    made_of = {
        "model": weights,
        "conditions": chosen.conditions_sha256,
        "guidance": guidance.to_dict() if guidance.w else None,
        "sampler": base.sampler,
        "steps": base.steps,
        "seed": SEED,
        "square": options.sampling.square,
    }
    begin_folder(folder, made_of)
    with steps_bar(console, f"images of {name}") as on_step:
        translate_files(pipeline, TranslationFiles([chosen.conditions], folder), options, model, on_step=on_step)
    return folder, made_of


def _look(folder: Path, chosen: DatasetFiles) -> Look:
    return mean_look(look_of(np.asarray(read_rgb(folder / f"{stem}_0.png"))) for stem in chosen.stems)


def picture(points: Sequence[Point], chosen: DatasetFiles) -> Image.Image:
    """For some conditions a row of each rule, a column a strength, beside the condition and its photograph."""
    rows = []
    for stem in sorted(sorted(chosen.stems, key=key_hash)[:SHOWN]):
        beside = (preview_of(chosen, stem, SIDE), square(read_rgb(chosen.photograph(stem)), SIDE))
        for rule, first in zip(RULES, beside, strict=True):
            own = [point for point in points if point.rule == rule]
            rows.append([first, *(square(open_image(point.folder / f"{stem}_0.png"), SIDE) for point in own)])
    return grid(rows, headings=["condition, photograph", *(f"w = {w:g}" for w in STRENGTHS)])


# Writing


def _write(model: str, points: Sequence[Point], photographs: Look, count: int, side: int, out: Path) -> Path:
    values = {
        "figure": "figure6",
        "model": model,
        "conditions": count,
        "side": side,
        "photographs": asdict(photographs),
        "points": [_point_dict(point) for point in points],
        "networks": next((p.evaluation.facts.get("networks", []) for p in points if p.evaluation), []),
    }
    texts = {
        ".json": json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        ".md": markdown(model, points, photographs, count, side),
    }
    for suffix, text in texts.items():
        with whole_file(out / f"figure6{suffix}", overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "figure6.md"


def _point_dict(point: Point) -> dict[str, Any]:
    measures = [asdict(measure) for measure in _measures(point).values()]
    return {"rule": point.rule, "w": point.w, **asdict(point.look), "measures": measures}


def _measures(point: Point) -> Mapping[tuple[str, str], Measure]:
    found = point.evaluation.measures if point.evaluation else ()
    return {(one.name, one.of): one for one in found if one.name in MEASURES}


def markdown(model: str, points: Sequence[Point], photographs: Look, count: int, side: int) -> str:
    """The numbers for a person, a row a setting."""
    keys = list(dict.fromkeys(key for point in points for key in _measures(point)))
    titles = ["guidance", "w", "clipped pixels, %", "saturation, %", "contrast, %", *map(title_of, keys)]
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    looks = [photographs, *(point.look for point in points)]
    digits = {name: decimals_for(getattr(look, name) for look in looks) for name in LOOKS}
    rows.append(["*photographs*", "", *_look_cells(photographs, digits), *[""] * len(keys)])
    for point in points:
        cells = [_cell(points, point, key) for key in keys]
        rows.append([RULES[point.rule], f"{point.w:g}", *_look_cells(point.look, digits), *cells])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [
        "Of each condition the upper row is plain guidance, beside the condition; the lower one normalised, beside the "
        "photograph.",
        f"Model `{model}`, its base's images of {side} px; one image of each of {count} validation conditions, for "
        "every setting of the same noise. At w = 0 both rules are the same images.",
        "Clipped: pixels with a channel at 0 or 255. Saturation: HSV's, mean over pixels. Contrast: standard deviation "
        "of luma within a picture. All are means over pictures; photographs are those of the same conditions, their "
        f"centre squares at {side} px. Nearest to the photographs, not largest or smallest, is best.",
        *(
            ["[low to high] is the 95% bootstrap interval over images; none is shown where draws do not differ."]
            if keys
            else []
        ),
        ABOUT["figure6"],
    ]
    notes += dict.fromkeys(note for point in points if point.evaluation for note in point.evaluation.notes)
    listed = "\n".join(f"- {note}" for note in notes)
    return f"# Figure 6: plain and normalised guidance\n\n![samples](figure6.jpg)\n\n{table}\n\n{listed}\n"


def _look_cells(look: Look, digits: Mapping[str, int]) -> list[str]:
    return [number(getattr(look, name), digits[name]) for name in LOOKS]


def _cell(points: Sequence[Point], point: Point, key: tuple[str, str]) -> str:
    """A measure of a point, with as many digits as all of its column."""
    column = [_measures(one)[key].value for one in points if key in _measures(one)]
    cell = cell_of([_measures(point)[key]] if key in _measures(point) else [])
    return "" if cell is None else cell.text(decimals_for(column))
