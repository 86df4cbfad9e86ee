"""From a recipe to a run: check the data, build the networks, train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console

from piti.conditions import Condition, condition_from_config
from piti.conditions.mask import ClassTable
from piti.data.folders import PairedFolder, check_together
from piti.models import Translator
from piti.progress import steps_bar
from piti.seeding import derive_seed
from piti.training.loop import Run, Trainer
from piti.training.recipes import NETWORKS, ModelSpec, Recipe, RecipeError
from piti.training.state import RunFolder


def train(recipe: Recipe, out: Path | str, resume: bool = False, console: Console | None = None) -> Path:
    """Train a recipe and return the folder of the model, `out/model`.

    out: the run's folder; resume: go on from its newest checkpoint. All data is checked first.
    Raises DataError, RecipeError, RunError, TrainingDiverged, TrainingInterrupted.
    """
    accelerator = build_accelerator(recipe.precision)
    main = accelerator.is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    folder = RunFolder(out)
    checkpoint = folder.check(recipe, resume)
    condition = build_condition(recipe)
    training, validation = open_data(recipe, condition, console)
    if main:
        folder.begin(recipe)
        if recipe.tensorboard:
            folder.open_board()
    if resume:
        console.log(f"going on from {checkpoint}" if checkpoint else f"{out} holds no checkpoint: a new run begins")
    accelerator.wait_for_everyone()
    translator = build_translator(recipe, condition)
    run = Run(recipe, condition, translator, training, validation, folder, accelerator)
    return Trainer(run, console).fit(checkpoint)


def build_accelerator(precision: str) -> Accelerator:
    """An accelerator of this precision, also where the process had one of another. Raises RecipeError."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise RecipeError("precision: fp16 needs a GPU; take bf16 or no")
    return accelerator


def build_condition(recipe: Recipe) -> Condition:
    """The recipe's condition; classes named by a path, or by none, are read from the data's root."""
    if recipe.data.root is None:
        raise RecipeError("data.root: not given; add --data FOLDER, or set it in the recipe")
    config: dict[str, Any] = dict(recipe.condition)
    if config.get("kind") == "mask" and not isinstance(config.get("classes"), dict):
        path = recipe.data.root / str(config.get("classes") or "classes.json")
        config["classes"] = ClassTable.read(path).to_dict()
    return condition_from_config(config, "condition")


def open_data(
    recipe: Recipe, condition: Condition, console: Console | None = None
) -> tuple[PairedFolder, PairedFolder | None]:
    """Training and validation pairs, every file checked. Raises DataError with all problems together."""
    training = PairedFolder(recipe.data, condition, "train")
    validation = PairedFolder(recipe.data, condition, "val") if "val" in training.split_names else None
    with steps_bar(console or Console(quiet=True), "checking the data") as on_step:
        check_together([training, validation] if validation else [training], on_step)
    return training, validation


def build_translator(recipe: Recipe, condition: Condition) -> Translator:
    """The recipe's translator with weights drawn from its seed."""
    model = recipe.model
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    return Translator(**translator_config(model, condition.channels))


def translator_config(model: ModelSpec, channels: int) -> dict[str, Any]:
    """Arguments of `Translator` for a recipe's model and a condition of so many channels."""
    encoder = model.encoder.model_copy(update={"in_channels": channels})
    return {
        "encoder_spec": encoder.to_dict(),
        "unet_spec": model.unet.to_dict(),
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "learned_variance": model.learned_variance,
    }


def plan(recipe: Recipe, out: Path | str) -> list[dict[str, str]]:
    """What `train` would do, a row a line, after the same checks of recipe, data and folder."""
    newest = RunFolder(out).newest()
    RunFolder(out).check(recipe, resume=newest is not None)
    condition = build_condition(recipe)
    training, validation = open_data(recipe, condition)
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, condition.channels))
    sizes = {name: _millions(translator.get_submodule(name)) for name in NETWORKS}
    images = recipe.steps * recipe.batch * recipe.accumulation
    rows = {
        "condition": f"{condition.kind}, {condition.channels} channels",
        "networks": ", ".join(f"{name} {size:.1f}M parameters" for name, size in sizes.items()),
        "data": f"{len(training)} training and {len(validation) if validation else 0} validation pairs",
        "images": f"{images:,} of one process: {recipe.steps:,} steps of {recipe.batch} × {recipe.accumulation}",
    }
    for stage in recipe.stages:
        rows[f"stage {stage.name}"] = f"{' and '.join(stage.trains)}, {stage.steps:,} steps at {stage.lr:g}"
    rows["folder"] = f"{out}: " + (f"holds {newest.name}, --resume goes on from there" if newest else "new")
    return [{"what": key, "plan": value} for key, value in rows.items()]


def _millions(network: torch.nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6
