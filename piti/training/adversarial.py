"""Losses on the predicted image: perceptual and adversarial (PITI, section 3.3, eq. 4 and 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field, field_validator
from torch import Tensor, nn

from piti.core.spec import Spec
from piti.diffusion.losses import acts_at, adversarial_named, gradient_penalty, perceptual_loss
from piti.models.perceptual import PerceptualNetwork


class ImageLossSpec(Spec):
    """When a loss on x̂₀ acts, and how much it counts."""

    weight: float = Field(default=0.004, ge=0)
    after: int = Field(default=1000, ge=0)
    """Steps of the stage before it acts: until then x̂₀ is not yet worth judging."""
    noise: tuple[float, float] = (0.0, 0.5)
    """The timesteps at which it acts, as shares of T, from and below. At large t x̂₀ is the mean of many images:
    of a photograph's detail the plain street upsampler's x̂₀ has 85% at 0.2 T, 55% at 0.5 T, 42% at 0.9 T (bicubic:
    32%; `benchmarks/predicted_images.py`). Where less than half is left, sharpness would be made up."""

    @field_validator("noise")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("expected [from, below] with 0 <= from < below <= 1, shares of the timesteps")
        return value

    def count(self, steps: int) -> int:
        """At how many of `steps` timesteps it acts."""
        return int(acts_at(torch.arange(steps), steps, self.noise).sum())


class PerceptualLossSpec(ImageLossSpec):
    """Eq. 4. The network whose features are compared is the recipe's `perceptual`."""


class AdversarialLossSpec(ImageLossSpec):
    """Eq. 5. The discriminator is the recipe's `discriminator`."""

    weight: float = Field(default=0.01, ge=0)
    kind: str = "non_saturating"
    """non_saturating, hinge or wgan_gp."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the discriminator's AdamW."""
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_penalty: float | None = Field(default=None, ge=0)
    """Weight of the penalty on the discriminator's gradient; none: the loss's own."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        adversarial_named(kind)
        return kind


@dataclass(frozen=True)
class Judged:
    """The rows of a batch whose timestep an adversary judges, perhaps none."""

    fake: Tensor
    """x̂₀ [K, 3, H, W], without a gradient."""
    real: Tensor
    """x₀."""
    low_res: Tensor | None
    rows: Tensor
    """Which rows of the batch these are, [B] booleans."""


@dataclass
class Critique:
    """What one batch's predicted images are worth."""

    total: Tensor
    """Weighted sum to add to the translator's loss."""
    numbers: dict[str, float] = field(default_factory=dict)
    judged: object = None
    """What the discriminator is to learn from, for whoever made this; None: it does not learn now."""


@dataclass
class Adversary:
    """The discriminator and its optimiser, both prepared by the accelerator."""

    network: Any
    optimizer: Any

    @property
    def bare(self) -> nn.Module:
        """The network without what several processes wrap around it."""
        return getattr(self.network, "module", self.network)

    def exact(self, images: Tensor, low_res: Tensor | None) -> Tensor:
        """The logits without the autocast that the accelerator put around the network."""
        return getattr(self.bare, "_original_forward", self.bare.forward)(images, low_res)


def build_adversary(network: nn.Module, lr: float, betas: tuple[float, float], accelerator: Accelerator) -> Adversary:
    """A discriminator with its own AdamW, on the device and prepared."""
    network = network.to(accelerator.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=betas, weight_decay=0.0)
    return Adversary(*accelerator.prepare(network, optimizer))


class ImageLosses:
    """The losses of a stage on x̂₀. Holds networks, no state of its own."""

    def __init__(
        self,
        steps: int,
        accelerator: Accelerator,
        perceptual: tuple[PerceptualLossSpec, PerceptualNetwork] | None,
        adversarial: tuple[AdversarialLossSpec, Adversary] | None,
    ) -> None:
        """steps: T of the noise schedule."""
        self.steps, self.accelerator = steps, accelerator
        self.perceptual, self.adversarial = perceptual, adversarial

    @property
    def adversary(self) -> Adversary | None:
        """The discriminator and its optimiser."""
        return self.adversarial[1] if self.adversarial else None

    def acting(self, within: int) -> bool:
        """Whether any of them acts at the stage's step `within`."""
        specs = [loss[0] for loss in (self.perceptual, self.adversarial) if loss is not None]
        return any(within >= spec.after for spec in specs)

    def of(self, x0_hat: Tensor, x0: Tensor, low_res: Tensor | None, t: Tensor, within: int) -> Critique:
        """Judge x̂₀ [B, 3, H, W], differentiably, at the stage's step `within`."""
        critique = Critique(x0_hat.new_zeros(()))
        if self.perceptual is not None and within >= self.perceptual[0].after:
            spec, network = self.perceptual
            rows = acts_at(t, self.steps, spec.noise)
            with self.accelerator.autocast():
                predicted = network(x0_hat[rows])
                with torch.no_grad():
                    real = network(x0[rows])
            loss = _batch_mean(perceptual_loss(predicted, real, network.layer_weights), len(t))
            critique.total = critique.total + spec.weight * loss
            critique.numbers["perceptual"] = loss.item()
        if self.adversarial is not None and within >= self.adversarial[0].after:
            self._fool(*self.adversarial, critique, x0_hat, x0, low_res, t)
        return critique

    def _fool(
        self,
        spec: AdversarialLossSpec,
        adversary: Adversary,
        critique: Critique,
        x0_hat: Tensor,
        x0: Tensor,
        low_res: Tensor | None,
        t: Tensor,
    ) -> None:
        """Add the translator's side of eq. 5, and keep what the discriminator is to learn from."""
        rows = acts_at(t, self.steps, spec.noise)
        small = None if low_res is None else low_res[rows]
        with frozen(adversary.bare), self.accelerator.autocast():
            logits = adversary.bare(x0_hat[rows], small)
        loss = _batch_mean(adversarial_named(spec.kind).generator(logits.float()), len(t))
        critique.total = critique.total + spec.weight * loss
        critique.numbers["adversarial"] = loss.item()
        critique.judged = Judged(x0_hat[rows].detach(), x0[rows], small, rows)

    def discriminator_loss(self, critique: Critique, share: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The discriminator's side of eq. 5 on what `of` judged. share: [B] in [0, 1), for the gradient penalty.

        A sum over the rows that were judged, over as many as a batch has on average: so it is a mean of what each
        sample adds, however the samples are divided among backward passes and processes.
        """
        assert self.adversarial is not None
        assert isinstance(critique.judged, Judged)
        judged = critique.judged
        spec, adversary = self.adversarial
        rule = adversarial_named(spec.kind)
        usual = len(judged.rows) * spec.count(self.steps) / self.steps
        both = None if judged.low_res is None else torch.cat([judged.low_res, judged.low_res])
        with self.accelerator.autocast():
            logits = adversary.network(torch.cat([judged.real, judged.fake]), both).float()
        real_logits, fake_logits = logits.chunk(2)
        losses = rule.discriminator(real_logits, fake_logits)  # [K]
        weight = rule.gradient_penalty if spec.gradient_penalty is None else spec.gradient_penalty
        if weight:
            exact, mixture = adversary.exact, share.to(judged.real.device)[judged.rows]
            penalties = gradient_penalty(
                lambda images: exact(images, judged.low_res), judged.real, judged.fake, mixture
            )
            losses = losses + weight * penalties
        loss = losses.sum() / usual
        right = ((real_logits > 0).float() + (fake_logits < 0).float()).flatten(1).mean(1).sum() / 2
        return loss, {"discriminator": loss.item(), "told_apart": right.item(), "judged": float(len(judged.real))}


def of_the_judged(numbers: dict[str, float]) -> dict[str, float]:
    """The numbers of a step with `told_apart` as a share of the rows that were judged, where there were any."""
    if "judged" not in numbers:
        return numbers
    told_apart = {"told_apart": numbers["told_apart"] / numbers["judged"]} if numbers["judged"] else {}
    return {key: value for key, value in numbers.items() if key not in ("told_apart", "judged")} | told_apart


def _batch_mean(losses: Tensor, batch: int) -> Tensor:
    """The sum over the rows on which a loss acts as a share of the whole batch, so that the range of t in
    which it acts does not change its strength where it acts."""
    return losses.sum() / batch


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the network's parameters; its inputs still get theirs."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
