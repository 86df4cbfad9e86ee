"""From a recipe to a run: check the data, build the networks, train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console

from piti.conditions import Condition, NoCondition, TextCondition, condition_from_config
from piti.conditions.mask import ClassTable
from piti.data.folders import PairedFolder, check_together
from piti.data.pairs import ALONE
from piti.diffusion.schedule import NoiseSchedule
from piti.models import Translator
from piti.models.checkpoints import ModelError, ModelFolder, find_model
from piti.models.perceptual import PerceptualNetwork, load_perceptual
from piti.progress import steps_bar
from piti.seeding import derive_seed
from piti.training.cost import DEFAULT_GPU, cost_of, cost_rows, gpu_named
from piti.training.initial import adapt, begin
from piti.training.loop import Run, Trainer
from piti.training.recipes import ModelSpec, Recipe, RecipeError
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
    base = find_base(recipe, condition)
    perceptual = build_perceptual(recipe)
    translator = build_translator(recipe, condition)
    if checkpoint is None:
        console.log(begin(translator, recipe))
    adapted = adapt(translator, recipe) if recipe.adapts else None
    training, validation = open_data(recipe, condition, console)
    if main:
        folder.begin(recipe)
        if recipe.tensorboard:
            folder.open_board()
    if resume:
        console.log(f"going on from {checkpoint}" if checkpoint else f"{out} holds no checkpoint: a new run begins")
    accelerator.wait_for_everyone()
    run = Run(recipe, condition, translator, training, validation, folder, accelerator, perceptual, base, adapted)
    return Trainer(run, console).fit(checkpoint)


def build_accelerator(precision: str) -> Accelerator:
    """An accelerator of this precision, also where the process had one of another. Raises RecipeError."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise RecipeError(
            f"{started} processes were started, but each sees {accelerator.num_processes}; where there is no GPU, "
            "set ACCELERATE_USE_CPU=1 before torchrun"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise RecipeError("precision: fp16 needs a GPU; take bf16 or no")
    return accelerator


def build_condition(recipe: Recipe) -> Condition:
    """The recipe's condition; classes named by a path, or by none, are read from the data's root."""
    config: dict[str, Any] = dict(recipe.condition)
    if not has_data(recipe):
        raise RecipeError(f"data.root: not given; add {_how_to_give(recipe)}, or set it in the recipe")
    if recipe.data.root is None:
        return condition_from_config(config, "condition")
    if not recipe.data.root.is_dir():
        raise RecipeError(f"data.root: {recipe.data.root} is no folder; check the path (--data)")
    if wants_classes(config):
        path = recipe.data.root / str(config.get("classes") or "classes.json")
        config["classes"] = ClassTable.read(path).to_dict()
    return condition_from_config(config, "condition")


def has_data(recipe: Recipe) -> bool:
    """Whether the recipe says where its data is; not whether it is there."""
    alone = recipe.condition.get("kind") in ALONE and bool(recipe.data.photographs)
    return recipe.data.root is not None or alone


def wants_classes(config: dict[str, Any]) -> bool:
    """Whether a condition's classes are to be read from a file."""
    return config.get("kind") in ("mask", "palette") and not isinstance(config.get("classes"), dict)


def known_condition(recipe: Recipe) -> Condition | None:
    """The condition as far as it is known without data: none for a mask whose classes come with them."""
    if wants_classes(recipe.condition):
        return None
    return condition_from_config(recipe.condition, "condition")


def open_data(
    recipe: Recipe, condition: Condition, console: Console | None = None
) -> tuple[PairedFolder, PairedFolder | None]:
    """Training and validation pairs, every file checked. Raises DataError with all problems together."""
    sharp = recipe.model.low_res is not None
    training = PairedFolder(recipe.data, condition, "train", sharp)
    validation = PairedFolder(recipe.data, condition, "val", sharp) if "val" in training.split_names else None
    with steps_bar(console or Console(quiet=True), "checking the data") as on_step:
        check_together([training, validation] if validation else [training], on_step)
    return training, validation


def build_translator(recipe: Recipe, condition: Condition) -> Translator:
    """The recipe's translator with weights drawn from its seed."""
    model = recipe.model
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    schedule = NoiseSchedule(recipe.schedule)
    translator = Translator(**translator_config(model, condition), steps=len(schedule))
    if translator.preconditioning is not None:
        translator.preconditioning.set_noise(schedule.alphas_cumprod)
    return translator


def build_perceptual(recipe: Recipe) -> PerceptualNetwork | None:
    """The frozen network of the perceptual losses, none where no stage has one. Raises UserError."""
    if not any(stage.perceptual for stage in recipe.stages):
        return None
    return load_perceptual(recipe.perceptual)


def find_base(recipe: Recipe, condition: Condition) -> Path | None:
    """The folder of the model whose images the recipe's upsampler enlarges. Raises RecipeError, ModelError."""
    if recipe.base is None:
        return None
    if recipe.model.low_res is None:
        raise RecipeError("base: is for upsamplers alone; remove it, or set model.low_res")
    folder = find_model(recipe.base)
    model = ModelFolder.open(folder)
    if "base" not in model:
        raise RecipeError(f"base: {folder} holds an upsampler alone; name a model that makes images")
    side = model.config("base")["image_size"]
    if side != recipe.model.low_res:
        raise RecipeError(
            f"base: {folder} makes images of {side} px, the upsampler enlarges images of 'model.low_res' "
            f"{recipe.model.low_res} px; make them equal"
        )
    if not isinstance(condition, NoCondition) and not model.condition.reads_like(condition):
        raise RecipeError(f"base: {folder} takes another condition than this recipe; both networks see the same one")
    return folder


def translator_config(model: ModelSpec, condition: Condition | None) -> dict[str, Any]:
    """Arguments of `Translator` for a recipe's model and condition, which decides what the encoder reads.

    Where the condition is not known yet, the encoder's own `in_channels` stand.
    """
    encoder = text = None
    if model.encoder is not None:
        channels = model.encoder.in_channels if condition is None else condition.channels
        encoder = model.encoder.model_copy(update={"in_channels": channels}).to_dict()
    if model.text is not None and isinstance(condition, TextCondition):
        read = {"vocabulary": condition.tokenizer.size, "context": condition.context}
        text = model.text.model_copy(update=read).to_dict()
    return {
        "encoder_spec": encoder,
        "text_spec": text,
        "unet_spec": model.unet.to_dict(),
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "low_res": model.low_res,
        "learned_variance": model.learned_variance,
        "detail": model.detail,
    }


def plan(recipe: Recipe, out: Path | str, gpu: str = DEFAULT_GPU) -> list[dict[str, str]]:
    """What `train` would do and cost, a row a line, after the same checks of recipe, data and folder.

    gpu: a name in `cost.GPUS`, of the GPU whose hours and memory are told. Without data the costs are told, and
    whether the prior fits if it is there.
    """
    chosen = gpu_named(gpu)
    newest = RunFolder(out).newest()
    RunFolder(out).check(recipe, resume=newest is not None)
    given = has_data(recipe)
    condition = build_condition(recipe) if given else known_condition(recipe)
    if given and condition is not None:
        found = _checked(recipe, condition, newest is None)
    else:
        try:
            found = {"begins": _beginning(recipe, condition)}
        except ModelError as error:
            found = {"begins": f"not checked: {error}"}
        found["data"] = f"not given ({_how_to_give(recipe)}): nothing of it is checked"
    cost = cost_of(recipe, translator_config(recipe.model, condition))
    sizes = (f"{name} {count / 1e6:.1f}M parameters" for name, count in cost.parameters.items())
    rows = {"condition": _described(recipe, condition), "networks": ", ".join(sizes), **found}
    images = recipe.steps * recipe.batch * recipe.accumulation
    rows["images"] = f"{images:,} of one process: {recipe.steps:,} steps of {recipe.batch} × {recipe.accumulation}"
    for stage in recipe.stages:
        rows[f"stage {stage.name}"] = f"{' and '.join(stage.trains)}, {stage.steps:,} steps at {stage.lr:g}"
    rows |= cost_rows(cost, recipe, chosen)
    rows["folder"] = f"{out}: " + (f"holds {newest.name}, --resume goes on from there" if newest else "new")
    return [{"what": key, "plan": value} for key, value in rows.items()]


def _checked(recipe: Recipe, condition: Condition, begins: bool) -> dict[str, str]:
    """Check all that a run needs beside its recipe; what was found, a row each. begins: there is no checkpoint."""
    find_base(recipe, condition)
    build_perceptual(recipe)
    rows = {"begins": _beginning(recipe, condition)} if begins else {}
    training, validation = open_data(recipe, condition)
    rows["data"] = f"{len(training)} training and {len(validation) if validation else 0} validation pairs"
    return rows


def _beginning(recipe: Recipe, condition: Condition | None) -> str:
    """What the run would begin from. Raises ModelError where there is no such model, RecipeError if it does not fit."""
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, condition))
    return begin(translator, recipe, only_check=True)


def _how_to_give(recipe: Recipe) -> str:
    """How to tell where the data is."""
    either = recipe.condition.get("kind") in ALONE
    return "--data FOLDER" + (", or --set data.photographs='[FOLDER_OR_TAR]'" if either else "")


def _described(recipe: Recipe, condition: Condition | None) -> str:
    if condition is not None:
        return f"{condition.kind}, {condition.channels} channels"
    assumed = recipe.model.encoder.in_channels if recipe.model.encoder else 0
    return f"mask, {assumed} channels assumed: its classes come with the data"
