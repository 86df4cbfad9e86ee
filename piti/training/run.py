"""Run a recipe: check everything, then train."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from piti.baselines import ImageNetwork
from piti.checkpoints.lora import Adapted, keep_half
from piti.checkpoints.priors import not_imported
from piti.core.distributed import together
from piti.core.log import LogConsole
from piti.core.seeding import global_generators_kept
from piti.data.pairs import NO_VALIDATION
from piti.models import Translator
from piti.training.build import (
    Run,
    build_condition,
    build_discriminator,
    build_network,
    build_perceptual,
    build_space,
    find_base,
    open_data,
)
from piti.training.distill import teacher_of
from piti.training.distributed import auto_in_words, build_accelerator, frozen_type
from piti.training.init import adapt, begin, begun_sha256
from piti.training.loop import Trainer, TrainingInterrupted
from piti.training.recipe import Recipe
from piti.training.recipe_io import flat
from piti.training.run_folder import RECIPE_FILE, RunFolder
from piti.training.run_state import read_state
from piti.training.stages import eight_bits
from piti.training.trackers import TensorBoard, Trackers, open_tracker


@global_generators_kept()
def train(
    recipe: Recipe, out: Path | str, resume: bool = False, console: Console | None = None, last: bool = True
) -> Path:
    """Train a recipe and return the folder of the model, `out/model`. All data is checked first.

    out: the run's folder. resume: continue from its newest checkpoint. console: for progress; by default standard
    error. last: whether the process ends after the run; if not, TrainingInterrupted is also raised for an interruption
    during the last step. The state of torch's global generator is not affected. Raises DataError, RecipeError,
    RunError, RunLockedError, TrainingDiverged, TrainingInterrupted.
    """
    accelerator = build_accelerator(recipe)
    main = accelerator.is_main_process
    console = (console or LogConsole()) if main else Console(quiet=True)
    folder = RunFolder(out)
    if recipe.precision == "auto":
        console.log(f"precision auto: {auto_in_words(recipe, accelerator.device)}")
    with together():
        run, checkpoint = _prepared(recipe, folder, resume, console, accelerator)
    try:
        with together():
            if main:
                with folder.writing("the run folder"):
                    _begin_folder(folder, recipe, checkpoint, console)
        trainer = Trainer(run, console)
        model = trainer.fit(checkpoint)
        if trainer.stop.asked and not last:
            raise TrainingInterrupted("stopped after the last step; the run is complete and saved")
        return model
    finally:
        folder.trackers.close()
        folder.lock.release()
        accelerator.free_memory()


def _prepared(
    recipe: Recipe, folder: RunFolder, resume: bool, console: Console, accelerator: Accelerator
) -> tuple[Run, Path | None]:
    """The checked components of the run, and the checkpoint to continue from."""
    checkpoint = folder.check(recipe, resume, locks=accelerator.is_main_process)
    if recipe.optimizer.kind == "adamw8bit":
        eight_bits()
    condition = build_condition(recipe)
    base = find_base(recipe, condition)
    perceptual = build_perceptual(recipe)
    translator = build_network(recipe, condition)
    foreign = None if recipe.prior is None or checkpoint is not None else not_imported(recipe.prior)
    if foreign is not None:
        console.log(f"prior {recipe.prior}: {foreign.what}; it is downloaded, and imported into the cache")
    if checkpoint is None:
        console.log(
            begin(translator, recipe, condition) if isinstance(translator, Translator) else "newly initialised weights"
        )
    adapted = _adapted(translator, recipe, accelerator, anew=checkpoint is None)
    training, validation = open_data(recipe, condition, console)
    if validation is None:
        console.log(NO_VALIDATION)
    discriminator = build_discriminator(recipe, condition)
    if resume:
        found = f"continuing from {checkpoint}" if checkpoint else f"{folder.root} has no checkpoint: a new run starts"
        console.log(found)
    run = Run(
        recipe,
        condition,
        translator,
        training,
        validation,
        folder,
        accelerator,
        perceptual=perceptual,
        base=base,
        adapted=adapted,
        discriminator=discriminator,
        space=build_space(recipe),
        teacher=None if recipe.distillation is None else teacher_of(recipe, condition),
        begun_sha256=None if checkpoint is not None else begun_sha256(recipe),
    )
    return run, checkpoint


def _adapted(translator: ImageNetwork, recipe: Recipe, accelerator: Accelerator, anew: bool) -> Adapted | None:
    """The translator with the recipe's low-rank adapters, and its frozen weights in half precision if possible."""
    if not (recipe.adapts and isinstance(translator, Translator)):
        return None
    adapted = adapt(translator, recipe, anew)
    half = frozen_type(accelerator, recipe)
    if half is not None:
        keep_half(translator, half)
    return adapted


def _begin_folder(folder: RunFolder, recipe: Recipe, checkpoint: Path | None, console: Console) -> None:
    kept = folder.begin(recipe)
    if kept is not None:
        console.log(f"{folder.root / RECIPE_FILE} now holds the recipe as run; the previous file is kept as {kept}")
    folder.trackers = Trackers(console.log)
    if recipe.tensorboard:
        step = 0 if checkpoint is None else read_state(checkpoint).step
        folder.trackers.open["tensorboard"] = TensorBoard(folder.root / "tensorboard", step)
    for name, options in recipe.trackers.items():
        folder.trackers.open[name] = open_tracker(name, options, folder.root, flat(recipe.to_dict()))
