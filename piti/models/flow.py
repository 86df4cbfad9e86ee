"""What a network that learned a rectified flow sees of x_t (Liu et al. 2022, arXiv 2209.03003)."""

from __future__ import annotations

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
