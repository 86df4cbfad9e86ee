"""Convolutions whose weights are drawn as the papers draw them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Draw = Callable[[Tensor], object]
"""Fills a weight in place, from torch's generator."""


def normal(weight: Tensor) -> None:
    """Standard deviation 0.02 (Wang et al. 2018, appendix on training)."""
    nn.init.normal_(weight, std=0.02)


def xavier(weight: Tensor) -> None:
    """Glorot & Bengio (2010) with gain 0.02, as the releases of SPADE and OASIS."""
    nn.init.xavier_normal_(weight, gain=0.02)


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weight is computed outside autocast: the power iteration of a spectral norm is exact."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """input: of any floating type."""
        device = input.device.type if torch.amp.is_autocast_available(input.device.type) else "cpu"
        with torch.autocast(device, enabled=False):
            weight = self.weight
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


def conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, padding: int, draw: Draw, bias: bool = True
) -> nn.Conv2d:
    """A convolution; its bias begins at 0."""
    return _drawn(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=bias), draw)


def spectral_conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, *, padding: int, draw: Draw = xavier, bias: bool = True
) -> nn.Conv2d:
    """A convolution whose weight has spectral norm 1 (Miyato et al. 2018, arXiv 1802.05957)."""
    module = _drawn(SpectralConv2d(c_in, c_out, kernel, stride, padding, bias=bias), draw)
    spectral_norm(module)
    return module


def _drawn(module: nn.Conv2d, draw: Draw) -> nn.Conv2d:
    draw(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
