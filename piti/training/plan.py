"""The plan and estimated cost of a run, after the same checks."""

from __future__ import annotations

from pathlib import Path

import torch

from piti.checkpoints.folder import ModelError
from piti.conditions import Condition
from piti.conditions.palette import coco_stuff
from piti.core.errors import Message, count_of, option, text_of
from piti.data.pairs import NO_VALIDATION
from piti.models import Translator
from piti.models.perceptual import PerceptualSpec, load_perceptual, weights_source
from piti.training.build import (
    build_condition,
    compares_features,
    find_base,
    has_data,
    how_to_give,
    known_condition,
    network_config,
    open_data,
    translator_config,
)
from piti.training.cost import DEFAULT_GPU, GIB, GPU, ROOM, SMALL, UTILISATION, Cost, cost_of, gpu_named
from piti.training.init import begin
from piti.training.losses import DistillationSpec
from piti.training.recipe import Recipe
from piti.training.run_folder import RunFolder
from piti.training.run_state import checked_state, data_state, other_contents
from piti.training.stages import Stage


def plan(recipe: Recipe, out: Path | str, gpu: str = DEFAULT_GPU, resume: bool = False) -> list[dict[str, str]]:
    """The plan and estimated cost of `train`, as rows, after the same checks of recipe, data and folder.

    gpu: a name in `cost.GPUS`, for the estimated hours and memory. resume: as for `train`; without it, a run that has a
    checkpoint is noted. Without data, costs are still estimated, and the prior is checked if it is available.
    """
    chosen = gpu_named(gpu)
    newest = RunFolder(out).newest()
    RunFolder(out).check(recipe, resume=resume or newest is not None)
    given = has_data(recipe)
    condition = build_condition(recipe) if given else known_condition(recipe)
    if given and condition is not None:
        found = _checked(recipe, condition, newest)
    else:
        try:
            found = {"begins": beginning(recipe, condition)}
        except ModelError as error:
            found = {"begins": f"not checked: {text_of(error)}"}
        found["data"] = f"not given ({how_to_give(recipe)}): it is not checked"
    cost = cost_of(recipe, network_config(recipe, condition))
    sizes = (f"{name} {count / 1e6:.1f}M parameters" for name, count in cost.parameters.items())
    rows = {"condition": _described(recipe, condition), "networks": ", ".join(sizes), **found}
    images = recipe.steps * recipe.batch * recipe.accumulation
    rows["images"] = f"{images:,} of one process: {recipe.steps:,} steps of {recipe.batch} × {recipe.accumulation}"
    for stage, costs in zip(recipe.stages, cost.stages, strict=True):
        learns = f"{' and '.join(stage.trains)} ({costs.learning / 1e6:.1f}M parameters trained)"
        late = f"; {stage.too_late()}" if stage.too_late() else ""
        rows[f"stage {stage.name}"] = f"{learns}, {stage.steps:,} steps at {_rate(stage)}{late}"
    if recipe.distillation is not None:
        rows["teacher"] = _taught(recipe.distillation)
    rows["precision"] = _precision(recipe)
    rows |= cost_rows(cost, recipe, chosen)
    rows["folder"] = f"{out}: " + _found(newest, resume)
    return [{"what": key, "plan": Message(text_of(value))} for key, value in rows.items()]


def _checked(recipe: Recipe, condition: Condition, newest: Path | None) -> dict[str, str]:
    """Check everything that a run needs besides its recipe; a row per finding. newest: its checkpoint."""
    find_base(recipe, condition)
    rows = {"begins": beginning(recipe, condition)} if newest is None else {}
    if compares_features(recipe):
        rows["perceptual"] = _features(recipe.perceptual)
    if recipe.discriminator.features is not None:
        rows["discriminator"] = f"also judges features of {_features(recipe.discriminator.features)}"
    notes: list[str] = []
    training, validation = open_data(recipe, condition, notes=notes)
    held_out = len(validation) if validation else 0
    rows["data"] = f"{len(training):,} training and {count_of(held_out, 'validation pair')}"
    if notes:
        rows["shows"] = "\n".join(notes)
    if validation is None:
        rows["validation"] = NO_VALIDATION
    if newest is not None:
        now = data_state(training, validation)
        changed = other_contents(checked_state(newest, now | {"condition": condition.to_config()}, recipe), now)
        if changed is not None:
            rows["changed"] = changed
    return rows


def _found(newest: Path | None, resume: bool) -> str:
    """Where a run would start in its folder."""
    if newest is not None:
        return f"holds {newest.name}, {option('resume')} continues from it"
    return "has no checkpoint: a new run starts" if resume else "new"


def _features(spec: PerceptualSpec) -> str:
    """The origin of a frozen network's weights. Checks files, and downloads nothing. Raises UserError."""
    source = weights_source(spec)
    if isinstance(source, str):
        return f"{spec.network}, from {source} on the hub or its cache when the run starts"
    load_perceptual(spec)
    return f"{spec.network}, {source}"


def beginning(recipe: Recipe, condition: Condition | None) -> str:
    """What the run would start from. Raises ModelError if there is no such model, RecipeError if it does not fit."""
    if recipe.baseline is not None:
        return "newly initialised weights"
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, condition))
    return begin(translator, recipe, condition, only_check=True)


def _rate(stage: Stage) -> str:
    """A stage's learning rate, and the highest rate reached if the stage decays or ends before the warm-up is over."""
    if stage.warmup < max(1, stage.steps * (1 - stage.decay)):
        return f"{stage.lr:g}"
    highest = max(map(stage.lr_at, range(stage.steps)))
    return f"{stage.lr:g}; the warm-up of {stage.warmup:,} steps only reaches {highest:.2g}"


def _taught(spec: DistillationSpec) -> str:
    """What a student learns from its teacher."""
    steps = f"{spec.steps} steps, each replacing {spec.substeps} of the teacher's"
    if spec.steps is None:
        steps = "one evaluation per timestep, replacing the teacher's two"
    return f"{steps} with guidance {spec.guidance.kind}, w = {spec.guidance.w:g}, distilled into the weights"


def _precision(recipe: Recipe) -> str:
    """The precision of the networks, and whether their blocks are compiled."""
    if recipe.precision == "auto":
        numbers = "products in bf16 where the device computes it faster than float32, the rest in float32"
    else:
        numbers = "float32" if recipe.precision == "no" else f"products in {recipe.precision}, the rest in float32"
    alone = ", which needs a GPU" if recipe.precision == "fp16" else ""
    return f"{numbers}{alone}{'; blocks are compiled' if recipe.compile else ''}"


def _described(recipe: Recipe, condition: Condition | None) -> str:
    if condition is not None:
        return f"{condition.kind}, {condition.channels} channels"
    encoder = recipe.model.encoder
    assumed = coco_stuff().count if recipe.baseline else encoder.in_channels if encoder else 0
    return f"{recipe.condition['kind']}, {assumed} channels assumed: the classes depend on the data"


def cost_rows(cost: Cost, recipe: Recipe, gpu: GPU) -> dict[str, str]:
    """Rows of a plan: FLOPs, speed and memory."""
    side, batch = recipe.data.size, recipe.batch
    flops = ", ".join(f"{_flop(stage.flops)} ({stage.name})" for stage in cost.stages)
    rates = ", ".join(f"{stage.rate(gpu):,.0f} images/s ({stage.name})" for stage in cost.stages)
    hours = f"{cost.hours(gpu):,.1f}" if cost.hours(gpu) >= 0.1 else "less than 0.1"
    slower = "; an estimate for bf16, which is faster than precision: no" if recipe.precision == "no" else ""
    bound = "; an upper bound: such a small network does not fill the GPU" if cost.forward < SMALL else ""
    return {
        "FLOPs": f"{_flop(cost.forward)} forward per image of {side} px; {flops} per training image",
        "speed": f"about {rates} if data loading keeps up, {hours} hours for all steps on one {gpu.name} at "
        f"{UTILISATION:.0%} of {gpu.peak / 1e12:.0f} TFLOP/s{slower}{bound}",
        "memory": Message(
            f"about {cost.memory(batch) / GIB:.1f} GiB at batch {batch}, allocator overhead aside; "
            + _fit(cost, recipe, gpu)
        ),
    }


def _fit(cost: Cost, recipe: Recipe, gpu: GPU) -> str:
    """Whether a recipe fits a GPU, and what to change if not."""
    has = f"the {gpu.memory / GIB:.0f} GiB of one {gpu.name}"
    fitting = cost.batch_for(gpu, recipe.batch)
    if fitting == recipe.batch:
        return f"fits {has}"
    over = f"more than {ROOM:.0%} of {has}"
    if fitting is None:
        return f"{over}, even for one image: use a larger GPU or a smaller model"
    parts = recipe.accumulation * recipe.batch // fitting
    return (
        f"{over}: {option('set')} batch={fitting} {option('set')} accumulation={parts} takes "
        f"{cost.memory(fitting) / GIB:.1f} GiB"
    )


def _flop(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP"
