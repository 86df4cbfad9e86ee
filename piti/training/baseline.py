"""Training a baseline: its generator and discriminator, with the losses of its paper."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from piti.baselines import Baseline, BaselineNetwork, noise_of
from piti.checkpoints.writing import Saveable
from piti.conditions import Condition
from piti.core.images import to_pil
from piti.core.seeding import derive_seed, draws_on, generator_for, noise_for, uniform_for
from piti.data.batches import BatchStream, LowRes, SampleSet, TrainingBatch
from piti.models.perceptual import PerceptualNetwork
from piti.training.adversarial import Adversary, LossOutput, build_adversary, frozen
from piti.training.metrics import Mean
from piti.training.outputs import PreviewSpec
from piti.training.preview import fixed_batches, shown
from piti.training.recipe import Recipe
from piti.training.stages import Stage

SETTLING = 512
"""Number of training images for recomputing batch norm statistics with averaged weights."""


@dataclass(frozen=True)
class GeneratedBatch:
    """Training data of a discriminator: a batch's generated and real images, and their conditions."""

    seen: Tensor
    fake: Tensor
    """[B, 3, H, W], without a gradient."""
    real: Tensor


class BaselineObjective:
    """A baseline's losses; see `piti.training.objectives.Objective`."""

    low_res: LowRes | None = None

    def __init__(
        self,
        recipe: Recipe,
        condition: Condition,
        baseline: Baseline,
        perceptual: PerceptualNetwork | None,
        accelerator: Accelerator,
        train: SampleSet,
    ) -> None:
        """train: the data for batch norm statistics."""
        self.recipe, self.condition, self.baseline, self.accelerator = recipe, condition, baseline, accelerator
        self.perceptual = None if perceptual is None else perceptual.to(accelerator.device)
        self.train = train
        torch.manual_seed(derive_seed(recipe.seed, "discriminator"))
        self.discriminator = baseline.discriminator()
        self.opponent: Adversary | None = None

    @property
    def adversary(self) -> Adversary | None:
        return self.opponent

    def begin(self, stage: Stage) -> None:
        rate, betas = self.baseline.discriminator_lr, self.recipe.optimizer.betas
        self.opponent = build_adversary(self.discriminator, rate, betas, self.accelerator)

    def losses(self, model: Any, batch: TrainingBatch, numbers: range, within: int) -> LossOutput:
        """The generator's losses. A sample's noise follows from the seed and its number."""
        assert self.opponent is not None
        device = self.accelerator.device
        batch = batch.to(device)
        real, condition = batch.image, self.condition.encode(batch.condition)  # [B, C, H, W]
        noise = None
        if self.baseline.noise_shape:
            shape = self.baseline.noise_shape
            noise = noise_for(self.recipe.seed, numbers, shape, draws_on(device)).to(device)
        seen = self.baseline.seen(condition)
        with self.accelerator.autocast():
            fake = model(condition, noise).float()  # [B, 3, H, W]
            with frozen(self.opponent.bare):
                losses = self.baseline.generator_losses(self.opponent.bare, seen, fake, real, self.perceptual)
        total, metrics = _total(losses)
        return LossOutput(total, metrics, GeneratedBatch(seen, fake.detach(), real))

    def discriminator_loss(self, adversarial: GeneratedBatch, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        assert self.opponent is not None
        made = adversarial
        uniform = uniform_for(self.recipe.seed, "discriminator", numbers, self.baseline.draws).to(made.real.device)
        with self.accelerator.autocast():
            losses = self.baseline.discriminator_losses(self.opponent.network, made.seen, made.fake, made.real, uniform)
        total, metrics = _total(losses)
        return total, {"discriminator": Mean.of(total)} | metrics

    def set_rates(self, share: float) -> None:
        assert self.opponent is not None
        for group in self.opponent.optimizer.param_groups:
            group["lr"] = self.baseline.discriminator_lr * share

    @contextlib.contextmanager
    def settled(self, network: nn.Module) -> Iterator[None]:
        """Within the block, batch norm statistics are recomputed for the averaged weights, as in OASIS's release, and
        their spectral norms' singular vectors are updated. Afterwards those of training are restored.
        """
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not norms or not self.recipe.ema:
            yield
            return
        kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
        learning = [*norms, *(module for module in network.modules() if hasattr(module, "_power_method"))]
        for module in learning:
            module.train()
        seed, max_bad = derive_seed(self.recipe.seed, "statistics"), self.recipe.data.max_bad
        stream = BatchStream(self.train, self.recipe.batch, seed, max_bad=max_bad)
        with torch.no_grad(), self.accelerator.autocast():
            for k in range(math.ceil(SETTLING / self.recipe.batch)):
                self._run(network, stream[k], k * self.recipe.batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module in learning:
            module.eval()
        try:
            yield
        finally:
            for name, buffer in network.named_buffers():
                buffer.copy_(kept[name])

    def _run(self, network: nn.Module, batch: TrainingBatch, first: int) -> Tensor:
        device = self.accelerator.device
        generators = [generator_for(self.recipe.seed, "statistics", first + k) for k in range(len(batch.image))]
        condition = self.condition.encode(batch.condition.to(device))
        return network(condition, noise_of(self.baseline, generators, device))

    def validator(self, samples: SampleSet) -> BaselineValidation:
        batches = fixed_batches(self.recipe, samples, self.low_res, self.accelerator.device)
        return BaselineValidation(self.condition, batches, self.baseline, self.recipe.seed)

    def parts(self, network: Saveable, role: str) -> dict[str, Saveable]:
        return {role: network}


def _total(losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Mean]]:
    """The sum of the losses' means over the batch, and each mean by name."""
    means = {name: loss.float().mean() for name, loss in losses.items()}
    return torch.stack(list(means.values())).sum(), {name: Mean.of(mean) for name, mean in means.items()}


@dataclass
class BaselineValidation:
    """Validation on fixed centre-cropped pairs with fixed noise."""

    condition: Condition
    batches: list[TrainingBatch]
    baseline: Baseline
    seed: int

    @torch.no_grad()
    def loss(self, predict: Callable[..., Any]) -> float:
        """Mean absolute difference between images and photographs, in [0, 2], mostly of colours."""
        total = count = 0.0
        for batch in self.batches:
            made = self._images(predict, batch, int(count))
            total += (made.float() - batch.image).abs().mean(dim=(1, 2, 3)).sum().item()
            count += len(made)
        return total / count

    @torch.no_grad()
    def picture(self, translator: BaselineNetwork, predict: Callable[..., Any], spec: PreviewSpec) -> Image.Image:
        """Condition, image and photograph of the first `spec.count` pairs, in three rows."""
        first = self.batches[0]
        given = [self.condition.preview(one.cpu()) for one in first.condition[: spec.count]]
        made = self._images(predict, first, 0)[: spec.count].float()
        return shown([given, to_pil(made), to_pil(first.image[: spec.count])])

    def _images(self, predict: Callable[..., Any], batch: TrainingBatch, number: int) -> Tensor:
        generators = [generator_for(self.seed, "preview", number + k) for k in range(len(batch.image))]
        noise = noise_of(self.baseline, generators, batch.image.device)
        return predict(self.condition.encode(batch.condition), noise).clamp(-1, 1)
