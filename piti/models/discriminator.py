"""The adversary of the upsampler: a discriminator of patches (PITI, eq. 5)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from piti.core.errors import UserError
from piti.core.spec import Spec

KERNEL = 4  # of every convolution; padding 1


class DiscriminatorSpec(Spec):
    """Width and depth. The default depth judges patches of 70 × 70 px (Isola et al. 2017, section 6.1.2)."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the convolutions; each but the last halves the resolution."""
    norm: Literal["spectral", "instance", "none"] = "spectral"
    """Spectral: of every weight (Miyato et al. 2018). Instance: of every map but the first, as Isola et al."""
    conditional: bool = True
    """Whether it also sees the small image that is being enlarged."""

    @model_validator(mode="after")
    def _widths(self) -> DiscriminatorSpec:
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"'channels' = {list(self.channels)}; give one or more widths, such as [64, 128, 256, 512]")
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Of every convolution, the one that makes the logits last."""
        return (2,) * (len(self.channels) - 1) + (1, 1)

    @property
    def min_side(self) -> int:
        """The smallest side of an image that gives a logit."""
        side = 1
        for stride in reversed(self.strides):
            side = (side - 1) * stride + KERNEL - 2
        return side

    @property
    def receptive_field(self) -> int:
        """Side of the patch in pixels that a logit sees, normalisation aside."""
        side = 1
        for stride in reversed(self.strides):
            side = (side - 1) * stride + KERNEL
        return side


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004): images => one logit a patch, high for real.

    in_channels: of the images. A conditional one is also given the small image, enlarged bilinearly.
    """

    def __init__(self, spec: DiscriminatorSpec, in_channels: int = 3) -> None:
        super().__init__()
        self.spec = spec
        widths = (in_channels + (3 if spec.conditional else 0), *spec.channels, 1)
        self.convs = nn.ModuleList(
            _conv(c_in, c_out, stride, spec.norm == "spectral")
            for (c_in, c_out), stride in zip(pairwise(widths), spec.strides, strict=True)
        )

    def forward(
        self, images: Float[Tensor, "b c h w"], low_res: Float[Tensor, "b 3 hl wl"] | None = None
    ) -> Float[Tensor, "b 1 hp wp"]:
        """images, low_res: in [-1, 1]. In training mode a spectral norm's estimate moves with every call."""
        self._check(images, low_res)
        x = images
        if low_res is not None:
            large = F.interpolate(low_res, images.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, large.to(x.dtype)], dim=1)  # [B, C+3, H, W]
        for index, conv in enumerate(self.convs[:-1]):
            x = _convolved(conv, x)  # [B, C_k, H/2^k, W/2^k]
            if self.spec.norm == "instance" and index:
                x = F.instance_norm(x)
            x = F.leaky_relu(x, 0.2)
        return _convolved(self.convs[-1], x)  # [B, 1, hp, wp]

    def _check(self, images: Tensor, low_res: Tensor | None) -> None:
        if self.spec.conditional and low_res is None:
            raise UserError("this discriminator is conditional: it needs the small image 'low_res', got none")
        if not self.spec.conditional and low_res is not None:
            raise UserError("this discriminator is not conditional: it takes no small image 'low_res', got one")
        if min(images.shape[-2:]) < self.spec.min_side:
            raise UserError(
                f"a discriminator of {len(self.spec.channels)} 'channels' needs images of at least "
                f"{self.spec.min_side} px a side, got {images.shape[-1]} × {images.shape[-2]}; give larger images "
                "or fewer 'channels'"
            )


def _conv(c_in: int, c_out: int, stride: int, spectral: bool) -> nn.Module:
    conv = nn.Conv2d(c_in, c_out, KERNEL, stride, padding=1)
    nn.init.normal_(conv.weight, std=0.02)  # Isola et al., section 6.2
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return spectral_norm(conv) if spectral else conv


def _convolved(conv: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
    """conv(x), but the power iteration behind a spectral norm keeps its precision under autocast."""
    assert isinstance(conv, nn.Conv2d)
    device = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"  # the meta device has none
    with torch.autocast(device, enabled=False):
        weight = conv.weight
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)
