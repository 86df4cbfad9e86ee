"""Discriminators: patches at several scales (Pix2PixHD, SPADE), and a segmenter (OASIS)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from piti.baselines.layers import Draw, conv, normal, spectral_conv, xavier

Features = list[list[Tensor]]
"""Per scale, finest first, the feature maps [B, C_k, H_k, W_k] of each layer; the last are logits, high for real."""

KERNEL = 4
PADDING = 2


class PatchDiscriminator(nn.Module):
    """Images and conditions => the feature maps of every layer (Wang et al. 2018, section 3.2).

    widths: of the convolutions, of which each but the last halves the resolution; the logits follow. All convolutions
    except the first and the logits' are instance normalised. spectral: those also have spectral normalisation and no
    bias, and weights are initialised as in SPADE; else as in Pix2PixHD.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], spectral: bool) -> None:
        super().__init__()
        draw: Draw = xavier if spectral else normal
        first, last = len(widths) - 1, widths[-1]
        layers: list[nn.Module] = [conv(in_channels, widths[0], KERNEL, 2, padding=PADDING, draw=draw)]
        for k, (c_in, c_out) in enumerate(pairwise(widths), start=1):
            stride = 1 if k == first else 2
            if spectral:
                layers.append(spectral_conv(c_in, c_out, KERNEL, stride, padding=PADDING, draw=draw, bias=False))
            else:
                layers.append(conv(c_in, c_out, KERNEL, stride, padding=PADDING, draw=draw))
        layers.append(conv(last, 1, KERNEL, padding=PADDING, draw=draw))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """x: condition and image, concatenated."""
        maps = []
        for index, layer in enumerate(self.layers[:-1]):
            x = layer(x)  # [B, C_k, H_k, W_k]
            if index:
                x = F.instance_norm(x)
            x = F.leaky_relu(x, 0.2)
            maps.append(x)
        return [*maps, self.layers[-1](x)]


class MultiScaleDiscriminator(nn.Module):
    """Separate discriminators for the image at 1, 1/2, 1/4 … (Wang et al. 2018, section 3.2)."""

    def __init__(self, in_channels: int, widths: Sequence[int], scales: int, spectral: bool) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(in_channels, widths, spectral) for _ in range(scales))

    def forward(self, seen: Float[Tensor, "b s h w"], images: Float[Tensor, "b 3 h w"]) -> Features:
        """seen: the encoded condition at the images' size."""
        x = torch.cat([seen, images.to(seen.dtype)], dim=1)  # [B, S+3, H, W]
        found: Features = []
        for index, scale in enumerate(self.scales):
            if index:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)  # [B, S+3, H/2^k, W/2^k]
            found.append(scale(x))
        return found


class SegmentationDiscriminator(nn.Module):
    """Images => logits of N classes and, last, of `fake`, pixel by pixel (Schönfeld et al. 2021, section 3).

    A U-Net of residual blocks, spectrally normalised. channels: width of its first level; levels: number of halvings.
    Widths double every second level, up to 4 times the first.
    """

    def __init__(self, classes: int, channels: int, levels: int) -> None:
        super().__init__()
        widths = [channels * min(4, 2 ** (k // 2)) for k in range(levels)]
        self.down = nn.ModuleList(
            _Residual(c_in, c_out, up=False, first=not k) for k, (c_in, c_out) in enumerate(pairwise([3, *widths]))
        )
        targets = [*reversed(widths[:-1]), max(1, channels // 2)]
        self.up = nn.ModuleList(
            _Residual(c_in if not k else 2 * c_in, c_out, up=True)
            for k, (c_in, c_out) in enumerate(zip(reversed(widths), targets, strict=True))
        )
        self.logits = conv(targets[-1], classes + 1, 1, padding=0, draw=xavier)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n1 h w"]:
        """images: in [-1, 1]; their sides are multiples of 2^levels."""
        x, skips = images, []
        for block in self.down:
            x = block(x)  # [B, C_k, H/2^k, W/2^k]
            skips.append(x)
        skips.pop()
        for index, block in enumerate(self.up):
            x = block(torch.cat([skips.pop(), x], dim=1) if index else x)
        return self.logits(x)  # [B, N+1, H, W]


class _Residual(nn.Module):
    """Two convolutions with a shortcut, and half or twice the resolution.

    The shortcut's 1 × 1 convolution commutes with down- and upsampling, and is applied at the lower resolution.
    """

    def __init__(self, c_in: int, c_out: int, up: bool, first: bool = False) -> None:
        super().__init__()
        self.up, self.first = up, first
        self.conv_0 = spectral_conv(c_in, c_out, 3, padding=1)
        self.conv_1 = spectral_conv(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else spectral_conv(c_in, c_out, 1, padding=0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y = x if self.first else F.leaky_relu(x, 0.2)
        if self.up:
            y = self.conv_1(F.leaky_relu(self.conv_0(_twice(y)), 0.2))
            return _twice(self.shortcut(x)) + y
        y = self.conv_1(F.leaky_relu(self.conv_0(y), 0.2))
        return self.shortcut(F.avg_pool2d(x, 2)) + F.avg_pool2d(y, 2)


def _twice(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
