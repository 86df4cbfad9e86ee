"""Convolutions with the papers' weight initialisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Draw = Callable[[Tensor], object]
"""Initialises a weight in place, with torch's generator."""


def normal(weight: Tensor) -> None:
    """Standard deviation 0.02 (Wang et al. 2018, appendix on training)."""
    nn.init.normal_(weight, std=0.02)


def xavier(weight: Tensor) -> None:
    """Glorot & Bengio (2010) with gain 0.02, as in the releases of SPADE and OASIS."""
    nn.init.xavier_normal_(weight, gain=0.02)


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weight is computed outside autocast, so that the power iteration of spectral norm is
    exact."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """input: of any floating-point dtype."""
        device = input.device.type if torch.amp.is_autocast_available(input.device.type) else "cpu"
        with torch.autocast(device, enabled=False):
            weight = self.weight
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, *, padding: int, draw: Draw) -> nn.Conv2d:
    """A convolution with zero-initialised bias."""
    return _drawn(nn.Conv2d(c_in, c_out, kernel, stride, padding), draw)


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


Encoded = Shaped[Tensor, "b c h w"]


def with_ignored(encoded: Encoded) -> Float[Tensor, "b c1 h w"]:
    """One-hot classes, and a last channel for ignored pixels, which have no class."""
    one_hot = encoded.float()
    return torch.cat([one_hot, 1 - one_hot.amax(dim=1, keepdim=True)], dim=1)


def labels_of(layout: Float[Tensor, "b c1 h w"]) -> Int[Tensor, "b h w"]:
    """Class of every pixel, 0 … C - 1; C for ignored ones."""
    return layout.argmax(dim=1)


def edges_of(labels: Int[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where one of the four neighbours has another label (on both sides of a border) (Wang et al. 2018, section 3.3).

    The paper uses borders of objects; for a mask without objects these are borders of classes.
    """
    across = labels[:, :, 1:] != labels[:, :, :-1]  # [B, H, W-1]
    down = labels[:, 1:] != labels[:, :-1]  # [B, H-1, W]
    edges = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(down, (0, 0, 1, 0)) | F.pad(down, (0, 0, 0, 1))
    return edges[:, None].float()
