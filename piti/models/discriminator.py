"""The upsampler's discriminator (PITI, eq. 5): a patch discriminator, and heads on frozen features.

Papers: PatchGAN (Isola et al. 2017, arXiv 1611.07004), spectral normalisation (Miyato et al. 2018, arXiv 1802.05957),
projected GANs (Sauer et al. 2021, arXiv 2111.01007), LPIPS (Zhang et al. 2018, arXiv 1801.03924).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec

KERNEL = 4  # of every convolution; padding 1


class DiscriminatorSpec(Spec):
    """Width and depth. The default depth has a receptive field of 70 × 70 px (Isola et al. 2017, section 6.1.2)."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the convolutions; each but the last halves the resolution."""
    norm: Literal["spectral", "instance", "none"] = "spectral"
    """spectral: normalises every weight (Miyato et al. 2018). instance: normalises every feature map but the first, as
    in Isola et al."""
    conditional: bool = True
    """Whether it also gets the small image that is enlarged."""
    condition: bool = False
    """Whether it also gets the task's condition, at the image's size."""
    pixels: bool = True
    """Whether to use a patch discriminator on pixels, or only `features`."""
    features: PerceptualSpec | None = None
    """A frozen network with a discriminator head on each of its layers (Sauer et al. 2021)."""
    feature_width: int = Field(default=64, ge=1)
    """Width of the heads on those features."""

    @model_validator(mode="after")
    def _widths(self) -> DiscriminatorSpec:
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"'channels' = {list(self.channels)}; give one or more widths, such as [64, 128, 256, 512]")
        if not self.pixels and self.features is None:
            raise UserError("'pixels' is false and 'features' are not given: nothing would be judged; give one of them")
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Of every convolution, the one that makes the logits last."""
        return (2,) * (len(self.channels) - 1) + (1, 1)

    @property
    def min_side(self) -> int:
        """The smallest side of an image that gives every logit."""
        deepest = 1 if self.features is None else self.features.min_side
        if not self.pixels:
            return deepest
        side = 1
        for stride in reversed(self.strides):
            side = (side - 1) * stride + KERNEL - 2
        return max(side, deepest)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004): images => one logit per patch, high for real.

    in_channels: of the images. A conditional one also gets the small image, enlarged bilinearly; condition_channels: of
    the task's condition, if the spec includes it.
    """

    def __init__(self, spec: DiscriminatorSpec, in_channels: int = 3, condition_channels: int = 0) -> None:
        super().__init__()
        self.spec, self.min_side = spec, spec.min_side
        told = (3 if spec.conditional else 0) + (condition_channels if spec.condition else 0)
        widths = (in_channels + told, *spec.channels, 1)
        self.convs = nn.ModuleList(
            _conv(c_in, c_out, stride, spec.norm == "spectral")
            for (c_in, c_out), stride in zip(pairwise(widths), spec.strides, strict=True)
        )

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        low_res: Float[Tensor, "b 3 hl wl"] | None = None,
        condition: Float[Tensor, "b k h w"] | None = None,
    ) -> Float[Tensor, "b 1 hp wp"]:
        """images, low_res: in [-1, 1]; condition: encoded, of the images' size. In training mode a spectral norm's
        estimate moves with every call.
        """
        _check_seen(self, images, low_res, condition)
        return self.logits(images, low_res, condition)

    def logits(self, images: Tensor, low_res: Tensor | None, condition: Tensor | None) -> Tensor:
        """As `forward`, of what was checked."""
        seen = [] if low_res is None else [enlarged_to(low_res, images)]
        seen += [] if condition is None else [condition]
        x = torch.cat([images, *(one.to(images.dtype) for one in seen)], dim=1) if seen else images  # [B, C+3+K, H, W]
        for index, conv in enumerate(self.convs[:-1]):
            x = _convolved(conv, x)  # [B, C_k, H/2^k, W/2^k]
            if self.spec.norm == "instance" and index:
                x = F.instance_norm(x)
            x = F.leaky_relu(x, 0.2)
        return _convolved(self.convs[-1], x)  # [B, 1, hp, wp]


class FeatureHead(nn.Module):
    """A discriminator head on one layer: features, and the condition at their size, => one logit per position.

    Features are normalised to unit length at every position, as in LPIPS (Zhang et al. 2018, section 3), with the
    logarithm of their length as an extra channel, so that no layer dominates.
    """

    def __init__(self, channels: int, width: int, told: int) -> None:
        super().__init__()
        self.features = spectral_norm(nn.Conv2d(channels + 1, width, 1))
        self.told = spectral_norm(nn.Conv2d(told, width, 1)) if told else None
        self.mix = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.out = spectral_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, features: Float[Tensor, "b c h w"], told: Tensor | None) -> Float[Tensor, "b 1 h w"]:
        length = features.float().square().mean(dim=1, keepdim=True).add(1e-6).sqrt()  # root mean square
        x = torch.cat([features.float() / length, length.log()], dim=1)  # [B, C+1, h, w]
        x = _convolved(self.features, x)  # [B, D, h, w]
        if self.told is not None and told is not None:
            x = x + _convolved(self.told, F.adaptive_avg_pool2d(told, (x.shape[-2], x.shape[-1])))
        x = F.leaky_relu(x, 0.2)
        x = x + F.leaky_relu(_convolved(self.mix, x), 0.2)
        return _convolved(self.out, x)


class DiscriminatorEnsemble(nn.Module):
    """A patch discriminator on pixels, and heads on a frozen network's features at several depths, each with its own
    logits.

    A projected discriminator (Sauer et al. 2021, arXiv 2111.01007): the network's layers cover scales from edges to
    objects, and only the heads are trained. frozen: its weights are not part of this module, so that they are neither
    saved nor optimised.
    """

    def __init__(self, spec: DiscriminatorSpec, frozen: PerceptualNetwork | None, condition_channels: int = 0) -> None:
        super().__init__()
        self.spec, self.min_side = spec, spec.min_side
        self.pixels = PatchDiscriminator(spec, condition_channels=condition_channels) if spec.pixels else None
        told = (3 if spec.conditional else 0) + (condition_channels if spec.condition else 0)
        widths = [] if frozen is None else frozen.widths
        self.heads = nn.ModuleList(FeatureHead(width, spec.feature_width, told) for width in widths)
        self._frozen = (frozen,)  # in a tuple: not registered

    @property
    def frozen(self) -> PerceptualNetwork | None:
        """The network whose features are judged. It has to be brought to the images' device by itself."""
        return self._frozen[0]

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        low_res: Float[Tensor, "b 3 hl wl"] | None = None,
        condition: Float[Tensor, "b k h w"] | None = None,
    ) -> tuple[Tensor, ...]:
        """images, low_res: in [-1, 1]; condition: encoded, of the images' size. Returns logits [B, 1, h, w], those of
        pixels first, then one map a layer of the frozen network.
        """
        _check_seen(self, images, low_res, condition)
        logits = [] if self.pixels is None else [self.pixels.logits(images, low_res, condition)]
        if self.frozen is None:
            return tuple(logits)
        told = ([] if low_res is None else [enlarged_to(low_res, images)]) + ([] if condition is None else [condition])
        seen = torch.cat([one.float() for one in told], dim=1) if told else None  # [B, 3+K, H, W]
        features = self.frozen(images)
        return (*logits, *(head(x, seen) for head, x in zip(self.heads, features, strict=True)))


Discriminator = PatchDiscriminator | DiscriminatorEnsemble


def all_logits(judged: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a discriminator returned, as several maps of logits."""
    return (judged,) if isinstance(judged, Tensor) else tuple(judged)


def enlarged_to(low_res: Float[Tensor, "b 3 hl wl"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """The small image, bilinearly, at the size of the images."""
    if low_res.shape[-2:] == images.shape[-2:]:
        return low_res
    return F.interpolate(low_res, images.shape[-2:], mode="bilinear", align_corners=False)


def _check_seen(discriminator: Discriminator, images: Tensor, low_res: Tensor | None, condition: Tensor | None) -> None:
    """Raises UserError unless a discriminator is given just what it sees, and images that are large enough."""
    spec = discriminator.spec
    if spec.conditional and low_res is None:
        raise UserError("this discriminator is conditional: it needs the small image 'low_res', got none")
    if not spec.conditional and low_res is not None:
        raise UserError("this discriminator is not conditional: it takes no small image 'low_res', got one")
    if spec.condition != (condition is not None):
        needs, got = ("needs a", "none") if spec.condition else ("takes no", "one")
        raise UserError(f"this discriminator {needs} condition, got {got}; see 'condition' in its spec")
    if min(images.shape[-2:]) < discriminator.min_side:
        raise UserError(
            f"a discriminator of {len(spec.channels)} 'channels' needs images of at least "
            f"{discriminator.min_side} px a side, got {images.shape[-1]} × {images.shape[-2]}; give larger images "
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
