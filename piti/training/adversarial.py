"""Losses on the predicted image: perceptual and adversarial (PITI, section 3.3, eq. 4 and 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from piti.core.seeding import uniform_for
from piti.data.degrade import resize_antialiased
from piti.diffusion.augmentation import DRAWS, augmented
from piti.diffusion.losses import (
    AdversarialLoss,
    acts_at,
    adversarial_named,
    gradient_penalty,
    perceptual_loss,
    real_gradient_penalty,
)
from piti.models.discriminator import Discriminator, all_logits, enlarged_to
from piti.models.perceptual import PerceptualNetwork
from piti.training.losses import (
    AdversarialLossSpec,
    ConsistencyLossSpec,
    ImageLossSpec,
    PerceptualLossSpec,
)
from piti.training.metrics import Mean
from piti.training.stages import FUSED, Stage


@dataclass(frozen=True)
class Seen:
    """What a discriminator sees of some samples."""

    images: Tensor
    """[K, 3, H, W]."""
    low_res: Tensor | None
    """[K, 3, h, w]; none where it is not conditional."""
    condition: Tensor | None
    """[K, C, H, W], encoded; none where it does not see it."""

    @property
    def others(self) -> tuple[Tensor | None, Tensor | None]:
        """What it sees beside the images, as it takes them."""
        return self.low_res, self.condition

    def rows(self, rows: Tensor) -> Seen:
        """Those samples alone. rows: [K] booleans."""
        low_res, condition = (None if x is None else picked(x, rows) for x in self.others)
        return Seen(picked(self.images, rows), low_res, condition)

    def with_images(self, images: Tensor) -> Seen:
        """Other images with the same small images and conditions."""
        return Seen(images, self.low_res, self.condition)

    def joined(self, other: Seen) -> Seen:
        """The samples of both, these first."""
        low_res = None if self.low_res is None or other.low_res is None else torch.cat([self.low_res, other.low_res])
        both = None
        if self.condition is not None and other.condition is not None:
            both = torch.cat([self.condition, other.condition])
        return Seen(torch.cat([self.images, other.images]), low_res, both)

    def augmented(self, kinds: tuple[str, ...], uniform: Tensor) -> Seen:
        """All of it changed alike; see `piti.diffusion.augmentation`."""
        over = [] if self.low_res is None else [enlarged_to(self.low_res, self.images)]
        over += [] if self.condition is None else [self.condition]
        images, changed = augmented(self.images, over, kinds, uniform)
        low_res = None if self.low_res is None else changed[0]
        return Seen(images, low_res, None if self.condition is None else changed[-1])


@dataclass(frozen=True)
class Judged:
    """What a discriminator is to learn from: the rows of a batch whose timestep it judges, perhaps none."""

    fake: Seen
    """x̂₀, without a gradient, of all these rows."""
    real: Seen
    """x₀, of those of them that have one."""
    fake_rows: Tensor
    """Which rows of the batch are judged, [B] booleans on the CPU."""
    real_rows: Tensor
    """Which of the batch's photographs."""


@dataclass
class LossOutput:
    """What one batch's images are worth."""

    total: Tensor
    """The sum to differentiate for the network that makes them."""
    metrics: dict[str, Mean] = field(default_factory=dict)
    adversarial: Any = None
    """What the discriminator is to learn from, for the objective that made this; None: it does not learn now."""

    def add(self, name: str, weight: float, loss: Tensor) -> None:
        """One more loss, a scalar, and its value before the weight among the metrics."""
        self.total = self.total + weight * loss
        self.metrics[name] = Mean.of(loss)


@dataclass
class Adversary:
    """The discriminator and its optimiser, both prepared by the accelerator."""

    network: Any
    optimizer: Any

    @property
    def bare(self) -> nn.Module:
        """The network without what several processes wrap around it."""
        return getattr(self.network, "module", self.network)

    def exact(self, images: Tensor, *seen: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """The logits without the autocast that the accelerator put around the network."""
        return getattr(self.bare, "_original_forward", self.bare.forward)(images, *seen)


def build_adversary(network: nn.Module, lr: float, betas: tuple[float, float], accelerator: Accelerator) -> Adversary:
    """A discriminator with its own AdamW, on the device and prepared."""
    network = network.to(accelerator.device)
    fused = accelerator.device.type in FUSED
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=fused)
    return Adversary(*accelerator.prepare(network, optimizer))


@dataclass(frozen=True)
class Predicted:
    """A batch's predicted images and all that they are compared with."""

    x0_hat: Tensor
    """x̂₀ [B, 3, H, W], differentiable."""
    x0: Tensor
    """x₀; rows that are not `paired` hold nothing of meaning."""
    t: Tensor
    """[B], on the CPU like `paired`: which rows a loss sees is decided without waiting for the device."""
    numbers: range
    """Of the samples within the run."""
    low_res: Tensor | None
    condition: Tensor | None
    """Encoded, [B, C, H, W]."""
    paired: Tensor
    """Which rows have a photograph, [B] booleans; the others enlarge what a base generated."""


class ImageLosses:
    """The losses of a stage on x̂₀. Holds networks, no state of its own."""

    def __init__(
        self,
        stage: Stage,
        steps: int,
        accelerator: Accelerator,
        seed: int,
        perceptual: PerceptualNetwork | None = None,
        adversary: Adversary | None = None,
        clean: bool = False,
        generated: float = 0.0,
        visited: Sequence[int] | None = None,
    ) -> None:
        """steps: T of the noise schedule; seed: the run's; perceptual, adversary: the networks of the stage's losses;
        clean: whether small images are shrunk photographs, which consistency can hold x̂₀ to, and not degraded ones;
        generated: the share of samples that have no photograph, and so no timestep but the last; visited: the timesteps
        of the samples where these are few, as a student's are.
        """
        self.stage, self.steps, self.accelerator, self.seed = stage, steps, accelerator, seed
        self.perceptual, self.adversary, self.clean = perceptual, adversary, clean
        self.generated, self.visited = generated, visited

    def acting(self, within: int) -> bool:
        """Whether any of them acts at the stage's step `within`."""
        stage = self.stage
        if stage.pixel is not None or stage.consistency is not None:
            return True
        return any(within >= spec.after for spec in (stage.perceptual, stage.adversarial) if spec is not None)

    def of(self, batch: Predicted, within: int) -> LossOutput:
        """Judge a batch's predicted images, differentiably, at the stage's step `within`."""
        found, stage = LossOutput(batch.x0_hat.new_zeros(())), self.stage
        if stage.pixel is not None:
            rows = acts_at(batch.t, self.steps, stage.pixel.noise) & batch.paired
            difference = (picked(batch.x0_hat, rows) - picked(batch.x0, rows)).abs().flatten(1).mean(1)
            found.add("pixel", stage.pixel.weight, _batch_mean(difference, len(batch.t)))
        if stage.consistency is not None:
            self._hold_to_small(stage.consistency, found, batch)
        if stage.perceptual is not None and within >= stage.perceptual.after:
            self._compare_features(stage.perceptual, found, batch)
        if stage.adversarial is not None and within >= stage.adversarial.after:
            self._fool(stage.adversarial, found, batch)
        return found

    def _hold_to_small(self, spec: ConsistencyLossSpec, found: LossOutput, batch: Predicted) -> None:
        assert batch.low_res is not None
        rows = acts_at(batch.t, self.steps, spec.noise)
        rows = rows if self.clean else rows & ~batch.paired
        size = (int(batch.low_res.shape[-2]), int(batch.low_res.shape[-1]))
        shrunk = resize_antialiased(picked(batch.x0_hat, rows), size)
        difference = F.avg_pool2d(shrunk - picked(batch.low_res, rows), spec.pool).abs().flatten(1).mean(1)
        found.add("consistency", spec.weight, _batch_mean(difference, len(batch.t)))

    def _compare_features(self, spec: PerceptualLossSpec, found: LossOutput, batch: Predicted) -> None:
        network = self.perceptual
        assert network is not None
        rows = acts_at(batch.t, self.steps, spec.noise) & batch.paired
        made, there = picked(_looked_at(batch.x0_hat, spec), rows), picked(batch.x0, rows)
        if spec.jitter and rows.any():
            uniform = uniform_for(self.seed, "jitter", batch.numbers, 2)[rows]
            made, there = _jittered(made, spec.jitter, uniform), _jittered(there, spec.jitter, uniform)
        with self.accelerator.autocast():
            predicted = network(made)
            with torch.no_grad():
                real = network(there)
        loss = perceptual_loss(predicted, real, network.layer_weights, spec.error == "squared")
        found.add("perceptual", spec.weight, _batch_mean(loss, len(batch.t)))

    def _fool(self, spec: AdversarialLossSpec, found: LossOutput, batch: Predicted) -> None:
        """Add the translator's side of eq. 5, and keep what the discriminator is to learn from."""
        assert self.adversary is not None
        network = cast(Discriminator, self.adversary.bare)
        rows = acts_at(batch.t, self.steps, spec.noise)
        low_res = batch.low_res if network.spec.conditional else None
        condition = batch.condition if network.spec.condition else None
        seen = Seen(_looked_at(batch.x0_hat, spec), low_res, condition).rows(rows)
        shown = self._augmented(seen, spec, "augment", batch.numbers, rows)
        with frozen(network), self.accelerator.autocast():
            logits = all_logits(_judge(network, shown))
        rule = adversarial_named(spec.kind)
        loss = _total([rule.generator(one.float()) for one in logits])
        found.add("adversarial", spec.weight, _batch_mean(loss, len(batch.t)))
        paired = rows & batch.paired
        real = Seen(batch.x0, low_res, condition).rows(paired)
        found.adversarial = Judged(seen.with_images(seen.images.detach()), real, rows, paired)

    def _augmented(self, seen: Seen, spec: AdversarialLossSpec, purpose: str, numbers: range, rows: Tensor) -> Seen:
        """What a discriminator sees of some of a batch's rows, augmented where the loss says so."""
        if not spec.augment:
            return seen
        uniform = uniform_for(self.seed, purpose, numbers, DRAWS)[rows.cpu()]
        return seen.augmented(spec.augment, uniform.to(self.accelerator.device, non_blocking=True))

    def discriminator_loss(self, judged: Judged, numbers: range) -> tuple[Tensor, dict[str, Mean]]:
        """The discriminator's side of eq. 5 on what `of` judged. numbers: of the batch's samples.

        A sum over the rows that were judged, over as many as a batch has on average: so it is a mean of what each
        sample adds, however the samples are divided among backward passes and processes.
        """
        spec, adversary = self.stage.adversarial, self.adversary
        assert spec is not None
        assert adversary is not None
        rule = adversarial_named(spec.kind)
        paired = (1 - self.generated) * self.stage.share_of(spec, self.steps, self.visited)
        usual = len(judged.fake_rows) * (self.generated + paired)
        real = self._augmented(judged.real, spec, "augment-real", numbers, judged.real_rows)
        fake = self._augmented(judged.fake, spec, "augment-fake", numbers, judged.fake_rows)
        with self.accelerator.autocast():
            logits = all_logits(_judge(adversary.network, real.joined(fake)))
        pairs = [(one[: len(real.images)].float(), one[len(real.images) :].float()) for one in logits]
        more = (self.generated + paired) / paired if paired else 0.0  # made images to a photograph, on average
        loss = _total([_both_sides(rule, *both, more) for both in pairs]) / usual
        for weight, penalties in self._penalties(spec, rule, adversary, judged, numbers):
            loss = loss + weight * penalties.sum() / usual
        return loss, {"discriminator": Mean.of(loss), "discriminator_accuracy": _accuracy(pairs)}

    def _penalties(
        self, spec: AdversarialLossSpec, rule: AdversarialLoss, adversary: Adversary, judged: Judged, numbers: range
    ) -> Iterator[tuple[float, Tensor]]:
        """Penalties on the discriminator's gradient, [K] each, and their weights."""

        def exact(images: Tensor) -> Tensor:
            logits = all_logits(adversary.exact(images, *judged.real.others))
            return torch.stack([one.flatten(1).mean(1) for one in logits]).sum(0)

        weight = rule.gradient_penalty if spec.gradient_penalty is None else spec.gradient_penalty
        if weight:  # the recipe sees to it that every made image has its photograph
            share = uniform_for(self.seed, "penalty", numbers).flatten()[judged.real_rows.cpu()]
            share = share.to(judged.real.images.device, non_blocking=True)
            yield weight, gradient_penalty(exact, judged.real.images, judged.fake.images, share)
        if spec.r1:
            yield spec.r1 / 2, real_gradient_penalty(exact, judged.real.images)


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of x [B, …] where `rows`, [B] booleans, is true; x itself where it is everywhere.

    Where `rows` is on the CPU, nothing waits for x's device.
    """
    if rows.all():
        return x
    return x[rows.nonzero().flatten().to(x.device, non_blocking=True)]


def _looked_at(x0_hat: Tensor, spec: ImageLossSpec) -> Tensor:
    """x̂₀ as a loss sees it; where it is clipped, no gradient pushes it further out."""
    return x0_hat.clamp(-1, 1) if spec.clip else x0_hat


def _jittered(images: Tensor, most: int, uniform: Tensor) -> Tensor:
    """All but `most` rows and columns of each image [K, C, H, W], at a place of its own. uniform: [K, 2] in [0, 1)."""
    height, width = images.shape[-2] - most, images.shape[-1] - most
    corners = (uniform * (most + 1)).long().tolist()
    parts = (one[:, y : y + height, x : x + width] for one, (y, x) in zip(images, corners, strict=True))
    return torch.stack(list(parts))


def _judge(network: Any, seen: Seen) -> Any:
    return network(seen.images, *seen.others)


def _both_sides(rule: AdversarialLoss, real: Tensor, fake: Tensor, more: float) -> Tensor:
    """The discriminator's loss, summed. more: what a photograph counts, since there are fewer than made images."""
    if more == 1:
        return rule.discriminator(real, fake).sum()
    return rule.fake(fake).sum() + more * rule.real(real).sum()


def _accuracy(pairs: Sequence[tuple[Tensor, Tensor]]) -> Mean:
    """The share of logits on the right side of 0, over as many images as were judged."""
    right = [((real > 0).float().flatten(1).mean(1), (fake < 0).float().flatten(1).mean(1)) for real, fake in pairs]
    values = torch.stack([torch.cat(sides) for sides in right])  # [heads, images]
    return Mean.of(values.mean(0).sum(), values.shape[1])


def _total(losses: Sequence[Tensor]) -> Tensor:
    """Their sum; one alone stays as it is."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum(0)


def _batch_mean(losses: Tensor, batch: int) -> Tensor:
    """The sum over the rows on which a loss acts as a share of the whole batch, so that the range of t in
    which it acts does not change its strength where it acts."""
    return losses.sum() / batch


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the network's parameters; its inputs still get theirs."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
