"""The pixel head: from a UNet's features on a coarse grid to pixels, by steps that each double the sides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec


class PixelHeadSpec(Spec):
    """Widths on the way from the UNet's grid to pixels; there are log2(patch_size) steps."""

    channels: tuple[int, ...] = (48, 32)
    """Width after every step, coarsest first."""
    layers: int = Field(default=1, ge=0, le=512)
    """Residual blocks at each step."""
    enlarge: Literal["shuffle", "bilinear"] = "shuffle"
    """How a step doubles the sides: by a pixel shuffle, whose four pixels have weights of their own (Shi et al. 2016,
    arXiv 1609.05158), or bilinearly before it convolves, which leaves no grid (Odena et al. 2016, doi
    10.23915/distill.00003) and costs a convolution less."""

    @model_validator(mode="after")
    def _widths(self) -> PixelHeadSpec:
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"'channels' = {list(self.channels)}; give one width for each doubling, such as [48, 32]")
        return self


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity, without normalisation: detail keeps its contrast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # at the start the identity
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.second(F.silu(self.first(F.silu(x))))


class _Shuffle(nn.Conv2d):
    """Four times the width, then a pixel shuffle. At the start the four pixels of a place are equal: enlarged by the
    nearest neighbour, without a grid (Aitken et al. 2017, arXiv 1707.02937).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, 4 * c_out, 3, padding=1)
        assert self.bias is not None
        with torch.no_grad():
            self.weight.copy_(self.weight[::4].repeat_interleave(4, dim=0))
            self.bias.copy_(self.bias[::4].repeat_interleave(4))

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.pixel_shuffle(super().forward(input), 2)


class _Bilinear(nn.Module):
    """Twice the sides, nothing learned: the convolution that follows sees neighbours instead of one place's four."""

    def __init__(self, _c_in: int, _c_out: int) -> None:
        super().__init__()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class PixelHead(nn.Module):
    """A UNet's features [B, F, H/p, W/p] => [B, out_channels, H, W] with p = 2^steps.

    Instead of one pixel shuffle by p, whose p² pixels are made by one linear map of the same features, each step
    enlarges twice (`PixelHeadSpec.enlarge`), sees the condition's map of its own size, and the last one what the UNet
    saw (noise and small image) at every pixel.
    """

    def __init__(
        self, spec: PixelHeadSpec, in_channels: int, out_channels: int, seen_channels: int, maps: Sequence[int] = ()
    ) -> None:
        """seen_channels: of the UNet's input at every pixel; maps: widths of the condition's maps, finest first."""
        super().__init__()
        steps = len(spec.channels)
        told = [maps[k] if k < len(maps) else 0 for k in reversed(range(steps))]  # of the map at each step's size
        extra = [*told[:-1], told[-1] + seen_channels]
        shuffled = spec.enlarge == "shuffle"
        enlarge, enlarged = (_Shuffle, spec.channels) if shuffled else (_Bilinear, (in_channels, *spec.channels[:-1]))
        self.enlarge = nn.ModuleList(enlarge(*widths) for widths in pairwise((in_channels, *spec.channels)))
        self.join = nn.ModuleList(
            nn.Conv2d(c_in + more, c_out, 3, padding=1)
            for c_in, more, c_out in zip(enlarged, extra, spec.channels, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(spec.layers))) for width in spec.channels
        )
        self.out = nn.Conv2d(spec.channels[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)  # at the start an upsampler with preconditioning is bilinear
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(
        self, features: Float[Tensor, "b f h w"], seen: Float[Tensor, "b s h2 w2"], maps: Sequence[Tensor] = ()
    ) -> Float[Tensor, "b o h2 w2"]:
        """features: of the UNet; seen: its input before it was folded, [B, S, H, W]; maps: the condition's."""
        x, last = features.contiguous(memory_format=self._layout), len(self.enlarge) - 1
        for step, (enlarge, join, block) in enumerate(zip(self.enlarge, self.join, self.blocks, strict=True)):
            x = enlarge(F.silu(x))  # [B, C_k, 2h, 2w]
            told = [maps[last - step]] if last - step < len(maps) else []
            given = [one.to(x.dtype, memory_format=self._layout) for one in (*told, *([seen] if step == last else []))]
            x = block(join(torch.cat([x, *given], dim=1)))
        return self.out(F.silu(x))

    @property
    def _layout(self) -> torch.memory_format:
        """How the weights lie in memory: what comes in follows, or every convolution would copy it."""
        last = self.out.weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format
