"""Classifier-free guidance on noise estimates: PITI's normalised rule (eq. 7-8) and alternatives.

Papers: PITI (Wang et al. 2022, arXiv 2205.12952), rescaled guidance (Lin et al. 2023, arXiv 2305.08891),
adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416), guidance in an interval (Kynkäänniemi et
al. 2024, arXiv 2404.07724). w is PITI's guidance strength: 0 is off; `guidance_scale` in other libraries is 1 + w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.diffusion.schedule import Denoise, Estimate, Images, NoiseSchedule, PerSample, Timesteps

RuleName = Literal["normalized", "plain", "rescaled", "apg"]
RULES: tuple[str, ...] = get_args(RuleName)
"""Kinds of `Guidance`."""


class Guidance(Spec):
    """Strength, rule and interval of guidance.

    kind: the rule, normalized (PITI, eq. 8), plain (eq. 7), rescaled, or adaptive projected (apg). w: strength; 0 is
    off, −1 ignores the condition. interval: guidance acts where t/T lies in it (T: the number of training timesteps;
    t/T = 1 is pure noise). phi: for "rescaled" only, see `rescaled_guidance`. eta, momentum, norm: for "apg" only, see
    `adaptive_projected_guidance`; norm 0 is unbounded.
    """

    kind: RuleName = "normalized"
    w: float = Field(default=1.0, ge=-1, allow_inf_nan=False)
    interval: tuple[float, float] = (0.0, 1.0)
    phi: float = Field(default=0.7, ge=0, le=1)
    eta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=-0.5, gt=-1, lt=1)
    norm: float = Field(default=15.0, ge=0, allow_inf_nan=False)

    @field_validator("interval")
    @classmethod
    def _ordered_within_unit(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low < high <= 1:
            raise UserError(f"({low}, {high}) is not an interval of t/T; give 0 ≤ low < high ≤ 1")
        return interval

    def active(self, t: int, T: int) -> bool:
        """Whether guidance acts at timestep t of T, so that the null estimate is needed."""
        low, high = self.interval
        return self.w != 0 and low <= t / T <= high

    def of_strength(self, w: float) -> Guidance:
        """The same rule with another strength. Raises SpecError for an invalid one."""
        return self if w == self.w else Guidance.parse(self.to_dict() | {"w": w}, "guidance")


@runtime_checkable
class DenoisePair(Protocol):
    """A model that estimates with the condition, and on request also with the null condition."""

    def __call__(self, x_t: Tensor, t: Tensor, with_null: bool) -> tuple[Estimate, Estimate | None]: ...


def guided(
    denoise: DenoisePair, guidance: Guidance, schedule: NoiseSchedule, strength: Callable[[], float] | None = None
) -> Denoise:
    """The guided model as called by samplers: (x_t, t) -> Estimate, with the variance of the conditional estimate.

    denoise(x_t, t, with_null): both estimates, ideally in one batch; if guidance is inactive, with_null is False and
    the second estimate None. schedule: the training schedule, not respaced. strength: returns w for the next step, if
    it changes during a run; by default the guidance's own. Create a new one for each sampling run ("apg" keeps state).
    The result raises UserError if `t` differs within a batch; it reads `t`, which does not synchronise if `t` is on the
    CPU.
    """
    rule = _RULES[guidance.kind](guidance, schedule)

    def step(x_t: Tensor, t: Tensor) -> Estimate:
        now = int(t[0])
        if bool((t != now).any()):
            raise UserError(f"guidance needs one timestep for the whole batch, got {t.tolist()}")
        present = guidance if strength is None else guidance.of_strength(strength())
        active = present.active(now, len(schedule))
        cond, null = denoise(x_t, t, active)
        if not active:
            return cond
        if null is None:
            raise UserError(f"w = {present.w} needs the null estimate at t = {now}, but denoise returned None")
        return Estimate(rule(cond.eps, null.eps, x_t, t, present.w), cond.variance)

    return step


def sample_statistics(x: Images) -> tuple[PerSample, PerSample]:
    """Mean and standard deviation of each sample over channels and pixels, [B, 1, 1, 1] each."""
    return x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True, correction=0)


def plain_guidance(eps_cond: Images, eps_null: Images, w: float) -> Images:
    """Classifier-free guidance (PITI, eq. 7). Estimates [B, C, H, W]; w = 0 returns eps_cond."""
    # PITI, eq. 7: ε̂ = ε_c + w (ε_c − ε_∅)
    return eps_cond if w == 0 else eps_cond + w * (eps_cond - eps_null)


def normalized_guidance(eps_cond: Images, eps_null: Images, w: float) -> Images:
    """Guide, then restore the statistics of the conditional estimate (PITI, eq. 7-8).

    eps_cond, eps_null: noise estimates [B, C, H, W]; w: strength, 0 returns eps_cond.
    """
    if w == 0:
        return eps_cond
    guided_eps = plain_guidance(eps_cond, eps_null, w)
    mean, std = sample_statistics(eps_cond)
    guided_mean, guided_std = sample_statistics(guided_eps)
    # PITI, eq. 8: ε̃ = σ/σ̂ (ε̂ − μ̂) + μ
    return (guided_eps - guided_mean) * (std / _nonzero(guided_std)) + mean


def rescaled_guidance(eps_cond: Images, eps_null: Images, w: float, phi: float = 0.7) -> Images:
    """Guide, then restore a share phi of the conditional estimate's standard deviation (Lin et al. 2023, eq. 14-16).

    eps_cond, eps_null: noise estimates [B, C, H, W]; w: strength, 0 returns eps_cond; phi in [0, 1].
    """
    if w == 0:
        return eps_cond
    guided_eps = plain_guidance(eps_cond, eps_null, w)
    std, guided_std = sample_statistics(eps_cond)[1], sample_statistics(guided_eps)[1]
    # Lin et al., eq. 15-16: φ (σ_c/σ̂) ε̂ + (1 − φ) ε̂
    return (phi * std / _nonzero(guided_std) + (1 - phi)) * guided_eps


class Momentum:
    """The running average of the guidance difference in one sampling run (Sadat et al. 2024, section 4, "reverse
    momentum")."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.running: Tensor | None = None

    def update(self, difference: Images) -> Images:
        """Add one step's difference [B, C, H, W]; returns Δ_t + β Δ̄_{t+1}."""
        past = 0 if self.running is None else self.beta * self.running
        self.running = difference + past
        return self.running


def adaptive_projected_guidance(
    eps_cond: Images,
    eps_null: Images,
    w: float,
    x_t: Images,
    t: Timesteps,
    schedule: NoiseSchedule,
    eta: float = 0.0,
    norm: float = 15.0,
    momentum: Momentum | None = None,
) -> Images:
    """Guide x̂₀ orthogonally to the conditional x̂₀ (APG; Sadat et al. 2024, algorithm 1).

    eps_cond, eps_null: noise estimates [B, C, H, W] at x_t and t; w: strength, 0 returns eps_cond; eta: share of the
    parallel component that is kept, 1 is plain guidance; norm: bound on ‖Δx̂₀‖ per sample, 0 for none; momentum: state
    of one sampling run, or None. Returns guided noise.
    """
    if w == 0:
        return eps_cond
    x0 = schedule.predict_x0(x_t, t, eps_cond)  # [B, C, H, W]
    difference = x0 - schedule.predict_x0(x_t, t, eps_null)
    if momentum is not None:
        difference = momentum.update(difference)
    if norm > 0:
        difference = difference * (norm / _nonzero(_length(difference))).clamp(max=1)
    direction = x0 / _nonzero(_length(x0))
    parallel = (difference * direction).sum(dim=(1, 2, 3), keepdim=True) * direction
    update = w * (difference - parallel + eta * parallel)
    # x̂₀ + update, as noise: ε = (x_t − α x̂₀)/σ
    return eps_cond - update / schedule.at("sqrt_recipm1_alphas_cumprod", t, update)


def _length(x: Images) -> PerSample:
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _nonzero(x: Float[Tensor, "b 1 1 1"]) -> PerSample:
    """A divisor without zeros: a constant image has standard deviation 0, and the result becomes 0 instead of NaN."""
    return x.clamp(min=1e-12)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]  # (eps_cond, eps_null, x_t, t, w) -> guided eps


def _plain(guidance: Guidance, schedule: NoiseSchedule) -> Rule:
    return lambda cond, null, x_t, t, w: plain_guidance(cond, null, w)


def _normalized(guidance: Guidance, schedule: NoiseSchedule) -> Rule:
    return lambda cond, null, x_t, t, w: normalized_guidance(cond, null, w)


def _rescaled(guidance: Guidance, schedule: NoiseSchedule) -> Rule:
    return lambda cond, null, x_t, t, w: rescaled_guidance(cond, null, w, guidance.phi)


def _apg(guidance: Guidance, schedule: NoiseSchedule) -> Rule:
    momentum = Momentum(guidance.momentum)
    g = guidance
    return lambda cond, null, x_t, t, w: adaptive_projected_guidance(
        cond, null, w, x_t, t, schedule, g.eta, g.norm, momentum
    )


def guided_noise(guidance: Guidance, schedule: NoiseSchedule) -> Callable[[Images, Images, Images, Timesteps], Images]:
    """The guidance rule for batches with different timesteps: (ε_c, ε_∅, x_t, t [B]) -> ε̃, each [B, C, H, W].

    Outside the guidance's interval the result is ε_c. Create a new one for each run ("apg" keeps state).
    """
    rule, T = _RULES[guidance.kind](guidance, schedule), len(schedule)

    def apply(cond: Images, null: Images, x_t: Images, t: Timesteps) -> Images:
        low, high = guidance.interval
        active = ((t / T >= low) & (t / T <= high)).to(cond.device, non_blocking=True) & (guidance.w != 0)
        return torch.where(active.view(-1, 1, 1, 1), rule(cond, null, x_t, t, guidance.w), cond)

    return apply


_RULES: dict[str, Callable[[Guidance, NoiseSchedule], Rule]] = {
    "normalized": _normalized,
    "plain": _plain,
    "rescaled": _rescaled,
    "apg": _apg,
}


Encoded = TypeVar("Encoded")
"""Encoded conditions, in any form that a network takes."""


def conditioned(
    predict: Callable[[Tensor, Tensor, Encoded], tuple[Tensor, Tensor | None]],
    tokens: Encoded,
    both: Encoded | None,
    schedule: NoiseSchedule,
) -> DenoisePair:
    """`denoise(x_t, t, with_null)` for a network whose conditions are already encoded.

    predict: `(x_t, t, tokens) -> (output, variance)`, with the output type of the schedule's prediction. tokens: of the
    conditions of B images; both: the same followed by B null conditions, or None without guidance. A guided pair runs
    as one batch of 2 B. `t` may be on the CPU; `predict` gets it on x_t's device.
    """

    def denoise(x_t: Tensor, t: Tensor, with_null: bool) -> tuple[Estimate, Estimate | None]:
        if not with_null:
            return estimate(x_t, t, tokens), None
        assert both is not None  # where guidance is wanted
        pair = estimate(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        (eps, eps_null), variance = pair.eps.chunk(2), pair.variance
        if variance is None:
            return Estimate(eps, None), Estimate(eps_null, None)
        return Estimate(eps, variance.chunk(2)[0]), Estimate(eps_null, variance.chunk(2)[1])

    def estimate(x_t: Tensor, t: Tensor, given: Encoded) -> Estimate:
        output, variance = predict(x_t, t.to(x_t.device, non_blocking=True), given)
        eps = schedule.to_epsilon(output.float(), x_t, t)
        x0 = output.float() if schedule.spec.prediction == "sample" else None
        return Estimate(eps, None if variance is None else variance.float(), x0)

    return denoise
