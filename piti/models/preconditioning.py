"""An upsampler's preconditioning for what its small image lacks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DetailPreconditioning(nn.Module):
    """Preconditioning for an upsampler: the image is known up to what its small image lacks.

    Karras et al. 2022 (arXiv 2206.00364, eq. 7 and table 1), applied to the residual r = x₀ − L between the image
    and its enlarged small image, of standard deviation std: with s = σ_t/α_t the UNet sees c_in (x_t/α_t − L) and
    L, and x̂₀ = L + c_skip (x_t/α_t − L) + c_out F. So its input and its target F have unit variance at any t, and
    noise and details need not pass through its first level, which for a patch of p² pixels is too narrow for them.
    """

    log_noise: Tensor

    def __init__(self, std: float, steps: int) -> None:
        super().__init__()
        self.std = std
        self.register_buffer("log_noise", torch.full((steps,), math.nan))  # log s_t; see `set_noise`

    def set_noise(self, alphas_cumprod: Float[Tensor, " t"]) -> None:
        """Take the levels of a noise schedule, ᾱ_t. They are saved with the weights."""
        self.log_noise.copy_((0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()).to(self.log_noise))

    def distance(self, x_t: Tensor, large: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t/α_t − L [B, 3, H, W], and s_t [B, 1, 1, 1], in float32."""
        log_noise = self.log_noise.to(t.device).float()  # offloading may keep it elsewhere
        s = log_noise[t.reshape(-1).expand(len(x_t))].exp().view(-1, 1, 1, 1)
        return x_t * (1 + s.square()).sqrt() - large, s  # 1/α = √(1 + s²)

    def forward(self, x_t: Tensor, large: Tensor, t: Tensor) -> Tensor:
        """What the UNet sees of x_t, [B, 3, H, W]."""
        y, s = self.distance(x_t, large, t)
        return (y / (s.square() + self.std**2).sqrt()).to(x_t.dtype)

    def image(self, out: Tensor, x_t: Tensor, large: Tensor, t: Tensor) -> Tensor:
        """x̂₀ [B, 3, H, W] of the UNet's output F."""
        y, s = self.distance(x_t, large, t)
        total = s.square() + self.std**2
        return large + (self.std**2 / total) * y + s * self.std / total.sqrt() * out
