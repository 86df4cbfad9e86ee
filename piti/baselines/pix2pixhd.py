"""Pix2PixHD (Wang et al. 2018, arXiv 1711.11585): its deterministic global generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from piti.baselines.base import BaselineError, BaselineSpec, register
from piti.baselines.discriminators import MultiScaleDiscriminator
from piti.baselines.layers import conv, normal
from piti.baselines.losses import LEAST_SQUARES
from piti.baselines.patches import PatchBaseline, PatchSpec, patch_widths
from piti.diffusion.losses import AdversarialLoss


class Pix2PixHDSpec(PatchSpec):
    """The paper's widths and weights; see its section 4 and appendix."""

    channels: int = Field(default=64, ge=1)
    """Width at full resolution; it doubles with every halving."""
    downsamplings: int | None = Field(default=None, ge=1)
    """Number of halvings in the generator; null: down to 16 px, at most 4."""
    blocks: int = Field(default=9, ge=1)
    """Residual blocks at the smallest resolution."""
    layers: int = Field(default=3, ge=1)
    """Convolutions of a discriminator that halve the resolution; one more keeps it, followed by the logits."""
    discriminator_lr: float = Field(default=2e-4, gt=0)


@register
class Pix2PixHD(PatchBaseline):
    """Encoder, residual blocks, decoder; least squares, feature matching, perceptual loss."""

    kind: ClassVar[str] = "pix2pixhd"
    spec_type: ClassVar[type[BaselineSpec]] = Pix2PixHDSpec
    spec: Pix2PixHDSpec

    def __init__(self, spec: Pix2PixHDSpec, channels: int, classes: bool, image_size: int) -> None:
        super().__init__(spec, channels, classes, image_size)
        if image_size % self.granularity or image_size < 2 * self.granularity:
            raise BaselineError(
                f"images of {image_size} px cannot be halved {self.downsamplings} times to 2 px or more; lower "
                f"'downsamplings', or choose a size of {2 * self.granularity}, {3 * self.granularity} … px"
            )

    @property
    def downsamplings(self) -> int:
        """Number of halvings in the generator."""
        chosen = self.spec.downsamplings
        return max(1, min(4, (self.image_size // 16).bit_length() - 1)) if chosen is None else chosen

    @property
    def granularity(self) -> int:
        """See `Baseline.granularity`."""
        return 2**self.downsamplings

    def generator(self) -> nn.Module:
        """See `Baseline.generator`."""
        return GlobalGenerator(self.seen_channels, self.spec.channels, self.downsamplings, self.spec.blocks)

    def discriminator(self) -> nn.Module:
        """Discriminators of the image and of the image at half size."""
        widths = patch_widths(self.spec.discriminator_channels, self.spec.layers + 1)
        return MultiScaleDiscriminator(self.seen_channels + 3, widths, self.spec.scales, spectral=False)

    @property
    def adversarial(self) -> AdversarialLoss:
        """Least squares (section 4)."""
        return LEAST_SQUARES

    def over_scales(self, losses: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Their sum (eq. 3 and 5)."""
        return torch.stack(list(losses)).sum(0)

    @property
    def feature_share(self) -> float:
        """4 over the number of layers, as in the release: 1 at the paper's depth."""
        return 4 / (self.spec.layers + 1)


class GlobalGenerator(nn.Module):
    """G1 of the paper (section 3.2, appendix): c7s1-64, d128 … d1024, 9 × R1024, u512 … u64, c7s1-3.

    Instance normalised, without learned scales; reflected at the borders. seen: its input channels.
    """

    def __init__(self, seen: int, channels: int, downsamplings: int, blocks: int) -> None:
        super().__init__()
        widths = [channels * 2**k for k in range(downsamplings + 1)]
        self.first = _reflecting(seen, channels, 7)
        self.down = nn.ModuleList(conv(c_in, 2 * c_in, 3, 2, padding=1, draw=normal) for c_in in widths[:-1])
        self.blocks = nn.ModuleList(_Residual(widths[-1]) for _ in range(blocks))
        self.up = nn.ModuleList(_transposed(c_in, c_in // 2) for c_in in reversed(widths[1:]))
        self.last = _reflecting(channels, 3, 7)

    def forward(self, seen: Float[Tensor, "b s h w"], noise: Tensor | None = None) -> Float[Tensor, "b 3 h w"]:
        """seen: the encoded condition; noise: unused. Returns images in [-1, 1]."""
        x = _normed(self.first(seen))  # [B, C, H, W]
        for layer in self.down:
            x = _normed(layer(x))  # [B, C·2^k, H/2^k, W/2^k]
        for block in self.blocks:
            x = block(x)
        for layer in self.up:
            x = _normed(layer(x))  # … [B, C, H, W]
        return self.last(x).float().tanh()


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = _reflecting(channels, channels, 3), _reflecting(channels, channels, 3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + F.instance_norm(self.conv_1(_normed(self.conv_0(x))))


def _normed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return F.relu(F.instance_norm(x))


def _reflecting(c_in: int, c_out: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.ReflectionPad2d(kernel // 2), conv(c_in, c_out, kernel, padding=0, draw=normal))


def _transposed(c_in: int, c_out: int) -> nn.Module:
    layer = nn.ConvTranspose2d(c_in, c_out, 3, 2, padding=1, output_padding=1)
    normal(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
