"""Building the components of a run from a recipe: condition, data, networks and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from piti.baselines import BaselineNetwork, ImageNetwork
from piti.baselines.base import baseline_spec
from piti.checkpoints.folder import ModelFolder, find_model, lasting_name
from piti.checkpoints.lora import Adapted
from piti.conditions import (
    Condition,
    MaskCondition,
    NoCondition,
    SeveralCondition,
    TextCondition,
    condition_from_config,
)
from piti.conditions.class_table import CLASSES_FILE, ClassTable
from piti.conditions.composite import part_configs
from piti.conditions.palette import coco_stuff
from piti.core.errors import option
from piti.core.progress import steps_bar
from piti.core.seeding import derive_seed
from piti.data.batches import LowRes, SampleSet
from piti.data.folders import PairedFolder, check_together
from piti.data.generated import WithGenerated
from piti.data.pairs import ALONE
from piti.data.shards.dataset import open_shards
from piti.data.shards.index import check_reached, list_shards
from piti.data.shown import mirroring_notes
from piti.diffusion.distillation import StudentSpec
from piti.diffusion.losses import Weighting, detail, weighting_named
from piti.diffusion.schedule import NoiseSchedule
from piti.models import PIXELS, Space, Translator
from piti.models.discriminator import Discriminator, DiscriminatorEnsemble, PatchDiscriminator
from piti.models.perceptual import PerceptualNetwork, load_perceptual
from piti.training.adversarial import ImageLosses, build_adversary
from piti.training.distributed import lay_out
from piti.training.latent_cache import weights_digest
from piti.training.model_spec import ModelSpec
from piti.training.recipe import Recipe, RecipeError
from piti.training.run_folder import RunFolder
from piti.training.stages import Stage


@dataclass
class Run:
    """The components of a run."""

    recipe: Recipe
    condition: Condition
    translator: ImageNetwork
    train: SampleSet
    validation: SampleSet | None
    folder: RunFolder
    accelerator: Accelerator
    perceptual: PerceptualNetwork | None = None
    """For stages with a perceptual loss."""
    base: Path | None = None
    """For an upsampler: the folder of its base."""
    adapted: Adapted | None = None
    """With low-rank adapters: the translator in the form in which it is saved."""
    discriminator: Discriminator | None = None
    """For a translator's adversarial stages."""
    space: Space = PIXELS
    """The space of the translator."""
    teacher: Translator | None = None
    """For a distillation: the teacher."""
    begun_sha256: str | None = None
    """Hash of a new run's initial weights, see `RunState`."""

    def frozen_digest(self) -> str | None:
        """Hash of the frozen weights that are loaded at every start, see `weights_digest`: those of the teacher or the
        autoencoder; None if there is neither."""
        frozen = self.teacher if self.teacher is not None else self.space.autoencoder
        return None if frozen is None else weights_digest(frozen)


def build_condition(recipe: Recipe) -> Condition:
    """The recipe's condition; classes given by a path, or not given, are read from the data root."""
    config: dict[str, Any] = dict(recipe.condition)
    if not has_data(recipe):
        raise RecipeError(f"data.root: not given; add {how_to_give(recipe)}, or set it in the recipe")
    if recipe.data.root is None:
        packed = _with_classes(config, _packed_classes(recipe)) if recipe.data.shards else config
        return condition_from_config(packed, "condition")
    if not recipe.data.root.is_dir():
        raise RecipeError(f"data.root: {recipe.data.root} is not a folder", remedy=f"check the path ({option('data')})")
    root, images = recipe.data.root, recipe.data.images
    return condition_from_config(_with_classes(config, lambda name: _classes_in(root, name, images)), "condition")


def has_data(recipe: Recipe) -> bool:
    """Whether the recipe gives the location of its data, which need not exist."""
    alone = recipe.condition.get("kind") in ALONE and bool(recipe.data.photographs)
    return recipe.data.root is not None or alone or bool(recipe.data.shards)


def _with_classes(config: dict[str, Any], read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """A condition's configuration, or those of its parts, with missing classes added.

    read: reads a class table by its file name, which may be empty.
    """
    if config.get("kind") == SeveralCondition.kind:
        parts = part_configs(config, "condition")
        return {**config, "parts": {name: _with_classes(part, read) for name, part in parts.items()}}
    if not wants_classes(config):
        return config
    return {**config, "classes": read(str(config.get("classes") or ""))}


def _classes_in(root: Path, name: str, images: str) -> dict[str, Any]:
    """A class table in the data root. images: the folder of images there; if both are missing, the root is wrong."""
    table = root / (name or CLASSES_FILE)
    if not (table.exists() or (root / images).is_dir()):
        what = f"data.root: {root} contains neither {images}/ nor {table.name}"
        raise RecipeError(what, remedy=f"give the folder that contains both ({option('data')})")
    return ClassTable.read(table).to_dict()


def _packed_classes(recipe: Recipe) -> Callable[[str], dict[str, Any]]:
    """A function that reads the classes of shards from a given file, or else from their manifest."""

    def read(name: str) -> dict[str, Any]:
        if name:
            return ClassTable.read(Path(name)).to_dict()
        listed = list_shards(recipe.data)
        if listed.classes is None:
            check_reached(recipe.data, listed)  # report wrong addresses first
            raise RecipeError(
                "condition.classes: the shards have no manifest with them",
                remedy=f"give a file: {option('set')} condition.classes=classes.json",
            )
        return listed.classes

    return read


def wants_classes(config: dict[str, Any]) -> bool:
    """Whether the classes of a condition, or of one of its parts, must be read from a file."""
    if config.get("kind") == SeveralCondition.kind:
        return any(map(wants_classes, part_configs(config, "condition").values()))
    return config.get("kind") in ("mask", "palette") and not isinstance(config.get("classes"), dict)


def known_condition(recipe: Recipe) -> Condition | None:
    """The condition if it is known without data; None for a mask whose classes depend on the data."""
    if wants_classes(recipe.condition):
        return None
    return condition_from_config(recipe.condition, "condition")


def open_data(
    recipe: Recipe, condition: Condition, console: Console | None = None, notes: list[str] | None = None
) -> tuple[SampleSet, SampleSet | None]:
    """Open training and validation pairs; all files of a folder are checked, the samples of shards are counted.

    console: shows progress and notes on the data. notes: receives the notes as strings. Validation is None without
    validation pairs. Raises DataError with all problems.
    """
    sharp = recipe.model.low_res is not None
    if recipe.data.shards:
        with steps_bar(console or Console(quiet=True), "counting the shards' samples") as on_step:
            sets = open_shards(recipe.data, condition, sharp, on_step)
        said = [*_root_beside(recipe), *sets[0].looked(), *(mirroring_notes(condition) if recipe.data.flip else [])]
        _say(said, console, notes)
        return sets
    training = PairedFolder(recipe.data, condition, "train", sharp)
    validation = PairedFolder(recipe.data, condition, "val", sharp) if "val" in training.split_names else None
    validation = validation if validation is not None and len(validation) else None
    with steps_bar(console or Console(quiet=True), "checking the data") as on_step:
        said = check_together([training, validation] if validation else [training], on_step)
    said += mirroring_notes(condition) if recipe.data.flip else []
    _say(said, console, notes)
    low_res, scale = recipe.model.low_res, recipe.model.scale
    if recipe.generated is None or scale is None or low_res is None:
        return training, validation
    return WithGenerated(training, recipe.generated, condition, scale, low_res), validation


def _root_beside(recipe: Recipe) -> list[str]:
    """The note for a data root that is given in addition to shards, which replace its folders."""
    root = recipe.data.root
    read = "only its classes are used" if wants_classes(recipe.condition) else "it is not used"
    return [] if root is None else [f"data.root {root}: {read}, since the pairs come from data.shards"]


def _say(said: list[str], console: Console | None, notes: list[str] | None) -> None:
    for note in said:
        (console or Console(quiet=True)).log(note, markup=False, highlight=False)
    if notes is not None:
        notes += said


def build_network(recipe: Recipe, condition: Condition) -> ImageNetwork:
    """The network to train, initialised from the seed. Raises BaselineError."""
    if recipe.baseline is None:
        return build_translator(recipe, condition)
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    return BaselineNetwork(**network_config(recipe, condition))


def network_config(recipe: Recipe, condition: Condition | None) -> dict[str, Any]:
    """Arguments of the recipe's `Translator` or `BaselineNetwork`; see `translator_config`.

    An unknown condition of a baseline is assumed to be a mask with COCO-Stuff's 182 classes.
    """
    if recipe.baseline is None:
        return translator_config(recipe.model, condition)
    return {
        "baseline": recipe.baseline,
        "channels": coco_stuff().count if condition is None else condition.channels,
        "classes": condition is None or reads_classes(condition),
        "image_size": recipe.model.image_size,
    }


def reads_classes(condition: Condition) -> bool:
    """Whether the channels of an encoded condition are classes, one-hot."""
    return isinstance(condition, MaskCondition) and condition.channels == condition.classes.count


def build_translator(recipe: Recipe, condition: Condition) -> Translator:
    """The recipe's translator, initialised from its seed."""
    model = recipe.model
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    schedule = NoiseSchedule(recipe.schedule)
    config = translator_config(model, condition)
    translator = Translator(
        **config,
        steps=len(schedule),
        one_step=recipe.one_step,
        student_spec=student_of(recipe),
        flow_shift=recipe.schedule.flow_shift,
    )
    if translator.preconditioning is not None:
        translator.preconditioning.set_noise(schedule.alphas_cumprod)
    if recipe.checkpointing:
        translator.unet.enable_gradient_checkpointing()
    return translator


def student_of(recipe: Recipe) -> dict[str, Any] | None:
    """The student spec in a distilled translator's configuration; None without distillation."""
    if recipe.distillation is None or recipe.init is None:
        return None
    guidance, teacher = recipe.distillation.guidance, lasting_name(recipe.init)
    return StudentSpec(timesteps=recipe.visited, guidance=guidance, teacher=teacher).to_dict()


def build_space(recipe: Recipe) -> Space:
    """The space of the recipe's model; for latents, with the autoencoder of its `prior` or `init`.

    Raises ModelError, UserError.
    """
    begins_from = recipe.prior or recipe.init
    if not recipe.model.space.latent or begins_from is None:
        return PIXELS
    folder = ModelFolder.open(find_model(begins_from))
    return Space(recipe.model.space, folder.autoencoder(torch.float32))


def build_perceptual(recipe: Recipe) -> PerceptualNetwork | None:
    """The frozen network of the perceptual losses; None if no stage has one. Raises UserError."""
    return load_perceptual(recipe.perceptual) if compares_features(recipe) else None


def compares_features(recipe: Recipe) -> bool:
    """Whether a loss of the recipe uses its perceptual network."""
    if recipe.baseline is not None:
        return baseline_spec(recipe.baseline).perceptual > 0
    return any(stage.perceptual for stage in recipe.stages)


def find_base(recipe: Recipe, condition: Condition) -> Path | None:
    """The folder of the base of the recipe's upsampler. Raises RecipeError, ModelError."""
    if recipe.base is None:
        return None
    if recipe.model.low_res is None:
        raise RecipeError("base: is only for upsamplers; remove it, or set model.low_res")
    folder = find_model(recipe.base)
    model = ModelFolder.open(folder)
    if "base" not in model:
        raise RecipeError(f"base: {folder} contains only an upsampler; give a model with a base")
    side = model.config("base")["image_size"]
    if side != recipe.model.low_res:
        raise RecipeError(
            f"base: {folder} generates images of {side} px, but the upsampler takes 'model.low_res' "
            f"{recipe.model.low_res} px; make them equal"
        )
    if not isinstance(condition, NoCondition) and not model.condition.reads_like(condition):
        raise RecipeError(f"base: {folder} has another condition than this recipe; both networks need the same one")
    return folder


def translator_config(model: ModelSpec, condition: Condition | None) -> dict[str, Any]:
    """Arguments of `Translator` for a recipe's model and condition, which determines the encoder's input.

    If the condition is not known yet, the encoder's `in_channels` are kept.
    """
    encoder = text = aligned = None
    if model.aligned is not None:
        channels = model.aligned.in_channels if condition is None else condition.channels
        aligned = model.aligned.model_copy(update={"in_channels": channels}).to_dict()
    if model.encoder is not None:
        channels = model.encoder.in_channels if condition is None else condition.channels
        encoder = model.encoder.model_copy(update={"in_channels": channels}).to_dict()
    if model.text is not None and isinstance(condition, TextCondition):
        read = {"vocabulary": condition.tokenizer.size, "context": condition.context}
        text = model.text.model_copy(update=read).to_dict()
    foreign: dict[str, Any] = {}
    if model.unet_config is not None:
        foreign = {"unet_config": model.unet_config, "space_spec": model.space.to_dict()}
    return {
        **foreign,
        "encoder_spec": encoder,
        "text_spec": text,
        "unet_spec": None if foreign else model.unet.to_dict(),
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "low_res": model.low_res,
        "learned_variance": model.learned_variance,
        "detail": model.detail,
        "inpaint": model.inpaint,
        "aligned_spec": aligned,
        "head_spec": None if model.head is None else model.head.to_dict(),
        "shift_growth": model.shift_growth,
        "embedded_guidance": model.embedded_guidance,
    }


def how_to_give(recipe: Recipe) -> str:
    """The options that give the location of the data."""
    either = recipe.condition.get("kind") in ALONE
    return f"{option('data')} FOLDER, or {option('set')} data.shards='[TARS]'" + (
        " or data.photographs" if either else ""
    )


def low_res_of(recipe: Recipe) -> LowRes | None:
    """The transform that creates the recipe's small images; None for a base."""
    scale = recipe.model.scale
    return None if scale is None else LowRes(scale, recipe.degradation)


def weighting_of(recipe: Recipe) -> Weighting:
    """The timestep weighting of the recipe's loss; "detail" uses the standard deviation of the recipe's model."""
    if recipe.loss.weighting == "detail" and recipe.model.detail is not None:
        return partial(detail, std=recipe.model.detail)
    return weighting_named(recipe.loss.weighting)


def build_discriminator(recipe: Recipe, condition: Condition) -> Discriminator | None:
    """One discriminator for all adversarial stages of a translator, initialised from the recipe's seed; None without
    such stages. Raises UserError if the network of `discriminator.features` is not available."""
    if not any(stage.adversarial for stage in recipe.stages):
        return None
    spec = recipe.discriminator
    judging = None if spec.features is None else load_perceptual(spec.features)
    torch.manual_seed(derive_seed(recipe.seed, "discriminator"))
    if judging is None:
        return PatchDiscriminator(spec, condition_channels=condition.channels)
    return DiscriminatorEnsemble(spec, judging, condition.channels)


def losses_of(
    recipe: Recipe,
    stage: Stage,
    perceptual: PerceptualNetwork | None,
    discriminator: Discriminator | None,
    steps: int,
    accelerator: Accelerator,
) -> ImageLosses:
    """The stage's losses on x̂₀, with prepared networks on the device. steps: T of the noise schedule."""
    device, adversary = accelerator.device, None
    if perceptual is not None:
        lay_out(accelerator, perceptual.to(device), also_on="cpu")
    if stage.adversarial is not None and discriminator is not None:
        if isinstance(discriminator, DiscriminatorEnsemble) and discriminator.frozen is not None:
            lay_out(accelerator, discriminator.frozen.to(device), also_on="cpu")
        lay_out(accelerator, discriminator, also_on="cpu")
        adversary = build_adversary(discriminator, stage.adversarial.lr, stage.adversarial.betas, accelerator)
    generated = 0.0 if recipe.generated is None else recipe.generated.share
    clean = recipe.degradation is None
    return ImageLosses(stage, steps, accelerator, recipe.seed, perceptual, adversary, clean, generated, recipe.visited)
