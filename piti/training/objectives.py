"""Objectives of training: the loop gets its losses from them, whatever the kind of model."""

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
    """Validation of a run on fixed pairs and noise."""

    def loss(self, predict: Callable[..., Any]) -> float:
        """The validation loss, lower is better."""
        ...

    def picture(self, translator: Any, predict: Callable[..., Any], spec: PreviewSpec) -> Image.Image:
        """Samples with their conditions and photographs."""
        ...


@runtime_checkable
class Objective(Protocol):
    """The losses of a run, its adversary, if any, and everything else that depends on the kind of model."""

    @property
    def adversary(self) -> Adversary | None:
        """The adversary, prepared for the current stage."""
        ...

    @property
    def low_res(self) -> LowRes | None:
        """The transform that creates an upsampler's small images."""
        ...

    def begin(self, stage: Stage) -> None:
        """Prepare the networks of a stage's losses."""
        ...

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """The losses of a batch whose samples have these numbers, at a stage's step `within`."""
        ...

    def discriminator_loss(self, adversarial: Any, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        """The adversary's loss. adversarial: `LossOutput.adversarial` from `losses`."""
        ...

    def set_rates(self, share: float) -> None:
        """Scale the adversary's learning rate like the stage's, by `share`."""
        ...

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Context in which a network with averaged weights is ready for use."""
        ...

    def validator(self, samples: SampleSet) -> Validator:
        """The validation on a set of pairs."""
        ...

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        """The components of the run's model, by the names of `write_model_folder`."""
        ...


class Terms(NamedTuple):
    """Inputs of eq. 3, in the order of `diffusion_loss`."""

    output: Tensor
    variance: Tensor | None
    x0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor

    def rows(self, rows: Tensor) -> Terms:
        """Select samples. rows: [B] booleans."""
        output, x0, x_t, t, noise = (picked(x, rows) for x in (self.output, self.x0, self.x_t, self.t, self.noise))
        return Terms(output, None if self.variance is None else picked(self.variance, rows), x0, x_t, t, noise)


@dataclass
class DiffusionObjective:
    """Eq. 3 with the variational bound of the learned variance, and eq. 4 and 5 if a stage has them."""

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
        """The current stage."""
        return self.image_losses.stage

    @property
    def adversary(self) -> Adversary | None:
        return self.image_losses.adversary

    def begin(self, stage: Stage) -> None:
        self.image_losses = losses_of(
            self.recipe, stage, self.perceptual, self.discriminator, len(self.schedule), self.accelerator
        )

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """With condition dropout. All randomness of a sample follows from the seed and its number."""
        recipe, device = self.recipe, self.accelerator.device
        paired = torch.ones(len(numbers), dtype=torch.bool) if batch.paired is None else batch.paired
        t, counts = self._timesteps(numbers, paired)  # [B] on the CPU, so that no step synchronises with the device
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
        """The stage's weighted eq. 3, a scalar, and its metrics. paired, counts: see `_timesteps`."""
        rows = self._diffusion_rows(terms.t, paired)
        if rows is not None and not rows.any():
            # still a backward pass and the same names, since other processes have rows
            nothing = 0 * terms.output.float().sum()
            if terms.variance is not None:
                nothing = nothing + 0 * terms.variance.float().sum()
            return nothing, {"simple": Mean.of(nothing, 0), "vb": Mean.of(nothing, 0)}
        terms = terms if rows is None else terms.rows(rows)
        losses = diffusion_loss(*terms, self.schedule, self.weighting, self.recipe.loss.vb_weight)
        share = 1.0 if rows is None else self.stage.diffusion.weight * rows.float().mean().item()
        total = losses.total if counts is None else self._reweighed(losses.each, terms.t, counts)
        simple, vb = (x if counts is None else counts * x for x in (losses.simple, losses.vb))
        metrics = {"simple": Mean.of(simple.sum(), len(simple)), "vb": Mean.of(len(vb) * vb.mean(), len(vb))}
        return total if share == 1 else share * total, metrics

    def _points(self, images: Tensor, numbers: range) -> Tensor:
        """Images [B, 3, H, W] as points of the space; latents are sampled by the samples' numbers."""
        moments = self.cached.moments(images)
        if not self.space.spec.latent:
            return moments
        shape = self.space.shape(*images.shape[-2:])
        seed, where = derive_seed(self.recipe.seed, "latents"), draws_on(images.device)
        return self.space.drawn(moments, noise_for(seed, numbers, shape, where))

    def _timesteps(self, numbers: range, paired: Tensor) -> tuple[Tensor, Tensor | None]:
        """A timestep per sample, [B], and the weight of each loss; None: equal weights. Samples without a photograph
        get the last timestep, where x_t is noise."""
        t, counts = self.timesteps.drawn(numbers, self.recipe.seed)
        last = len(self.schedule) - 1
        if self.stage.from_noise:
            t = partly_last(numbers, len(self.schedule), self.stage.from_noise, self.recipe.seed)
        return torch.where(paired, t, last), counts

    def _reweighed(self, losses: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        """The mean of losses [B] with importance sampling of timesteps; all processes record all losses."""
        assert isinstance(self.timesteps, SecondMomentTimesteps)
        seen = self.accelerator.gather(torch.stack([t.to(losses), losses.detach()], dim=1))
        self.timesteps.remember(*torch.as_tensor(seen).unbind(dim=1))
        return (counts * losses).mean()

    def _diffusion_rows(self, t: Tensor, paired: Tensor) -> Tensor | None:
        """The rows on which eq. 3 acts, [B] booleans; None: all, unweighted."""
        spec = self.stage.diffusion
        if paired.all() and spec == DiffusionLossSpec():
            return None
        return acts_at(t, len(self.schedule), spec.noise) & paired & bool(spec.weight)

    def discriminator_loss(self, adversarial: Any, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        return self.image_losses.discriminator_loss(adversarial, numbers)

    def set_rates(self, share: float) -> None:
        """Does nothing: the discriminator's rate is constant."""

    def settled(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def validator(self, samples: SampleSet) -> Validator:
        return validation_of(self.recipe, self.condition, samples, self.low_res, self.accelerator.device, self.space)

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        parts: dict[str, Saveable] = {role: network, SCHEDULERS[role]: scheduler_of(self.recipe.schedule)}
        if self.space.autoencoder is not None and not isinstance(network, Adapted):  # adapters use their prior's
            parts[AUTOENCODER] = self.space.autoencoder
        return parts
