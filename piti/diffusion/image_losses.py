"""What the upsampler's predicted clean images are held to: eq. 4 and 5 of PITI, as functions on tensors.

Papers: PITI (Wang et al. 2022, arXiv 2205.12952), GAN (Goodfellow et al. 2014, arXiv 1406.2661), hinge (Lim & Ye
2017, arXiv 1705.02894; Miyato et al. 2018, arXiv 1802.05957), WGAN (Arjovsky et al. 2017, arXiv 1701.07875) and
its gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028).

Logits are [B, …], one or more a sample, high for real; every loss is the mean over a sample's logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from piti.errors import UserError
from piti.spec import choices

Logits = Float[Tensor, "b ..."]


def perceptual_loss(
    predicted: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float]
) -> Float[Tensor, " b"]:
    """How far the features of x̂₀ are from those of x₀, for each sample (PITI, eq. 4).

    predicted, real: features [B, C_m, H_m, W_m] of layer m, of x̂₀ᵗ and of x₀; weights: λ_m, one a layer. No
    gradient flows to `real`. Raises ValueError unless these correspond.
    """
    if not len(predicted) == len(real) == len(weights) or not predicted:
        raise UserError(
            f"one map and one weight a layer are needed, got {len(predicted)} predicted, {len(real)} real, "
            f"{len(weights)} weights"
        )
    total = torch.zeros(len(predicted[0]), device=predicted[0].device)
    for ours, theirs, weight in zip(predicted, real, weights, strict=True):
        if ours.shape != theirs.shape:
            raise UserError(f"predicted features {list(ours.shape)} and real ones {list(theirs.shape)} differ in shape")
        # PITI, eq. 4: L_perc = E‖ψ_m(x̂₀ᵗ) − ψ_m(x₀)‖, the mean absolute difference as pix2pixHD has it
        total = total + weight * _per_sample((_precise(ours) - _precise(theirs.detach())).abs())
    return total


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of eq. 5. Functions of logits [B, …] that return a loss for each sample, [B]."""

    generator: Callable[[Tensor], Tensor]
    """(logits of x̂₀) -> what the upsampler minimises."""
    discriminator: Callable[[Tensor, Tensor], Tensor]
    """(logits of x₀, logits of x̂₀) -> what the discriminator minimises."""
    gradient_penalty: float = 0.0
    """The usual weight of `gradient_penalty`; 0 where the form has none."""


def non_saturating_generator(fake_logits: Logits) -> Float[Tensor, " b"]:
    """Fake images shall pass for real, with a gradient also where they do not (Goodfellow et al., section 3)."""
    # −log D(x̂₀), D = sigmoid(logit): softplus(−l)
    return _per_sample(F.softplus(-_precise(fake_logits)))


def non_saturating_discriminator(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " b"]:
    """Cross-entropy of real against fake (Goodfellow et al., eq. 1; PITI, eq. 5)."""
    # −log D(x₀) − log(1 − D(x̂₀))
    return _per_sample(F.softplus(-_precise(real_logits))) + _per_sample(F.softplus(_precise(fake_logits)))


def hinge_discriminator(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " b"]:
    """Real logits above 1, fake ones below −1, and no further (Miyato et al., eq. 16)."""
    # max(0, 1 − D(x₀)) + max(0, 1 + D(x̂₀))
    return _per_sample(F.relu(1 - _precise(real_logits))) + _per_sample(F.relu(1 + _precise(fake_logits)))


def critic_generator(fake_logits: Logits) -> Float[Tensor, " b"]:
    """The logit itself shall be high (Miyato et al., eq. 17; Arjovsky et al., algorithm 1)."""
    # −D(x̂₀)
    return -_per_sample(_precise(fake_logits))


def wasserstein_discriminator(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " b"]:
    """Real logits high, fake ones low, the slope bound elsewhere (Gulrajani et al., eq. 3 less its penalty)."""
    # D(x̂₀) − D(x₀)
    return _per_sample(_precise(fake_logits)) - _per_sample(_precise(real_logits))


ADVERSARIAL: dict[str, AdversarialLoss] = {
    "non_saturating": AdversarialLoss(non_saturating_generator, non_saturating_discriminator),
    "hinge": AdversarialLoss(critic_generator, hinge_discriminator),
    "wgan_gp": AdversarialLoss(critic_generator, wasserstein_discriminator, gradient_penalty=10.0),
}


def adversarial_named(name: str) -> AdversarialLoss:
    """The adversarial loss of that name. Raises ValueError that names the nearest one."""
    if name not in ADVERSARIAL:
        raise UserError(f"unknown adversarial loss '{name}'; {choices(name, ADVERSARIAL)}")
    return ADVERSARIAL[name]


def gradient_penalty(
    logits_of: Callable[[Tensor], Tensor],
    real: Float[Tensor, "b c h w"],
    fake: Float[Tensor, "b c h w"],
    share: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """How far the critic's slope is from 1 between real and fake, for each sample (Gulrajani et al. 2017, eq. 3).

    logits_of: images -> logits [B, …], of which the critic is the mean; share: of the real image in each mixture, u,
    uniform over [0, 1). Differentiable in the critic's parameters; no gradient flows to the images. Without the
    weight, usually 10. Computed in float32 also under autocast.
    """
    real, fake = _precise(real.detach()), _precise(fake.detach())
    u = share.to(real).view(-1, 1, 1, 1)
    mixed = (u * real + (1 - u) * fake).requires_grad_()  # [B, C, H, W]
    with torch.autocast(real.device.type, enabled=False):
        critic = _per_sample(logits_of(mixed)).sum()  # samples do not mix: each one's slope is in its own row
        (slope,) = torch.autograd.grad(critic, mixed, create_graph=True)  # [B, C, H, W]
    # Gulrajani et al., eq. 3: (‖∇_x̂ D(x̂)‖₂ − 1)², x̂ = u x + (1 − u) x̃, u ~ U[0, 1]
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square()


def acts_at(t: Int[Tensor, " b"], steps: int, share: tuple[float, float]) -> Bool[Tensor, " b"]:
    """Rows whose timestep lies in [share[0] · T, share[1] · T): at a large t x̂₀ is no image that could be judged.

    t: timesteps 0 … steps − 1; steps: T; share: 0 ≤ low < high ≤ 1, else ValueError.
    """
    low, high = share
    if not 0 <= low < high <= 1:
        raise UserError(f"({low}, {high}) is not a share of the timesteps; give 0 ≤ low < high ≤ 1")
    # the first whole step at or above a bound; 0.07 · 100 is 7.000000000000001
    first, end = math.ceil(low * steps - 1e-6), math.ceil(high * steps - 1e-6)
    return (t >= first) & (t < end)


def _per_sample(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    return x.flatten(1).mean(dim=1) if x.ndim > 1 else x


def _precise(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    return x.to(torch.promote_types(x.dtype, torch.float32))
