"""What a network that learned a rectified flow sees of x_t (Liu et al. 2022, arXiv 2209.03003)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piti.diffusion.schedule import shifted


class FlowInput:
    """x_t and t as a flow has them: z_t = (1−s) x₀ + s ε, and s in place of t.

    Elsewhere noisy images are x_t = z_t/√((1−s)² + s²), of one variance at every t; see `piti.diffusion.schedule`.
    """

    def __init__(self, steps: int, shift: float) -> None:
        """Of a flow's noise schedule."""
        self.steps, self.shift = steps, shift

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """z_t [B, C, H, W] of x_t, in its precision, and T s [B] of t, float32."""
        s = shifted((t.reshape(-1).expand(len(x_t)) + 1).float() / self.steps, self.shift)
        scale = torch.sqrt((1 - s) ** 2 + s**2).view(-1, 1, 1, 1)
        return (scale * x_t).to(x_t.dtype), self.steps * s


def grown_shift(shift: float, growth: float, own: float, other: float) -> float:
    """The shift of a flow's noise levels for images of `other` tokens, if it is `shift` for those of `own` tokens.

    growth: of log(shift) by one token. For FLUX.1, log(shift) is linear in the tokens: 0.5 at 256 (256 px) and 1.15 at
    4096 (1024 px), by its scheduler's file, and on beyond these (diffusers' `FlowMatchEulerDiscreteScheduler` with
    `use_dynamic_shifting`, and `calculate_shift` of its pipeline). So larger images spend more steps at high noise
    (Esser et al. 2024, arXiv 2403.03206, section 5.3.2). Infinite where no float is that large.
    """
    exponent = growth * (other - own)
    return shift * math.exp(exponent) if exponent < _MOST else math.inf


_MOST = 700.0  # whose exponential is still a float
