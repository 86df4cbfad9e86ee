"""What a translator minimises: eq. 3 of PITI with the learned variance's bound, and timesteps to train on.

Papers: PITI (Wang et al. 2022, arXiv 2205.12952), DDPM (Ho et al. 2020), improved DDPM (Nichol & Dhariwal
2021, arXiv 2102.09672), min-SNR weighting (Hang et al. 2023, arXiv 2303.09556).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from piti.diffusion.schedule import Images, NoiseSchedule, Timesteps
from piti.errors import UserError
from piti.seeding import derive_seed
from piti.spec import choices

_INVERSE_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / φ, odd
Weighting = Callable[[NoiseSchedule, Tensor], Tensor]  # (schedule, t [B]) -> weights of the simple loss [B]


@dataclass(frozen=True)
class Losses:
    """One batch's losses; `total` is what to differentiate."""

    simple: Float[Tensor, " b"]  # mean squared error of the prediction, unweighted
    vb: Float[Tensor, " b"]  # variational bound in bits a dimension, weighted; 0 without learned variance
    total: Float[Tensor, ""]  # mean of the weighted `simple` plus mean of `vb`


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

    output: the model's prediction (ε, v or x₀, by `schedule.spec.prediction`); variance: its raw variance
    values, or None where it learns none; x0 in [−1, 1]; x_t = q_sample(x0, t, noise); weighting: a name in
    `WEIGHTINGS`, or what such a name stands for; vb_weight: λ of the bound, None for T/1000 as GLIDE trains.
    Raises ValueError for an unknown weighting.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    # PITI, eq. 3: L_simple = E‖ε_θ(x_t, y, t) − ε‖², and likewise for v
    simple = (output - schedule.target(x0, noise, t)).square().mean(dim=(1, 2, 3))
    weigh = weighting_named(weighting) if isinstance(weighting, str) else weighting
    weighted = weigh(schedule, t).to(simple) * simple
    if variance is None:
        return Losses(simple, torch.zeros_like(simple), weighted.mean())
    weight = len(schedule) / 1000 if vb_weight is None else vb_weight
    # improved DDPM, eq. 16: L = L_simple + λ L_vlb, the gradient stopped through the mean
    vb = weight * vb_bits_per_dim(schedule.to_x0(output.detach(), x_t, t), variance, x0, x_t, t, schedule)
    return Losses(simple, vb, weighted.mean() + vb.mean())


def vb_bits_per_dim(
    pred_x0: Images, variance: Images, x0: Images, x_t: Images, t: Timesteps, schedule: NoiseSchedule
) -> Float[Tensor, " b"]:
    """One term of the variational bound for each sample, in bits a dimension (DDPM, eq. 5).

    KL(q(x_{t−1}|x_t, x₀) ‖ p_θ(x_{t−1}|x_t)) for t > 0, −log p_θ(x₀|x₁) for t = 0.
    """
    variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
    mean, log_variance = schedule.posterior_mean(pred_x0, x_t, t), schedule.log_variance(variance, t)
    true_mean = schedule.posterior_mean(x0, x_t, t)
    true_log_variance = schedule.at("posterior_log_variance_clipped", t, x0)
    bound = normal_kl(true_mean, true_log_variance, mean, log_variance).mean(dim=(1, 2, 3))
    first = (t == 0).nonzero().flatten()
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
    """Every step alike (DDPM, eq. 14)."""
    return torch.ones(t.shape, device=t.device)


def min_snr(schedule: NoiseSchedule, t: Timesteps, gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Easy, nearly clean steps weigh less (Hang et al. 2023, section 3.4, γ = 5)."""
    snr = schedule.snr(t)
    # in terms of x₀ the weight is min(SNR, γ)
    return snr.clamp(max=gamma) / _per_x0(schedule, snr)


def detail(schedule: NoiseSchedule, t: Timesteps, std: float = 0.15) -> Float[Tensor, " b"]:
    """Every step alike for an image known up to a deviation of std, such as an upsampler's.

    Karras et al. 2022, section 5: the error of x₀ weighs 1/c_out² = 1/s² + 1/std², here times std².
    """
    snr = schedule.snr(t)
    return (1 + std**2 * snr) / _per_x0(schedule, snr)


def _per_x0(schedule: NoiseSchedule, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The squared error of what the model predicts to one of x₀."""
    # ‖ε−ε̂‖² = SNR ‖x₀−x̂₀‖², ‖v−v̂‖² = (SNR + 1) ‖x₀−x̂₀‖²
    factors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return factors[schedule.spec.prediction]


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "min_snr": min_snr, "detail": detail}


def weighting_named(name: str) -> Weighting:
    """The weighting of that name. Raises ValueError that names the nearest one."""
    if name not in WEIGHTINGS:
        raise UserError(f"unknown loss weighting '{name}'; {choices(name, WEIGHTINGS)}")
    return WEIGHTINGS[name]


def timesteps_for(numbers: Sequence[int], schedule: NoiseSchedule, seed: int) -> Int[Tensor, " b"]:
    """Timesteps to train samples on: uniform over 0 … T−1, spread evenly over any samples in a row.

    t_n = ⌊T · frac(u + n/φ)⌋, with u from the seed and φ the golden ratio: an additive recurrence of low discrepancy
    (Niederreiter 1992, section 3.1). Each sample's t depends on seed and number alone; a batch's mean loss varies
    less than with independent draws. numbers: of the samples, n ≥ 0. On the CPU.
    """
    offset = derive_seed(seed, "timesteps") * 2  # u and 1/φ in units of 2^−64: exact however large n is
    places = [(offset + n * _INVERSE_GOLDEN_RATIO) % 2**64 for n in numbers]
    return torch.tensor([place * len(schedule) >> 64 for place in places], dtype=torch.long)
