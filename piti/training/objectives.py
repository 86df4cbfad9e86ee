"""What a run minimises: the loop asks an objective for losses, and does not know whose they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from piti.baselines import BaselineNetwork, ImageNetwork
from piti.checkpoints.folder import SCHEDULERS, Saveable
from piti.conditions import Condition
from piti.data.batches import Batch, LowRes, SampleSet
from piti.diffusion.losses import diffusion_loss, timesteps_for
from piti.diffusion.schedule import NoiseSchedule, scheduler_of
from piti.models.perceptual import PerceptualNetwork
from piti.training.adversarial import Adversary, Critique, ImageLosses
from piti.training.baseline import BaselineObjective
from piti.training.preview import validation_of
from piti.training.recipe import PreviewSpec, Recipe, Stage
from piti.training.sample_noise import noise_for, uniform_for
from piti.training.stages import build_discriminator, losses_of, low_res_of, weighting_of


@runtime_checkable
class Judge(Protocol):
    """How a run is judged on the way, on fixed pairs and noise."""

    def loss(self, predict: Callable[..., Any]) -> float:
        """One number, lower for better."""
        ...

    def picture(self, translator: Any, predict: Callable[..., Any], spec: PreviewSpec) -> Image.Image:
        """Samples beside what they were made from."""
        ...


@runtime_checkable
class Objective(Protocol):
    """The losses of a run, its adversary where it has one, and what else depends on the kind of model."""

    @property
    def adversary(self) -> Adversary | None:
        """Prepared for the stage that was begun last."""
        ...

    @property
    def low_res(self) -> LowRes | None:
        """What makes the small images of an upsampler."""
        ...

    def begin(self, stage: Stage) -> None:
        """Make the networks of a stage's losses ready."""
        ...

    def losses(self, model: Any, batch: Batch, numbers: range, within: int) -> Critique:
        """What the model minimises on a batch whose samples have these numbers, at a stage's step `within`."""
        ...

    def discriminator_loss(self, critique: Critique, numbers: range) -> tuple[Tensor, dict[str, float]]:
        """What the adversary minimises on what `losses` judged."""
        ...

    def set_rates(self, share: float) -> None:
        """Let the adversary's learning rate follow the stage's, of which `share` is left."""
        ...

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """While a network has its averaged weights: what else is needed for it to be used."""
        ...

    def judge(self, samples: SampleSet) -> Judge:
        """What judges the run on a set of pairs."""
        ...

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        """What is saved as the run's model, by the names of `write_model_folder`."""
        ...


@dataclass
class DiffusionObjective:
    """Eq. 3 with the bound on the learned variance, and eq. 4 and 5 where a stage has them."""

    recipe: Recipe
    condition: Condition
    perceptual: PerceptualNetwork | None
    accelerator: Accelerator
    schedule: NoiseSchedule = field(init=False)
    low_res: LowRes | None = field(init=False)
    image_losses: ImageLosses = field(init=False)

    def __post_init__(self) -> None:
        self.schedule, self.low_res = NoiseSchedule(self.recipe.schedule), low_res_of(self.recipe)
        self.weighting = weighting_of(self.recipe)
        self.discriminator = build_discriminator(self.recipe)
        self.image_losses = ImageLosses(len(self.schedule), self.accelerator, None, None)

    @property
    def adversary(self) -> Adversary | None:
        return self.image_losses.adversary

    def begin(self, stage: Stage) -> None:
        steps = len(self.schedule)
        self.image_losses = losses_of(stage, self.perceptual, self.discriminator, steps, self.accelerator)

    def losses(self, model: Any, batch: Batch, numbers: range, within: int) -> Critique:
        """Some conditions are replaced by the null condition. Seed and number of a sample decide all that is random
        about it."""
        recipe, device = self.recipe, self.accelerator.device
        x0 = batch.image.to(device)  # [B, 3, H, W]
        t = timesteps_for(numbers, self.schedule, recipe.seed).to(device)  # [B]
        noise = noise_for(recipe.seed, numbers, x0.shape[1:]).to(device)
        x_t = self.schedule.q_sample(x0, t, noise)
        condition = self.condition.encode(batch.condition.to(device))  # [B, C, H, W]
        uniform = uniform_for(recipe.seed, "dropout", numbers, self.condition.draws)
        condition = self.condition.dropped(condition, uniform, recipe.condition_dropout)
        low_res = None if batch.low_res is None else batch.low_res.to(device)  # [B, 3, h, w]
        with self.accelerator.autocast():
            output, variance = model(x_t, t, condition, low_res)
        losses = diffusion_loss(
            output, variance, x0, x_t, t, noise, self.schedule, self.weighting, recipe.loss.vb_weight
        )
        critique = Critique(losses.total.new_zeros(()))
        if self.image_losses.acting(within):
            x0_hat = self.schedule.to_x0(output.float(), x_t, t)
            critique = self.image_losses.of(x0_hat, x0, low_res, t, within)
        critique.total = losses.total + critique.total
        critique.numbers = {"simple": losses.simple.mean().item(), "vb": losses.vb.mean().item()} | critique.numbers
        return critique

    def discriminator_loss(self, critique: Critique, numbers: range) -> tuple[Tensor, dict[str, float]]:
        share = uniform_for(self.recipe.seed, "penalty", numbers).flatten()
        return self.image_losses.discriminator_loss(critique, share)

    def set_rates(self, share: float) -> None:
        """The discriminator's stays as it is."""

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def judge(self, samples: SampleSet) -> Judge:
        return validation_of(self.recipe, self.condition, samples, self.low_res, self.accelerator.device)

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        return {role: network, SCHEDULERS[role]: scheduler_of(self.recipe.schedule)}


def objective_of(
    recipe: Recipe,
    condition: Condition,
    perceptual: PerceptualNetwork | None,
    network: ImageNetwork,
    accelerator: Accelerator,
    train: SampleSet,
) -> Objective:
    """What a recipe's run minimises. network: what it trains; train: what it trains on."""
    if isinstance(network, BaselineNetwork):
        return BaselineObjective(recipe, condition, network.baseline, perceptual, accelerator, train)
    return DiffusionObjective(recipe, condition, perceptual, accelerator)
