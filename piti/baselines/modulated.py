"""The generator of SPADE and OASIS: residual blocks with norms modulated by the layout (Park et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from piti.baselines.base import BaselineError
from piti.baselines.layers import conv, spectral_conv, xavier

WIDEST = 16
"""Largest width of the smallest maps, as a multiple of that of the largest."""


def level_widths(channels: int, upsamplings: int) -> list[int]:
    """Width of the blocks at each resolution, smallest first: at five upsamplings 16, 16, 8, 4, 2, 1 times `channels`.

    With fewer upsamplings the widest are omitted, with more they are repeated.
    """
    widest = min(WIDEST, 2 ** max(0, upsamplings - 1))
    return [channels * min(widest, 2 ** (upsamplings - k)) for k in range(upsamplings + 1)]


def upsamplings_to(image_size: int, start: int) -> int:
    """Number of doublings from `start` to `image_size`. Raises BaselineError unless it is a whole number of at least
    1."""
    doubled = image_size // start
    if image_size % start or doubled < 2 or doubled & (doubled - 1):
        raise BaselineError(
            f"images of {image_size} px are not 'start' = {start} px doubled once or more; choose a 'start' of "
            f"{image_size // 2}, {image_size // 4} …, or a size of {2 * start}, {4 * start}, {8 * start} … px"
        )
    return doubled.bit_length() - 1


class ModulatedNorm(nn.Module):
    """SPADE (Park et al. 2019, eq. 1): batch normalised, then scaled and shifted, pixel by pixel, by the layout."""

    def __init__(self, channels: int, seen: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = conv(seen, hidden, 3, padding=1, draw=xavier)
        self.modulation = conv(hidden, 2 * channels, 3, padding=1, draw=_xavier_halves)

    def forward(self, x: Float[Tensor, "b c h w"], seen: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        """seen: at the resolution of x."""
        scale, shift = self.modulation(F.relu(self.shared(seen))).chunk(2, dim=1)  # γ, β [B, C, H, W]
        return self.norm(x) * (1 + scale) + shift


def _xavier_halves(weight: Tensor) -> None:
    """Initialise a weight with two convolutions, γ and β, each by its own fan."""
    for half in weight.chunk(2):
        xavier(half)


class ModulatedBlock(nn.Module):
    """Twice norm, activation and convolution, with a shortcut (Park et al. 2019, section 3 and appendix A)."""

    def __init__(self, c_in: int, c_out: int, seen: int, hidden: int) -> None:
        super().__init__()
        middle = min(c_in, c_out)
        self.norm_0, self.conv_0 = ModulatedNorm(c_in, seen, hidden), spectral_conv(c_in, middle, 3, padding=1)
        self.norm_1, self.conv_1 = ModulatedNorm(middle, seen, hidden), spectral_conv(middle, c_out, 3, padding=1)
        self.learned = c_in != c_out
        if self.learned:
            self.norm_s = ModulatedNorm(c_in, seen, hidden)
            self.conv_s = spectral_conv(c_in, c_out, 1, padding=0, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"], seen: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c2 h w"]:
        y = self.conv_0(F.leaky_relu(self.norm_0(x, seen), 0.2))
        y = self.conv_1(F.leaky_relu(self.norm_1(y, seen), 0.2))
        return y + (self.conv_s(self.norm_s(x, seen)) if self.learned else x)


class ModulatedGenerator(nn.Module):
    """Condition => images: starts from the downscaled condition, and is modulated by it in every norm.

    seen: its channels; widths: of each resolution, smallest first; repeated: blocks at each; hidden: width of the
    modulation's hidden layer.
    """

    def __init__(self, seen: int, widths: Sequence[int], repeated: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.first = conv(seen, widths[0], 3, padding=1, draw=xavier)
        levels, c_in = [], widths[0]
        for width, count in zip(widths, repeated, strict=True):
            blocks = nn.ModuleList()
            for _ in range(count):
                blocks.append(ModulatedBlock(c_in, width, seen, hidden))
                c_in = width
            levels.append(blocks)
        self.levels = nn.ModuleList(levels)
        self.last = conv(c_in, 3, 3, padding=1, draw=xavier)

    def forward(self, seen: Float[Tensor, "b s h w"], noise: Tensor | None = None) -> Float[Tensor, "b 3 h w"]:
        """seen: the encoded condition; noise: unused. Returns images in [-1, 1]."""
        factor = 2 ** (len(self.levels) - 1)
        x = self.first(seen[..., ::factor, ::factor])  # [B, C_0, H/f, W/f]
        for index, blocks in enumerate(self.levels):
            factor = 2 ** (len(self.levels) - 1 - index)
            small = seen[..., ::factor, ::factor]  # nearest neighbour, as in the releases
            if index:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, small)  # [B, C_k, H/2^k, W/2^k]
        return self.last(F.leaky_relu(x, 0.2)).float().tanh()
