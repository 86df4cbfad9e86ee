"""Training losses: PITI's eq. 3 with the variational bound for the learned variance, and eq. 4 and 5 on x̂₀.

Papers: PITI (Wang et al. 2022, arXiv 2205.12952), DDPM (Ho et al. 2020, arXiv 2006.11239), improved DDPM (Nichol &
Dhariwal 2021, arXiv 2102.09672), min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), EDM (Karras et al. 2022, arXiv
2206.00364), GAN (Goodfellow et al. 2014, arXiv 1406.2661), hinge losses (Miyato et al. 2018, arXiv 1802.05957),
Wasserstein GAN (Arjovsky et al. 2017, arXiv 1701.07875) with a gradient penalty (Gulrajani et al. 2017, arXiv
1704.00028), R1 (Mescheder et al. 2018, arXiv 1801.04406).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import choices
from piti.diffusion.schedule import Images, NoiseSchedule, Timesteps

Weighting = Callable[[NoiseSchedule, Tensor], Tensor]  # (schedule, t [B]) -> weights of the simple loss [B]


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; differentiate `total`."""

    simple: Float[Tensor, " b"]  # mean squared error of the prediction, unweighted
    vb: Float[Tensor, " b"]  # variational bound in bits a dimension, weighted; 0 without learned variance
    total: Float[Tensor, ""]  # mean of the weighted `simple` plus mean of `vb`
    each: Float[Tensor, " b"]  # weighted `simple` plus `vb`, of which `total` is the mean


def diffusion_loss(
    output: Images,
    variance: Images | None,
    x0: Images,
    x_t: Images,
    t: Timesteps,
    noise: Images,
    schedule: NoiseSchedule,
    weighting: str | Weighting = "uniform",
    vb_weight: float | None = None,
) -> Losses:
    """Simple loss plus the variational bound on the learned variance (PITI, eq. 3; improved DDPM, eq. 16).

    output: the model's prediction (ε, v or x₀, by `schedule.spec.prediction`); variance: its raw variance values, or
    None without a learned variance; x0 in [−1, 1]; x_t = q_sample(x0, t, noise), where t may be on the CPU, to avoid
    synchronisation; weighting: a name in `WEIGHTINGS`, or a weighting function; vb_weight: λ of the bound, None for
    T/1000 as in GLIDE. Raises UserError for an unknown weighting.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    # PITI, eq. 3: L_simple = E‖ε_θ(x_t, y, t) − ε‖², and likewise for v
    simple = (output - schedule.target(x0, noise, t)).square().mean(dim=(1, 2, 3))
    weigh = weighting_named(weighting) if isinstance(weighting, str) else weighting
    weighted = weigh(schedule, t).to(simple, non_blocking=True) * simple
    if variance is None:
        return Losses(simple, torch.zeros_like(simple), weighted.mean(), weighted)
    weight = len(schedule) / 1000 if vb_weight is None else vb_weight
    # improved DDPM, eq. 16: L = L_simple + λ L_vlb, the gradient stopped through the mean
    vb = weight * vb_bits_per_dim(schedule.to_x0(output.detach(), x_t, t), variance, x0, x_t, t, schedule)
    return Losses(simple, vb, weighted.mean() + vb.mean(), weighted + vb)


def vb_bits_per_dim(
    pred_x0: Images, variance: Images, x0: Images, x_t: Images, t: Timesteps, schedule: NoiseSchedule
) -> Float[Tensor, " b"]:
    """One term of the variational bound per sample, in bits per dimension (DDPM, eq. 5).

    KL(q(x_{t−1}|x_t, x₀) ‖ p_θ(x_{t−1}|x_t)) for t > 0, −log p_θ(x₀|x₁) for t = 0.
    """
    variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
    mean, log_variance = schedule.posterior_mean(pred_x0, x_t, t), schedule.log_variance(variance, t)
    true_mean = schedule.posterior_mean(x0, x_t, t)
    true_log_variance = schedule.at("posterior_log_variance_clipped", t, x0)
    bound = normal_kl(true_mean, true_log_variance, mean, log_variance).mean(dim=(1, 2, 3))
    first = (t == 0).nonzero().flatten().to(x0.device, non_blocking=True)
    if len(first):
        likelihood = discretized_gaussian_log_likelihood(x0[first], mean[first], 0.5 * log_variance[first])
        bound = bound.index_put((first,), -likelihood.mean(dim=(1, 2, 3)))
    return bound / math.log(2)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) of diagonal Gaussians, elementwise, in nats; the arguments broadcast."""
    difference = log_variance2 - log_variance1
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (difference - 1 + torch.exp(-difference) + distance)


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of the 8-bit value at x in [−1, 1] under N(mean, exp(log_scale)²), elementwise, in nats.

    DDPM, eq. 13: the mass of the bin of width 2/255 around x; the first and last bins reach to ∓∞.
    """
    precision = torch.exp(-log_scale)
    below = _normal_cdf((x - mean - 1 / 255) * precision)
    above = _normal_cdf((x - mean + 1 / 255) * precision)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # Page (1977), as the released code: Φ(x) ≈ (1 + tanh(√(2/π)(x + 0.044715 x³)))/2
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Weights of the simple loss


def uniform(schedule: NoiseSchedule, t: Timesteps) -> Float[Tensor, " b"]:
    """Equal weights for all steps (DDPM, eq. 14)."""
    return torch.ones(t.shape, device=t.device)


def min_snr(schedule: NoiseSchedule, t: Timesteps, gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Lower weights for low-noise steps (Hang et al. 2023, section 3.4, γ = 5)."""
    snr = schedule.snr(t)
    # in terms of the error of x₀ the weight is min(SNR, γ)
    return snr.clamp(max=gamma) / _per_x0(schedule, snr)


def detail(schedule: NoiseSchedule, t: Timesteps, std: float = 0.15) -> Float[Tensor, " b"]:
    """Equal weights for all steps if the image is known up to a standard deviation of std, as for an upsampler.

    Karras et al. 2022, section 5: the error of x₀ has weight 1/c_out² = 1/s² + 1/std², here times std².
    """
    snr = schedule.snr(t)
    return (1 + std**2 * snr) / _per_x0(schedule, snr)


def _per_x0(schedule: NoiseSchedule, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The squared error of the model's prediction, divided by that of x̂₀."""
    # ‖ε−ε̂‖² = SNR ‖x₀−x̂₀‖², ‖v−v̂‖² = (SNR + 1) ‖x₀−x̂₀‖²; for a flow, whose x̂₀ = z − s v̂, ‖v−v̂‖² = ‖x₀−x̂₀‖²/s² with
    # 1/s = √SNR + 1
    factors = {
        "epsilon": snr,
        "v_prediction": snr + 1,
        "sample": torch.ones_like(snr),
        "flow_prediction": (snr.sqrt() + 1).square(),
    }
    return factors[schedule.spec.prediction]


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "min_snr": min_snr, "detail": detail}


def weighting_named(name: str) -> Weighting:
    """The weighting of that name. Raises UserError that names the nearest one."""
    if name not in WEIGHTINGS:
        raise UserError(f"unknown loss weighting '{name}'; {choices(name, WEIGHTINGS)}")
    return WEIGHTINGS[name]


Logits = Float[Tensor, "b ..."]


def perceptual_loss(
    predicted: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float], squared: bool = False
) -> Float[Tensor, " b"]:
    """Distance between the features of x̂₀ and x₀, per sample (PITI, eq. 4).

    predicted, real: features [B, C_m, H_m, W_m] of layer m, of x̂₀ᵗ and of x₀; weights: λ_m, one per layer; squared:
    mean square of the differences, as in the released code, instead of mean absolute value. No gradient flows to
    `real`. Raises UserError unless these correspond.
    """
    if not len(predicted) == len(real) == len(weights) or not predicted:
        raise UserError(
            f"expected one map and one weight per layer, got {len(predicted)} predicted and {len(real)} real maps, "
            f"{len(weights)} weights"
        )
    total = torch.zeros(len(predicted[0]), device=predicted[0].device)
    for ours, theirs, weight in zip(predicted, real, weights, strict=True):
        if ours.shape != theirs.shape:
            raise UserError(f"predicted features {list(ours.shape)} and real ones {list(theirs.shape)} differ in shape")
        # PITI, eq. 4: L_perc = E‖ψ_m(x̂₀ᵗ) − ψ_m(x₀)‖, the mean absolute difference, as in pix2pixHD
        difference = _precise(ours) - _precise(theirs.detach())
        total = total + weight * _per_sample(difference.square() if squared else difference.abs())
    return total


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of eq. 5, as functions of logits [B, …] that return a loss per sample, [B]."""

    generator: Callable[[Tensor], Tensor]
    """(logits of x̂₀) -> what the upsampler minimises."""
    real: Callable[[Tensor], Tensor]
    """(logits of x₀) -> the first of two terms that the discriminator minimises."""
    fake: Callable[[Tensor], Tensor]
    """(logits of x̂₀) -> the second."""
    gradient_penalty: float = 0.0
    """Default weight of `gradient_penalty`; 0 for losses without one."""

    def discriminator(self, real_logits: Logits, fake_logits: Logits) -> Float[Tensor, " b"]:
        """Both terms, for equal numbers of real and fake images."""
        return self.real(real_logits) + self.fake(fake_logits)


def non_saturating_generator(fake_logits: Logits) -> Float[Tensor, " b"]:
    """The generator's non-saturating loss (Goodfellow et al., section 3)."""
    # −log D(x̂₀), D = sigmoid(logit): softplus(−l)
    return _per_sample(F.softplus(-_precise(fake_logits)))


def non_saturating_real(real_logits: Logits) -> Float[Tensor, " b"]:
    """Cross-entropy of real images (Goodfellow et al., eq. 1; PITI, eq. 5)."""
    # −log D(x₀)
    return _per_sample(F.softplus(-_precise(real_logits)))


def non_saturating_fake(fake_logits: Logits) -> Float[Tensor, " b"]:
    """Cross-entropy of fake images (Goodfellow et al., eq. 1; PITI, eq. 5)."""
    # −log(1 − D(x̂₀))
    return _per_sample(F.softplus(_precise(fake_logits)))


def hinge_real(real_logits: Logits) -> Float[Tensor, " b"]:
    """Hinge loss of real logits, 0 above 1 (Miyato et al., eq. 16)."""
    # max(0, 1 − D(x₀))
    return _per_sample(F.relu(1 - _precise(real_logits)))


def hinge_fake(fake_logits: Logits) -> Float[Tensor, " b"]:
    """Hinge loss of fake logits, 0 below −1 (Miyato et al., eq. 16)."""
    # max(0, 1 + D(x̂₀))
    return _per_sample(F.relu(1 + _precise(fake_logits)))


def critic_generator(fake_logits: Logits) -> Float[Tensor, " b"]:
    """The negated logit (Miyato et al., eq. 17; Arjovsky et al., algorithm 1)."""
    # −D(x̂₀)
    return -_per_sample(_precise(fake_logits))


def wasserstein_real(real_logits: Logits) -> Float[Tensor, " b"]:
    """The negated real logit (Gulrajani et al., eq. 3 without the penalty)."""
    # −D(x₀)
    return -_per_sample(_precise(real_logits))


def wasserstein_fake(fake_logits: Logits) -> Float[Tensor, " b"]:
    """The fake logit (Gulrajani et al., eq. 3 without the penalty)."""
    # D(x̂₀)
    return _per_sample(_precise(fake_logits))


ADVERSARIAL: dict[str, AdversarialLoss] = {
    "non_saturating": AdversarialLoss(non_saturating_generator, non_saturating_real, non_saturating_fake),
    "hinge": AdversarialLoss(critic_generator, hinge_real, hinge_fake),
    "wgan_gp": AdversarialLoss(critic_generator, wasserstein_real, wasserstein_fake, gradient_penalty=10.0),
}


def adversarial_named(name: str) -> AdversarialLoss:
    """The adversarial loss of that name. Raises UserError that names the nearest one."""
    if name not in ADVERSARIAL:
        raise UserError(f"unknown adversarial loss '{name}'; {choices(name, ADVERSARIAL)}")
    return ADVERSARIAL[name]


def gradient_penalty(
    logits_of: Callable[[Tensor], Tensor],
    real: Float[Tensor, "b c h w"],
    fake: Float[Tensor, "b c h w"],
    share: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Squared deviation of the critic's gradient norm from 1 between real and fake, per sample (Gulrajani et al. 2017,
    eq. 3).

    logits_of: images -> logits [B, …], whose mean is the critic's output; share: of the real image in each
    interpolation, uniform over [0, 1). Differentiable in the critic's parameters; no gradient flows to the images. The
    weight, usually 10, is not included. Computed in float32 also under autocast.
    """
    real, fake = _precise(real.detach()), _precise(fake.detach())
    u = share.to(real).view(-1, 1, 1, 1)
    mixed = (u * real + (1 - u) * fake).requires_grad_()  # [B, C, H, W]
    with torch.autocast(real.device.type, enabled=False):
        critic = _per_sample(logits_of(mixed)).sum()  # samples do not mix: the gradient of each is in its own row
        (slope,) = torch.autograd.grad(critic, mixed, create_graph=True)  # [B, C, H, W]
    # Gulrajani et al., eq. 3: (‖∇_x̂ D(x̂)‖₂ − 1)², x̂ = u x + (1 − u) x̃, u ~ U[0, 1]
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square()


def real_gradient_penalty(logits_of: Callable[[Tensor], Tensor], real: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Squared gradient norm of the discriminator at real images, per sample (R1; Mescheder et al. 2018, eq. 9).

    logits_of: images -> logits [B, …]. Differentiable in the discriminator's parameters; no gradient flows to the
    images. The weight γ/2 is not included. Computed in float32 also under autocast.
    """
    images = _precise(real.detach()).requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        logits = _per_sample(logits_of(images)).sum()
        (slope,) = torch.autograd.grad(logits, images, create_graph=True)  # [B, C, H, W]
    # Mescheder et al., eq. 9: ‖∇D(x)‖²
    return slope.flatten(1).square().sum(dim=1)


def acts_at(t: Int[Tensor, " b"], steps: int, share: tuple[float, float]) -> Bool[Tensor, " b"]:
    """Rows whose timestep lies in [share[0] · T, share[1] · T); at large t x̂₀ is too blurred for image losses.

    t: timesteps 0 … steps − 1; steps: T; share: 0 ≤ low < high ≤ 1, else UserError.
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
