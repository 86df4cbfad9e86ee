"""DDIM inversion of an image to the noise that samples back to it, and sampling blended with that trajectory.

Papers: DDIM (Song et al. 2020, arXiv 2010.02502, section 4.3), refinement of every step (Pan et al. 2023, arXiv
2309.04907; Garibi et al. 2024, arXiv 2403.14602), blending at every noise level (Avrahami et al. 2021, arXiv
2111.14818; PITI, appendix B).

Steps are those of the respaced process, as the sampler "ddim" visits them, 0 … N−1. ᾱ before step 0 is 1, since an
image is clean, also for schedules with `to_clean: false`, whose sampler stops at ᾱ of the trained step 0 and leaves
residual noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.samplers import OnStep, sampling_timesteps, x0_of
from piti.diffusion.schedule import Denoise, Images, NoiseSchedule

SAMPLER = "ddim"
"""The sampler that is inverted: its steps are deterministic, and each depends only on its starting point."""

Region = Float[Tensor, "_ 1 h w"]


@dataclass(frozen=True)
class Trajectory:
    """The trajectory of an image to noise."""

    schedule: NoiseSchedule
    """The respaced process, of N steps."""
    states: tuple[Tensor, ...]
    """The image, then x_0 … x_{N−1}, [B, C, H, W] each: the sampler's step k arrives at states[k]."""

    @property
    def noise(self) -> Tensor:
        """x_{N−1}, where sampling starts."""
        return self.states[-1]


@torch.no_grad()
def invert(
    denoise: Denoise,
    image: Images,
    schedule: NoiseSchedule,
    steps: int | str | Sequence[int],
    refinements: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Invert an image [B, C, H, W] in [−1, 1]: the sampler returns along the trajectory under the same `denoise`.

    denoise, schedule, steps: as for `sample` with "ddim". refinements: calls of `denoise` per step after its first
    guess, which moves x_k along the most recent x̂₀. 0 is plain inversion, which also takes one call per step: its
    guess uses x̂₀ at x_k, and its error decreases only with the number of steps. on_step(done, total, x̂₀) is called
    after each step. Raises UserError for invalid steps or refinements.
    """
    if refinements < 0:
        raise UserError(f"refinements = {refinements}: give 0 (plain inversion), 1, 2 …")
    spaced = schedule.respaced(sampling_timesteps(schedule, SAMPLER, steps))
    predict = _predictor(denoise, spaced)
    states, x0 = [image], image
    for k in range(len(spaced)):
        before = states[-1]  # at which the sampler's step from x_k should arrive
        if refinements == 0:
            x0 = predict(before, max(0, k - 1))
        x = before if k == 0 else ddim_inversion_step(before, x0, k - 1, spaced)
        for _ in range(refinements):
            x0 = predict(x, k)
            # x_k ← x_k + (x_{k−1} − S(x_k)), S: the sampler's step. The slope of S lies between √((1−ᾱ_{k−1})/(1−ᾱ_k)),
            # for what the denoiser removes as noise, and about 1, for what it keeps, so this contracts for both. The
            # usual fixed point, eq. 12 solved for x_k with x̂₀ held fixed, diverges for what is kept
            x = x + (before - ddim_step(x, x0, k, spaced))
        states.append(x)
        if on_step is not None:
            on_step(k + 1, len(spaced), x0)
    return Trajectory(spaced, tuple(states))


@torch.no_grad()
def resample(
    denoise: Denoise,
    trajectory: Trajectory,
    x_T: Images,
    region: Region | None = None,
    on_step: OnStep | None = None,
) -> Images:
    """Sample x_T, [B, C, H, W], along the steps of a trajectory, [1 or B, C, H, W], into images in [−1, 1].

    denoise: under the changed condition. region: in [0, 1]; 0 takes every x_k from the trajectory, 1 none, values
    between are blended; None: 1 everywhere. The sampler's last step is not blended, so that no seam shows.
    """
    spaced = trajectory.schedule
    predict = _predictor(denoise, spaced)
    x = x_T
    for k in reversed(range(len(spaced))):
        x0 = predict(x, k)
        x = ddim_step(x, x0, k, spaced)
        if region is not None and k > 0:
            # Avrahami et al., algorithm 2, with the trajectory in place of fresh noise: x ← m x + (1 − m) x_{k−1}
            x = torch.lerp(trajectory.states[k].expand_as(x), x, region.to(x))
        if on_step is not None:
            on_step(len(spaced) - k, len(spaced), x0)
    return spaced.finished(x)


def ddim_step(x: Images, x0: Images, k: int, spaced: NoiseSchedule) -> Images:
    """The sampler's deterministic step, x_k -> x_{k−1} (DDIM, eq. 12, σ = 0); step 0 arrives at x̂₀."""
    return _along(x, x0, _signal(spaced, k), _signal(spaced, k - 1))


def ddim_inversion_step(x: Images, x0: Images, k: int, spaced: NoiseSchedule) -> Images:
    """The step in the opposite direction, x_k -> x_{k+1} (DDIM, section 4.3), with the x̂₀ of x_k or of x_{k+1}."""
    return _along(x, x0, _signal(spaced, k), _signal(spaced, k + 1))


def _along(x: Images, x0: Images, now: float, then: float) -> Images:
    """Move x from ᾱ = now to ᾱ = then, with the same x̂₀ and the same noise."""
    # x' = √ᾱ' x̂₀ + √(1−ᾱ') ε, ε = (x − √ᾱ x̂₀)/√(1−ᾱ)
    share = math.sqrt((1 - then) / (1 - now))
    return share * x + (math.sqrt(then) - share * math.sqrt(now)) * x0


def _signal(spaced: NoiseSchedule, k: int) -> float:
    """ᾱ_k, 1 before the first step and 0 after the last."""
    return 1.0 if k < 0 else 0.0 if k == len(spaced) else float(spaced.alphas_cumprod[k])


def _predictor(denoise: Denoise, spaced: NoiseSchedule) -> Callable[[Tensor, int], Tensor]:
    """(x_k, k) -> x̂₀, bounded as in sampling."""

    def predict(x: Tensor, k: int) -> Tensor:
        step = torch.full((len(x),), k)
        return x0_of(spaced, x, step, denoise(x, torch.full_like(step, int(spaced.timesteps[k]))))

    return predict
