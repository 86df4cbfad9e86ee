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
from piti.data.folders import ALONE, PairedFolder, check_together
from piti.diffusion.schedule import NoiseSchedule
from piti.models import Translator
from piti.models.checkpoints import ModelFolder, find_model
from piti.models.discriminator import PatchDiscriminator
from piti.models.perceptual import PerceptualNetwork, load_perceptual
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
    base = find_base(recipe, condition)
    perceptual = build_perceptual(recipe)
    translator = build_translator(recipe, condition)
    if recipe.init is not None and checkpoint is None:
        load_weights(translator, recipe.init, NoiseSchedule(recipe.schedule))
    training, validation = open_data(recipe, condition, console)
    if main:
        folder.begin(recipe)
        if recipe.tensorboard:
            folder.open_board()
    if resume:
        console.log(f"going on from {checkpoint}" if checkpoint else f"{out} holds no checkpoint: a new run begins")
    accelerator.wait_for_everyone()
    run = Run(recipe, condition, translator, training, validation, folder, accelerator, perceptual, base)
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
    if recipe.data.root is None:
        if config.get("kind") in ALONE and recipe.data.photographs:
            return condition_from_config(config, "condition")
        raise RecipeError("data.root: not given; add --data FOLDER, or set it in the recipe")
    if config.get("kind") == "mask" and not isinstance(config.get("classes"), dict):
        path = recipe.data.root / str(config.get("classes") or "classes.json")
        config["classes"] = ClassTable.read(path).to_dict()
    return condition_from_config(config, "condition")


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
    if not isinstance(condition, NoCondition) and model.condition.to_config() != condition.to_config():
        raise RecipeError(f"base: {folder} takes another condition than this recipe; both networks see the same one")
    return folder


def load_weights(translator: Translator, name: str, schedule: NoiseSchedule | None = None) -> None:
    """Begin from a model's weights. Raises ModelError if there is none, RecipeError if one does not fit.

    schedule: the recipe's, whose noise levels an upsampler's preconditioning keeps; none: only check what fits.
    """
    part = "base" if translator.low_res is None else "upsampler"
    folder = find_model(name) / part
    if not folder.is_dir():
        raise RecipeError(f"init: {folder.parent} holds no {part}; name a model that does")
    given = Translator.from_pretrained(folder).state_dict()
    own = translator.state_dict()
    wrong = sorted(key for key in own.keys() | given.keys() if _shape(own, key) != _shape(given, key))
    if wrong:
        named = ", ".join(f"{key}: {_shape(given, key)} there, {_shape(own, key)} here" for key in wrong[:3])
        raise RecipeError(f"init: {len(wrong)} weights of {folder} do not fit this recipe's model ({named} …)")
    if schedule is None:
        return
    translator.load_state_dict(given)
    if translator.preconditioning is not None:
        translator.preconditioning.set_noise(schedule.alphas_cumprod)


def _shape(weights: dict[str, torch.Tensor], key: str) -> list[int] | None:
    return list(weights[key].shape) if key in weights else None


def translator_config(model: ModelSpec, condition: Condition) -> dict[str, Any]:
    """Arguments of `Translator` for a recipe's model and condition, which decides what the encoder reads."""
    encoder = text = None
    if model.encoder is not None:
        encoder = model.encoder.model_copy(update={"in_channels": condition.channels}).to_dict()
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


def plan(recipe: Recipe, out: Path | str) -> list[dict[str, str]]:
    """What `train` would do, a row a line, after the same checks of recipe, data and folder."""
    newest = RunFolder(out).newest()
    RunFolder(out).check(recipe, resume=newest is not None)
    condition = build_condition(recipe)
    find_base(recipe, condition)
    build_perceptual(recipe)
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, condition))
    if recipe.init is not None and newest is None:
        load_weights(translator, recipe.init)
    training, validation = open_data(recipe, condition)
    networks = {name: getattr(translator, name) for name in NETWORKS}
    if any(stage.adversarial for stage in recipe.stages):
        with torch.device("meta"):
            networks["discriminator"] = PatchDiscriminator(recipe.discriminator)
    sizes = {name: _millions(network) for name, network in networks.items() if network is not None}
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
