"""What a run minimises: the loop asks an objective for losses, and does not know whose they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from piti.checkpoints.folder import AUTOENCODER, SCHEDULERS
from piti.checkpoints.lora import Adapted
from piti.checkpoints.writing import Saveable
from piti.conditions import Condition
from piti.core.seeding import derive_seed, draws_on, noise_for, uniform_for
from piti.data.batches import LowRes, SampleSet, TrainingBatch
from piti.diffusion.losses import acts_at, diffusion_loss
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import scheduler_of
from piti.diffusion.timesteps import SecondMomentTimesteps, partly_last, timesteps_named
from piti.models import PIXELS, Space
from piti.models.discriminator import Discriminator
from piti.models.perceptual import PerceptualNetwork
from piti.training.adversarial import Adversary, ImageLosses, LossOutput, Predicted, picked
from piti.training.build import losses_of, low_res_of, weighting_of
from piti.training.distributed import quick_attention
from piti.training.latent_cache import CachedSpace
from piti.training.losses import DiffusionLossSpec
from piti.training.metrics import Mean
from piti.training.outputs import PreviewSpec
from piti.training.preview import validation_of
from piti.training.recipe import Recipe
from piti.training.stages import Stage


@runtime_checkable
class Validator(Protocol):
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

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """What the model minimises on a batch whose samples have these numbers, at a stage's step `within`."""
        ...

    def discriminator_loss(self, adversarial: Any, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        """What the adversary minimises. adversarial: `LossOutput.adversarial` of what `losses` returned."""
        ...

    def set_rates(self, share: float) -> None:
        """Let the adversary's learning rate follow the stage's, of which `share` is left."""
        ...

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """While a network has its averaged weights: what else is needed for it to be used."""
        ...

    def validator(self, samples: SampleSet) -> Validator:
        """What judges the run on a set of pairs."""
        ...

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        """What is saved as the run's model, by the names of `write_model_folder`."""
        ...


class Terms(NamedTuple):
    """What eq. 3 is computed from, in the order of `diffusion_loss`."""

    output: Tensor
    variance: Tensor | None
    x0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor

    def rows(self, rows: Tensor) -> Terms:
        """Those samples alone. rows: [B] booleans."""
        output, x0, x_t, t, noise = (picked(x, rows) for x in (self.output, self.x0, self.x_t, self.t, self.noise))
        return Terms(output, None if self.variance is None else picked(self.variance, rows), x0, x_t, t, noise)


@dataclass
class DiffusionObjective:
    """Eq. 3 with the bound on the learned variance, and eq. 4 and 5 where a stage has them."""

    recipe: Recipe
    condition: Condition
    perceptual: PerceptualNetwork | None
    accelerator: Accelerator
    discriminator: Discriminator | None
    space: Space = PIXELS
    schedule: NoiseSchedule = field(init=False)
    low_res: LowRes | None = field(init=False)
    image_losses: ImageLosses = field(init=False)

    def __post_init__(self) -> None:
        self.schedule, self.low_res = NoiseSchedule(self.recipe.schedule), low_res_of(self.recipe)
        self.weighting = weighting_of(self.recipe)
        self.timesteps = timesteps_named(self.recipe.loss.timesteps)(len(self.schedule))
        if isinstance(self.timesteps, SecondMomentTimesteps):
            self.accelerator.register_for_checkpointing(self.timesteps)
        if self.space.autoencoder is not None:
            self.space.autoencoder.to(self.accelerator.device)
        self.cached = CachedSpace(self.space, self.recipe.latent_cache, int(self.recipe.latent_cache_gib * 2**30))
        first = self.recipe.stages[0]
        self.image_losses = ImageLosses(first, len(self.schedule), self.accelerator, self.recipe.seed)

    @property
    def stage(self) -> Stage:
        """The one that was begun last."""
        return self.image_losses.stage

    @property
    def adversary(self) -> Adversary | None:
        return self.image_losses.adversary

    def begin(self, stage: Stage) -> None:
        self.image_losses = losses_of(
            self.recipe, stage, self.perceptual, self.discriminator, len(self.schedule), self.accelerator
        )

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """Some conditions are replaced by the null condition. Seed and number of a sample decide all that is random
        about it."""
        recipe, device = self.recipe, self.accelerator.device
        paired = torch.ones(len(numbers), dtype=torch.bool) if batch.paired is None else batch.paired
        t, counts = self._timesteps(numbers, paired)  # [B] on the CPU: no step waits for the device
        counts = None if counts is None else counts.to(device, non_blocking=True)
        batch = batch.to(device)
        x0 = self._points(batch.image, numbers)  # [B, C, H, W]
        noise = noise_for(recipe.seed, numbers, x0.shape[1:], draws_on(device)).to(device)
        x_t = self.schedule.q_sample(x0, t, noise)
        encoded = self.condition.encode(batch.condition)  # [B, C, H, W]
        uniform = uniform_for(recipe.seed, "dropout", numbers, self.condition.draws)
        own = self.stage.condition_dropout
        condition = self.condition.dropped(encoded, uniform, recipe.condition_dropout if own is None else own)
        told = {"known": recipe.known.of(batch.image, recipe.seed, numbers)} if recipe.model.inpaint else {}
        with self.accelerator.autocast(), quick_attention(self.accelerator, recipe.model.places):
            output, variance = model(x_t, t.to(device, non_blocking=True), condition, batch.low_res, **told)
        found = LossOutput(x0.new_zeros(()))
        if self.image_losses.acting(within):
            x0_hat = self.schedule.to_x0(output.float(), x_t, t)
            predicted = Predicted(x0_hat, x0, t, numbers, batch.low_res, encoded, paired)
            found = self.image_losses.of(predicted, within)
        total, metrics = self._equation_3(Terms(output, variance, x0, x_t, t, noise), paired, counts)
        found.total, found.metrics = total + found.total, metrics | found.metrics
        return found

    def _equation_3(self, terms: Terms, paired: Tensor, counts: Tensor | None) -> tuple[Tensor, dict[str, Mean]]:
        """Eq. 3 as the stage weighs it, a scalar, and what it measured. paired, counts: see `_timesteps`."""
        rows = self._diffusion_rows(terms.t, paired)
        if rows is not None and not rows.any():
            # a backward pass and the same names all the same: other processes have rows
            nothing = 0 * terms.output.float().sum()
            if terms.variance is not None:
                nothing = nothing + 0 * terms.variance.float().sum()
            return nothing, {"simple": Mean.of(nothing, 0), "vb": Mean.of(nothing, 0)}
        terms = terms if rows is None else terms.rows(rows)
        losses = diffusion_loss(*terms, self.schedule, self.weighting, self.recipe.loss.vb_weight)
        share = 1.0 if rows is None else self.stage.diffusion.weight * rows.float().mean().item()
        total = losses.total if counts is None else self._reweighed(losses.each, terms.t, counts)
        simple, vb = (x if counts is None else counts * x for x in (losses.simple, losses.vb))
        metrics = {"simple": Mean.of(simple.sum(), len(simple)), "vb": Mean.of(vb.mean())}
        return total if share == 1 else share * total, metrics

    def _points(self, images: Tensor, numbers: range) -> Tensor:
        """Images [B, 3, H, W] as points of the space; latents are drawn by the samples' numbers."""
        moments = self.cached.moments(images)
        if not self.space.spec.latent:
            return moments
        shape = self.space.shape(*images.shape[-2:])
        seed, where = derive_seed(self.recipe.seed, "latents"), draws_on(images.device)
        return self.space.drawn(moments, noise_for(seed, numbers, shape, where))

    def _timesteps(self, numbers: range, paired: Tensor) -> tuple[Tensor, Tensor | None]:
        """One for each sample, [B], and what each one's loss counts; none: all alike. Where there is no photograph
        there is no x_t but noise: the last."""
        t, counts = self.timesteps.drawn(numbers, self.recipe.seed)
        last = len(self.schedule) - 1
        if self.stage.from_noise:
            t = partly_last(numbers, len(self.schedule), self.stage.from_noise, self.recipe.seed)
        return torch.where(paired, t, last), counts

    def _reweighed(self, losses: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        """The mean of losses [B] at timesteps that were drawn where losses are large; all processes remember all."""
        assert isinstance(self.timesteps, SecondMomentTimesteps)
        seen = self.accelerator.gather(torch.stack([t.to(losses), losses.detach()], dim=1))
        self.timesteps.remember(*torch.as_tensor(seen).unbind(dim=1))
        return (counts * losses).mean()

    def _diffusion_rows(self, t: Tensor, paired: Tensor) -> Tensor | None:
        """The rows on which eq. 3 acts, [B] booleans; None: on all, unweighted."""
        spec = self.stage.diffusion
        if paired.all() and spec == DiffusionLossSpec():
            return None
        return acts_at(t, len(self.schedule), spec.noise) & paired & bool(spec.weight)

    def discriminator_loss(self, adversarial: Any, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        return self.image_losses.discriminator_loss(adversarial, numbers)

    def set_rates(self, share: float) -> None:
        """The discriminator's stays as it is."""

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def validator(self, samples: SampleSet) -> Validator:
        return validation_of(self.recipe, self.condition, samples, self.low_res, self.accelerator.device, self.space)

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        parts: dict[str, Saveable] = {role: network, SCHEDULERS[role]: scheduler_of(self.recipe.schedule)}
        if self.space.autoencoder is not None and not isinstance(network, Adapted):  # adapters have their prior's
            parts[AUTOENCODER] = self.space.autoencoder
        return parts
