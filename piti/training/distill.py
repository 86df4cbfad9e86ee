"""Distillation: a model of many guided steps becomes one of few, or of as many, with the guidance in its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piti.checkpoints.folder import ModelFolder, find_model
from piti.conditions import Condition, SeveralCondition
from piti.core.seeding import draws_on, noise_for
from piti.data.batches import SampleSet, TrainingBatch
from piti.diffusion.distillation import Guess, StudentGrid
from piti.diffusion.guidance import Guidance, conditioned, guided_noise
from piti.diffusion.schedulers import spec_of
from piti.diffusion.timesteps import evenly, timesteps_for
from piti.models import Prediction, Tokens, Translator
from piti.training.adversarial import LossOutput, Predicted
from piti.training.build import build_translator
from piti.training.init import begin
from piti.training.losses import DistillationSpec
from piti.training.metrics import Mean
from piti.training.objectives import DiffusionObjective
from piti.training.preview import Validation, fixed_batches
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import changed_recipe
from piti.training.stages import LORA

_TRAINING: dict[str, Any] = {
    "stages": [{"name": "distill", "steps": 4000, "lr": 2e-4, "warmup": 100, "decay": 0.3}],
    "batch": 32,
    "condition_dropout": 0.0,
    "ema": 0.998,
    "discriminator": {"conditional": False},
    "optimizer": {"betas": [0.9, 0.99], "weight_decay": 0.0, "clip": 1.0},
    "checkpoint": {"every": 500, "keep": 2},
}
"""How a student trains where nothing else is set: from weights that fit already, so at a low rate."""
JUDGED = 16
"""Largest number of a student's steps at which it is validated."""
_ADAPTERS_LR = 1e-3
"""Learning rate of adapters, which initially add nothing."""


def distillation_recipe(
    model: str,
    wanted: Mapping[str, Any],
    data: Path | None = None,
    changes: Sequence[str] = (),
    rank: int | None = None,
) -> Recipe:
    """The recipe that distils the base of a model, with the model's networks, condition and noise schedule.

    model: a bundled model, a folder, or a training run; wanted: values of `DistillationSpec`, whose `guidance` may be a
    strength, or None for the model's own; changes: overrides KEY=VALUE; rank: train adapters of this rank on the
    encoder and all blocks of the UNet, with biases and normalisations, similar to LCM-LoRA (Luo et al. 2023, arXiv
    2311.05556). Raises ModelError if there is no such model, RecipeError if it cannot be distilled, SpecError for
    invalid values.
    """
    folder = ModelFolder.open(find_model(model))
    if "base" not in folder or "scheduler" not in folder:
        raise RecipeError(f"{model} has no base that denoises in steps; give another model")
    config = folder.config("base")
    student = folder.student("base")
    if student is not None:
        raise RecipeError(f"{model} is already distilled; give {student.origin}")
    if config.get("unet_config") or config.get("inpaint"):
        raise RecipeError(f"{model}: a UNet of another family cannot be distilled yet; give a model of this package")
    usual = Guidance.parse(_as_guidance(folder.index.get("defaults", {}).get("guidance")), "the model's guidance")
    own = usual if wanted.get("guidance") is None else usual.of_strength(wanted["guidance"])
    spec = DistillationSpec.parse({**wanted, "guidance": own.to_dict()}, "distillation")
    keys = {"encoder": "encoder_spec", "text": "text_spec", "unet": "unet_spec"}
    networks = {ours: config[theirs] for ours, theirs in keys.items()}
    plain = {key: config[key] for key in ("image_size", "patch_size", "learned_variance")}
    values = copy.deepcopy(_TRAINING) | {
        "name": "-".join([Path(model).name, _student_kind(spec), *([] if rank is None else [f"rank-{rank}"])]),
        "init": model,
        "condition": folder.condition.to_config(),
        "model": plain | networks,
        "schedule": spec_of(folder.scheduler("base")).to_dict(),
        "data": _data_of(folder.condition, config, data),
        "distillation": spec.to_dict(),
        "preview": {"every": 500, "sampler": "ddim", "steps": spec.steps or 20, "guidance": {"w": 0.0}},
    }
    if rank is not None:
        values["stages"][0] |= {"trains": [LORA], "lr": _ADAPTERS_LR}
        values["lora"] = {"rank": rank, "convolutions": True, "encoder": True, "offsets": True}
    return changed_recipe(values, changes, f"distilling {model}")


def _data_of(condition: Condition, config: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """The `data` key of a student: its teacher's sizes, and conditions in the default folder of their kind or parts."""
    encoder = config["encoder_spec"]
    side = None if encoder is None or encoder["size"] == config["image_size"] else encoder["size"]
    values: dict[str, Any] = {"size": config["image_size"], "condition_size": side}
    folders = {name: part.usual_folder for name, part in condition.named_parts().items()}
    if None not in folders.values():
        values["conditions"] = folders if isinstance(condition, SeveralCondition) else condition.usual_folder
    return values if root is None else values | {"root": str(root)}


def _student_kind(spec: DistillationSpec) -> str:
    return "guided" if spec.steps is None else f"{spec.steps}-steps"


def _as_guidance(default: Any) -> dict[str, Any]:
    """A model's default guidance, which may be a strength or None, as a mapping."""
    if isinstance(default, dict):
        return default
    return {"w": 1.0 if default is None else default}


def usual_sampling(recipe: Recipe) -> dict[str, Any]:
    """Default sampling settings of the run's model. A student with only distilled guidance uses the sampler and steps
    of its teacher's folder, if given. Raises ModelError."""
    spec = recipe.distillation
    if spec is None or spec.steps is not None or recipe.init is None:
        return {}
    defaults = ModelFolder.open(find_model(recipe.init)).defaults
    return {key: defaults[key] for key in ("sampler", "steps") if key in defaults}


def teacher_of(recipe: Recipe, condition: Condition) -> Translator:
    """The frozen model given by `init`. Raises ModelError, RecipeError."""
    plain = recipe.model_copy(update={"distillation": None})
    teacher = build_translator(plain, condition)
    begin(teacher, plain, condition)
    return teacher.eval().requires_grad_(False)


@dataclass
class DistillationObjective(DiffusionObjective):
    """The student's target at its timesteps is the x̂₀ from which one step ends where the teacher's guided steps end;
    optionally with an adversarial loss on x̂₀ (eq. 5), as in ADD (Sauer et al. 2023, arXiv 2311.17042)."""

    teacher: Translator | None = None
    grid: StudentGrid = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        spec = self.recipe.distillation
        assert spec is not None
        assert self.teacher is not None
        self.grid = StudentGrid.of(self.schedule, spec.steps, spec.substeps)
        self.teacher.to(self.accelerator.device)

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """Weighted by the truncated SNR, without condition dropout. A sample's step and noise follow from the seed and
        its number."""
        device = self.accelerator.device
        batch = batch.to(device)
        x0, steps = batch.image, len(self.grid.walks)  # [B, 3, H, W]
        k = timesteps_for(numbers, len(self.schedule), self.recipe.seed) * steps // len(self.schedule)  # [B]
        noise = noise_for(self.recipe.seed, numbers, x0.shape[1:], draws_on(device)).to(device)
        x_t = self.noised(x0, k, noise)
        condition = self.condition.encode(batch.condition)
        t = self.times(k)
        with torch.no_grad(), self.accelerator.autocast():
            target, told = self.taught(condition, x_t, k)
        with self.accelerator.autocast():
            output, variance = model(x_t, t.to(device, non_blocking=True), condition, None)
        x0_hat = self.schedule.to_x0(output.float(), x_t, t)
        error = (x0_hat - target).square().mean(dim=(1, 2, 3))
        found = LossOutput((self.grid.weight(k.to(device)) * error).mean(), {"distillation": Mean.of(error.mean())})
        if variance is not None and told is not None:
            found.total = found.total + (variance.float() - told).square().mean()
        if self.image_losses.acting(within):
            everything = torch.ones(len(x0), dtype=torch.bool)
            judged = self.image_losses.of(Predicted(x0_hat, x0, t, numbers, None, condition, everything), within)
            judged.total, judged.metrics = judged.total + found.total, found.metrics | judged.metrics
            return judged
        return found

    def noised(self, x0: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        """x_t of images [B, 3, H, W] at the student's steps `k`."""
        return self.schedule.q_sample(x0, self.times(k), noise)

    def times(self, k: Tensor) -> Tensor:
        """The student's timesteps [B] at its steps `k`, on the CPU like these."""
        return self.grid.walks[k, 0]

    def taught(self, condition: Tensor, x_t: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """The student's targets at its steps `k`: x̂₀, and the raw variance if its steps are as small as its
        teacher's."""
        assert self.recipe.distillation is not None
        if self.recipe.distillation.steps is None:
            return self.guided(self.seen(condition))(x_t, self.times(k))
        return self.grid.target(self.guess(self.seen(condition)), x_t, k), None

    def seen(self, condition: Tensor) -> tuple[Tokens, Tokens | None]:
        """The teacher's tokens of encoded conditions [B, C, H, W], and with guidance also followed by those of the null
        condition."""
        assert self.recipe.distillation is not None
        assert self.teacher is not None
        tokens = self.teacher.encode(condition)
        if self.recipe.distillation.guidance.w == 0:
            return tokens, None
        null = self.condition.null(1, *condition.shape[-2:], device=condition.device, dtype=condition.dtype)
        return tokens, tokens.joined(self.teacher.encode(null).picked([0] * len(condition)))

    def guess(self, seen: tuple[Tokens, Tokens | None]) -> Guess:
        """The guided teacher's bounded x̂₀; one instance per trajectory, since a rule may be stateful ("apg")."""
        guided = self.guided(seen)
        return lambda x_t, t: guided(x_t, t)[0]

    def guided(self, seen: tuple[Tokens, Tokens | None]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        """The same, with the teacher's raw variance for the condition."""
        spec, teacher, schedule = self.recipe.distillation, self.teacher, self.schedule
        assert spec is not None
        assert teacher is not None
        (tokens, both), with_null = seen, spec.guidance.w != 0
        pair, rule = conditioned(teacher, tokens, both, schedule), guided_noise(spec.guidance, schedule)

        def guided(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            given, without = pair(x_t, t, with_null)
            eps = given.eps if without is None else rule(given.eps, without.eps, x_t, t)
            return schedule.bounded(schedule.predict_x0(x_t, t, eps)).to(x_t.dtype), given.variance

        return guided

    def validator(self, samples: SampleSet) -> Validation:
        batches = fixed_batches(self.recipe, samples, None, self.accelerator.device)
        judged = evenly(len(self.grid.timesteps), JUDGED)
        return StudentValidation(self.condition, batches, self.schedule, self.recipe.seed, judged, objective=self)


@dataclass
class StudentValidation(Validation):
    """Distance to the teacher's targets on fixed pairs and noise. levels: the student's steps, ascending."""

    objective: DistillationObjective | None = None

    @torch.no_grad()
    def loss(self, predict: Callable[..., Prediction]) -> float:
        """Mean squared difference of x̂₀ and its target, over all pairs and the steps of `levels`, unweighted."""
        objective, total, count = self.objective, 0.0, 0
        assert objective is not None
        for batch in self.batches:
            numbers = range(count, count + len(batch.image))
            count += len(numbers)
            condition = self.condition.encode(batch.condition)
            seen = objective.seen(condition)
            noise = noise_for(self.seed, numbers, batch.image.shape[1:]).to(batch.image.device)
            for step in self.levels:
                k = torch.full((len(noise),), step)
                x_t, t = objective.noised(batch.image, k, noise), objective.times(k)
                target = objective.grid.target(objective.guess(seen), x_t, k)
                x0 = self.schedule.to_x0(predict(x_t, t.to(noise.device), condition, None).output.float(), x_t, t)
                total += (x0 - target).square().mean(dim=(1, 2, 3)).sum().item()
        return total / (count * len(self.levels))
