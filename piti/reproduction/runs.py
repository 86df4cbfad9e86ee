"""A row's runs trained and its evaluation taken; what is done already is left as it is."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piti.conditions import MaskCondition
from piti.core.errors import UserError, option, spelled, text_of
from piti.core.files import alone
from piti.core.progress import steps_bar
from piti.data.folders import PairedFolder
from piti.evaluation.evaluate import evaluate_files
from piti.evaluation.features import features_sha256
from piti.evaluation.options import Options
from piti.evaluation.result import Evaluation
from piti.evaluation.segmentation import segmenter_sha256
from piti.models.discriminator import DiscriminatorSpec
from piti.models.perceptual import PerceptualSpec
from piti.reproduction.files import DatasetFiles, contents_sha256
from piti.reproduction.rows import Plan, Row, Training
from piti.training import Recipe, RunError, RunFolder, TrainingInterrupted, read_recipe, train
from piti.training.build import build_condition
from piti.training.init import begun_sha256
from piti.training.recipe_io import flat
from piti.training.run_folder import RECIPE_FILE
from piti.training.run_state import checked_state, read_state

STATES = "custom_checkpoint_*.pkl"
"""A checkpoint's files of what a run registers, in the order in which it does: one is the averaged weights, which are
what a model is made of."""
_UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError)  # what torch raises of files that are no states
SMALL = 2**16
"""Tensors of more numbers are not compared: a step of training changes the small ones too."""


def is_of(model: Path, checkpoint: Path) -> bool:
    """Whether a model holds the averaged weights of a checkpoint; False where one of them cannot be read."""
    if not (model / "model_index.json").is_file():
        return False
    try:
        wanted = _digests(_average(checkpoint))
        return any(wanted and wanted <= _digests(_weights(file)) for file in sorted(model.rglob("*.safetensors")))
    except (*_UNREADABLE, SafetensorError):
        return False


def _average(checkpoint: Path) -> Iterable[Tensor]:
    """The averaged weights among a checkpoint's states, by their content; nothing where no file holds them."""
    for path in sorted(checkpoint.glob(STATES)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _UNREADABLE:
            continue
        if isinstance(state, Mapping) and "shadow_params" in state:
            return state["shadow_params"]
    return ()


def _weights(path: Path) -> Iterable[Tensor]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if math.prod(file.get_slice(key).get_shape()) <= SMALL:
                yield file.get_tensor(key)


def _digests(tensors: Iterable[Tensor]) -> Counter[str]:
    """The small tensors' contents: networks list them in another order than files do."""
    small = (tensor.detach().float().contiguous() for tensor in tensors if tensor.numel() <= SMALL)
    return Counter(hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest() for x in small)


IRRELEVANT = {
    "name", "workers", "log_every", "tensorboard", "trackers", "preview", "checkpoint", "batch", "accumulation", "base",
    "data.root", "data.cache", "data.cache_gib", "data.max_bad", "perceptual.weights", "generated.root",
    "discriminator.features.weights", "precision", "compile", "checkpointing", "latent_cache_gib",
}  # fmt: skip
"""Keys of a recipe in which a finished run may differ from the plan: they do not change what it learned (precision and
compiler only by rounding), or say where files lie. Batch and accumulation are compared as their product with the number
of processes."""
OURS = "made_of"
"""What an evaluation's facts call that of which it was made."""


@dataclass(frozen=True)
class Judges:
    """By what the images are judged, as `Options` takes it."""

    features: tuple[str, ...] = ("inception", "clip")
    segmenter: str | None = None
    aliases: Path | None = None
    bootstrap: int = 200

    def options(self, side: int, device: str | None, cache: Path, objects: bool = False) -> Options:
        """For images whose centre squares are brought to `side` pixels. cache: a folder that keeps features; objects:
        whether those of a class are compared."""
        return Options(
            self.features,
            side,
            device=device,
            segmenter=self.segmenter,
            aliases=self.aliases,
            objects=objects,
            bootstrap=self.bootstrap,
            cache=cache,
        )

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What a result of these judges depends on, files by their contents."""
        named = {"features": list(self.features), "segmenter": self.segmenter, "aliases": self.aliases}
        return {"bootstrap": self.bootstrap} | {key: _identity(value) for key, value in named.items()}

    @cached_property
    def named_features(self) -> frozenset[str]:
        """The hashes of the weights behind feature networks that are given by name, of files and of hub repositories,
        which `made_of` does not tell. Raises UserError."""
        return frozenset(features_sha256(name) for name in self.features if _is_named(name))

    @cached_property
    def named_segmenter(self) -> frozenset[str]:
        """The hash of the segmenter's weights, where it is given by its name on the hub. Raises UserError."""
        name = self.segmenter
        return frozenset() if name is None or not _is_named(name) else frozenset([segmenter_sha256(name)])


@dataclass(frozen=True)
class Workspace:
    """Where a table is made, and what for."""

    out: Path
    data: Mapping[str, Path] = field(default_factory=dict)
    """Each data set's folder."""
    judges: Judges = Judges()
    seeds: int = 2
    device: str | None = None
    """Of sampling and judging; training takes what accelerate finds."""
    train: bool = True
    """Whether what is not trained is to be; else it is missing from the table."""
    changes: tuple[str, ...] = ()
    """On top of every recipe."""
    real_esrgan: Path | None = None
    """Weights of the upsampler that is not ours, for the row that takes it."""

    def run(self, training: Training, seed: int) -> Path:
        """A training's folder."""
        return self.out / "runs" / f"{training.name}-{seed}"

    def images(self, row: Row, seed: int) -> Path:
        """A row's images."""
        return self.out / "images" / f"{row.images}-{seed}"

    def generated(self, base: Training, seed: int) -> Path:
        """A base's images of the training conditions, from which an upsampler learns."""
        return self.out / "images" / f"{base.name}-training-{seed}"

    def result(self, name: str) -> Path:
        """An evaluation's file. name: a row's images' with the seed."""
        return self.out / "results" / f"{name}.json"


# Training


@dataclass(frozen=True)
class RunProgress:
    """How far a training run has come."""

    step: int
    steps: int
    seconds: float = 0.0
    """Spent on it so far."""
    images: int = 0
    finished: bool = False
    """Whether the run is at its last step, and the model of that is there."""

    def __str__(self) -> str:
        if self.finished:
            return "finished"
        return f"step {self.step:,} of {self.steps:,}" if self.step else "new"


def recipe_of(plan: Plan, training: Training, seed: int, workspace: Workspace) -> Recipe:
    """The recipe of a run, its data named where `workspace` has it. Raises RecipeError."""
    recipe = read_recipe(plan.recipe_file(training), [*training.changes, *workspace.changes, f"seed={seed}"])
    changed: dict[str, Any] = {"data": recipe.data.model_copy(update={"root": workspace.data.get(training.data)})}
    if recipe.generated is not None and training.generated is not None:
        root = workspace.generated(training.generated.base, seed)
        changed["generated"] = recipe.generated.model_copy(update={"root": root})
    if recipe.discriminator is not None:
        changed["discriminator"] = _with_weights(recipe.discriminator, recipe.perceptual)
    return recipe.model_copy(update=changed)


def recipe_on(plan: Plan, data: str, workspace: Workspace) -> Recipe:
    """The first recipe of a row on a data set that can be read: how its conditions are read. Raises UserError."""
    failures = []
    for training in dict.fromkeys(row.base for row in plan.rows if row.data == data):
        try:
            return recipe_of(plan, training, 0, workspace)
        except UserError as error:
            failures.append(text_of(error))
    raise UserError("; ".join(failures))


def _with_weights(spec: DiscriminatorSpec, perceptual: PerceptualSpec) -> DiscriminatorSpec:
    """An adversary that judges features of the network that the perceptual loss compares: the same file."""
    if spec.features is None or spec.features.weights is not None or spec.features.network != perceptual.network:
        return spec
    return spec.model_copy(update={"features": spec.features.model_copy(update={"weights": perceptual.weights})})


def progress_of(folder: Path, recipe: Recipe) -> RunProgress:
    """How far a run has come. Raises RunError if its folder holds a run of another recipe, or one that began from other
    weights than the recipe's prior has now, where both are known."""
    run = RunFolder(folder)
    newest = run.newest()
    if newest is None:
        return RunProgress(0, recipe.steps)
    state = read_state(newest)
    before, now = read_recipe(newest / RECIPE_FILE), recipe
    changed = _differences(_essence(before, state.processes), _essence(now, 1))
    if changed:
        raise RunError(
            f"{folder} holds a run of another recipe; remove it, or give another {option('out')}. It has "
            + "; ".join(f"{key} = {old!r} where {new!r} is planned" for key, old, new in changed[:5])
        )
    begun = begun_sha256(recipe) if state.begun_sha256 is not None else None
    if begun is not None:
        checked_state(newest, {"begun_sha256": begun}, recipe)
    finished = state.step == recipe.steps and is_of(run.model, newest)
    return RunProgress(state.step, recipe.steps, state.seconds, state.images_seen, finished)


def pairs_of(recipe: Recipe) -> dict[str, Any]:
    """The training pairs that a recipe's data has now, as `RunState` notes them; nothing where they are not known.
    Raises DataError."""
    if recipe.data.root is None:
        return {}
    pairs = PairedFolder(recipe.data, build_condition(recipe), "train")
    return {"pairs": len(pairs), "pairs_sha256": pairs.identity()}


def check_pairs(folder: Path, recipe: Recipe, pairs: Mapping[str, Any]) -> None:
    """Raises RunError if a run was trained on other pairs: wherever data lies, a table is of the data that is given.
    pairs: see `pairs_of`."""
    newest = RunFolder(folder).newest()
    if newest is not None:
        checked_state(newest, pairs, recipe)


def trained(
    plan: Plan,
    training: Training,
    seed: int,
    workspace: Workspace,
    console: Console,
    prepare: Callable[[], None] | None = None,
) -> Path:
    """A finished run's folder; trains what is missing. prepare: makes what the run reads, where it is to be trained.

    Raises what `train` and `prepare` do, RunError, and OutputError where another process trains it.
    """
    recipe, folder = recipe_of(plan, training, seed, workspace), workspace.run(training, seed)
    with alone(folder) if workspace.train else nullcontext(), _without_flags():
        now = progress_of(folder, recipe)
        if now.finished:
            check_pairs(folder, recipe, pairs_of(recipe))
            return folder
        if not workspace.train:
            raise RunError(f"{folder.name} is not trained ({now}), and nothing was to be trained now")
        if prepare is not None:
            prepare()
        console.log(f"{folder.name}: training, {now}")
        train(recipe, folder, resume=True, console=console, last=False)
    return folder


@contextmanager
def _without_flags() -> Iterator[None]:
    """What a run says within the block proposes no flags of its own command: this one goes on by itself, and changes no
    recipe."""
    try:
        yield
    except UserError as error:
        interrupted = isinstance(error, TrainingInterrupted)
        error.remedy = "to go on, give the same command again" if interrupted else spelled(error.remedy, _by_itself)
        if option("set") in error.local_remedy:
            error.local_remedy = ""
        raise


def _by_itself(name: str) -> str:
    return "the same command" if name == "resume" else option(name)


def _essence(recipe: Recipe, processes: int) -> dict[str, Any]:
    """What decides what a run learns, key by key."""
    values = flat(recipe.to_dict())
    kept = {
        key: value
        for key, value in values.items()
        if not any(key == name or key.startswith(f"{name}.") for name in IRRELEVANT)
    }
    return kept | {"batch of all processes": recipe.batch * recipe.accumulation * processes}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = sorted(old.keys() | new.keys())
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


# Evaluation


def evaluated(
    folder: Path, images: Mapping[str, Any], side: int, workspace: Workspace, chosen: DatasetFiles, console: Console
) -> Evaluation:
    """What the judges say of a folder of images; taken from disk where it was taken before.

    images: what these were made of, plain data; side: to which centre squares are brought, in pixels.
    """
    objects, place = chosen.kind == MaskCondition.kind, workspace.result(folder.name)
    whole = {
        "images": images,
        "judges": workspace.judges.made_of,
        "reference": chosen.reference_sha256,
        "side": side,
        "objects": objects,
        "condition": chosen.condition.to_config(),  # classes are matched with a segmenter's by name
    }
    made_of = json.loads(json.dumps(whole))  # as it is read again
    if place.is_file():
        found = Evaluation.read(place)
        judges = workspace.judges
        named = judges.named_features | (judges.named_segmenter if objects else frozenset())
        taken_by = {one.get("sha256") for key in ("networks", "judges") for one in found.facts.get(key, ())}
        if found.facts.get(OURS) == made_of and named <= taken_by:
            return found
    options = workspace.judges.options(side, workspace.device, workspace.out / "features", objects)
    with steps_bar(console, f"judging {folder.name}") as on_step:
        real = chosen.reference if workspace.judges.features else None
        found = evaluate_files(folder, options, real, chosen.conditions, chosen.condition, on_step)
    found = replace(found, facts={**found.facts, OURS: made_of})
    place.parent.mkdir(parents=True, exist_ok=True)
    found.write(place, overwrite=True)
    return found


def _identity(value: Any) -> Any:
    """A judge by its name, or where that is a file or a folder by its contents."""
    if isinstance(value, list):
        return [_identity(item) for item in value]
    return value if value is None or _is_named(value) else contents_sha256(Path(value).expanduser())


def _is_named(value: str | Path) -> bool:
    """Whether a judge is given by a name, and not as a file or folder."""
    return not Path(value).expanduser().exists()
