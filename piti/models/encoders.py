"""Task encoders: from conditions to tokens for the prior (PITI, section 3.3)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec


class Tokens(NamedTuple):
    """Output of an encoder, for a UNet."""

    pooled: Float[Tensor, "b d"]
    """Pooled token of the whole condition, added to the time embedding."""
    sequence: Float[Tensor, "b s d"]
    """Tokens for attention."""
    residuals: tuple[Tensor, ...] | None = None
    """The aligned path: a feature map for each place in the network where one is added, in the order of
    `Wiring.aligned`."""
    maps: tuple[Tensor, ...] | None = None
    """Feature maps of the condition, finest first, for a pixel head."""
    mask: Bool[Tensor, "b s"] | None = None
    """True for tokens, false for padding; None: no padding."""

    def picked(self, rows: list[int]) -> Tokens:
        """A batch of these rows, each as often as it is named."""
        groups = (self.residuals, self.maps)
        residuals, maps = (None if group is None else tuple(x[rows] for x in group) for group in groups)
        mask = None if self.mask is None else self.mask[rows]
        return Tokens(self.pooled[rows], self.sequence[rows], residuals, maps, mask)

    def joined(self, other: Tokens) -> Tokens:
        """The rows of both, these first."""
        residuals, maps = _joined(self.residuals, other.residuals), _joined(self.maps, other.maps)
        mask = None if self.mask is None or other.mask is None else torch.cat([self.mask, other.mask])
        pooled, sequence = torch.cat([self.pooled, other.pooled]), torch.cat([self.sequence, other.sequence])
        return Tokens(pooled, sequence, residuals, maps, mask)


def _joined(ours: tuple[Tensor, ...] | None, theirs: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    if ours is None or theirs is None:
        return None
    return tuple(torch.cat(pair) for pair in zip(ours, theirs, strict=True))


class EncoderSpec(Spec):
    """A convolutional stem and a transformer. The defaults are PITI's encoder (29.29M parameters)."""

    in_channels: int = Field(default=3, ge=1)
    """Channels of the condition."""
    size: int = Field(default=256, ge=1)
    """Training size of the condition in pixels; other sizes and aspect ratios work too."""
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Widths of the stem; the first keeps the resolution, each further one halves it."""
    width: int = Field(default=512, ge=1)
    """Width D of the tokens."""
    layers: int = Field(default=8, ge=0, le=512)
    """Layers of the transformer."""
    heads: int = Field(default=8, ge=1)
    """Attention heads of the transformer, which divide the width."""
    norm_groups: int | None = Field(default=None, ge=1)
    """Groups of the stem's normalisation; null: one group per channel, which is instance normalisation."""
    residuals: bool = False
    """The aligned path into the UNet's skip connections or between a transformer's blocks (not in the paper);
    initialised to zero."""
    sequence_width: int | None = Field(default=None, ge=1)
    """Width of the tokens for attention, by a linear projection; null: `width`."""
    pooled: int | None = Field(default=None, ge=0)
    """Width of the pooled token, likewise; 0 if the UNet takes none; null: `width`."""

    @model_validator(mode="after")
    def _consistent(self) -> EncoderSpec:
        if not self.channels:
            raise UserError("'channels' is empty; give the stem at least one width")
        if self.size % self.stride:
            raise UserError(
                f"'size' {self.size} is not a multiple of {self.stride}, by which {len(self.channels)} "
                "'channels' reduce it"
            )
        if self.width % self.heads:
            raise UserError(f"'width' {self.width} is not a multiple of 'heads' {self.heads}")
        for width in self.channels:
            if self.norm_groups is not None and width % self.norm_groups:
                raise UserError(f"'channels' has {width}, not a multiple of 'norm_groups' {self.norm_groups}")
        return self

    @property
    def token_width(self) -> int:
        """Width of the tokens that attention reads."""
        return self.sequence_width or self.width

    @property
    def pooled_width(self) -> int:
        """Width of the pooled token."""
        return self.width if self.pooled is None else self.pooled

    @property
    def stride(self) -> int:
        """Pixels of the condition to one token, along a side."""
        return 2 ** (len(self.channels) - 1)


class AlignedEncoderSpec(Spec):
    """A convolutional encoder: feature maps for the UNet's skip connections and a pixel head, without tokens.

    It works at any image size, like a UNet without attention.
    """

    in_channels: int = Field(default=3, ge=1)
    """Channels of the condition."""
    size: int = Field(default=256, ge=1)
    """Side of the condition in pixels for an image of the model's size."""
    channels: tuple[int, ...] = (16, 32, 48, 64, 96)
    """Widths of the maps; the first keeps the resolution, each further one halves it."""

    @model_validator(mode="after")
    def _consistent(self) -> AlignedEncoderSpec:
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"'channels' = {list(self.channels)}; give one or more widths, such as [16, 32, 48]")
        if self.size % self.stride:
            raise UserError(
                f"'size' {self.size} is not a multiple of {self.stride}, by which {len(self.channels)} "
                "'channels' reduce it"
            )
        return self

    @property
    def stride(self) -> int:
        """Pixels of the condition to one of the coarsest map, along a side."""
        return 2 ** (len(self.channels) - 1)

    def map_shapes(self) -> list[tuple[int, int]]:
        """(channels, side) of every map at the trained size, finest first."""
        return [(width, self.size // 2**k) for k, width in enumerate(self.channels)]


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP, as in CLIP and GLIDE, with exact GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        x = x + self.attend(self.norm_attention(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))

    def attend(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        b, s, d = x.shape
        qkv = self.to_qkv(x).view(b, s, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, S, D/heads]
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, S, D/heads]
        return self.to_out(out.transpose(1, 2).reshape(b, s, d))


class ConvStem(nn.Module):
    """Convolutions that reduce a condition to the token grid, and keep the intermediate feature maps."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        widths = (spec.in_channels, *spec.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 7 if i == 0 else 3, stride=1 if i == 0 else 2, padding=3 if i == 0 else 1)
            for i, (c_in, c_out) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(spec.norm_groups or c, c) for c in spec.channels)
        self.out = nn.Conv2d(spec.channels[-1], spec.width, 3, padding=1)

    def forward(self, condition: Float[Tensor, "b c h w"]) -> tuple[Tensor, list[Tensor]]:
        """The tokens' grid [B, D, h/stride, w/stride] and the map after every convolution, finest first."""
        maps, x = [], condition
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
            maps.append(x)
        return self.out(x), maps


class AlignedResiduals(nn.Module):
    """Zero-initialised 1 × 1 convolutions from the encoder's maps to places in a UNet or transformer.

    PITI states the misalignment of small objects as a limitation, since tokens carry little spatial information. This
    path adds it. At the start of training it contributes nothing.
    """

    def __init__(self, maps: list[tuple[int, int]], places: list[tuple[int, int]], sample_size: int) -> None:
        """maps: (channels, side) of the encoder's maps at the trained size, finest first; places: (channels, level)
        where the network takes one, see `Wiring.aligned`; sample_size: side of x_t at the trained size.
        """
        super().__init__()
        self.sides = [sample_size // 2**level for _, level in places]
        self.sources = [self._source(maps, side) for side in self.sides]
        self.size = maps[0][1]
        self.convs = nn.ModuleList(
            _zero_conv(maps[source][0], channels) for source, (channels, _) in zip(self.sources, places, strict=True)
        )

    @staticmethod
    def _source(maps: list[tuple[int, int]], wanted: int) -> int:
        """The last of the maps that is at least `wanted` wide."""
        return max((index for index, (_, side) in enumerate(maps) if side >= wanted), default=0)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """maps: the encoder's, finest first; of a `ConditionEncoder` the last are its tokens as a grid [B, D, h, w]."""
        height, width = maps[0].shape[-2:]
        scaled: dict[tuple[int, int], Tensor] = {}
        residuals = []
        for source, side, conv in zip(self.sources, self.sides, self.convs, strict=True):
            if (source, side) not in scaled:
                target = (height * side // self.size, width * side // self.size)  # side, at the trained size
                scaled[source, side] = _resized(maps[source], target)
            residuals.append(conv(scaled[source, side]))
        return tuple(residuals)


def _zero_conv(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def _resized(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] >= size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="nearest")


class ConditionEncoder(nn.Module):
    """Condition [B, C, H, W] => Tokens(pooled [B, D], sequence [B, S, D], residuals or None).

    Convolutions to a grid of tokens, then a transformer over them and a pooled token (PITI, section
    3.3 and its released encoder). `places` and `sample_size` are as of `AlignedResiduals`, for the aligned path.
    """

    def __init__(
        self, spec: EncoderSpec, places: list[tuple[int, int]] | None = None, sample_size: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stem = ConvStem(spec)
        self.grid = spec.size // spec.stride
        self.pooled_token = nn.Parameter(0.02 * torch.randn(1, 1, spec.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.grid**2 + 1, spec.width))  # pooled first
        self.blocks = nn.ModuleList(TransformerBlock(spec.width, spec.heads) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        self.to_sequence = None if spec.sequence_width is None else nn.Linear(spec.width, spec.sequence_width)
        self.to_pooled = nn.Linear(spec.width, spec.pooled) if spec.pooled else None
        self.residuals = None
        if spec.residuals:
            if places is None or sample_size is None:
                raise UserError("residuals: true needs to know where the network takes maps; build a Translator")
            maps = [(width, spec.size // 2**k) for k, width in enumerate(spec.channels)]
            self.residuals = AlignedResiduals([*maps, (spec.width, self.grid)], places, sample_size)

    def forward(self, condition: Float[Tensor, "b c h w"]) -> Tokens:
        """condition: [B, in_channels, H, W], its sides multiples of the spec's `stride`; S = H·W/stride² tokens."""
        _check_condition(condition, self.spec.in_channels, self.spec.stride, self.spec.size)
        grid, maps = self.stem(condition)  # [B, D, H/stride, W/stride]
        x = grid.flatten(2).transpose(1, 2) + self.positions_on(*grid.shape[-2:])  # [B, S, D]
        pooled = (self.pooled_token + self.positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([x, pooled.to(x.dtype)], dim=1)  # [B, S+1, D]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        own = x[:, :-1]
        sequence, pooled = self.widened(own, x[:, -1])  # [B, S, D], [B, D]
        if self.residuals is None:
            return Tokens(pooled, sequence)
        tokens = own.transpose(1, 2).unflatten(2, grid.shape[-2:])  # [B, D, H/stride, W/stride]
        return Tokens(pooled, sequence, self.residuals([*maps, tokens]))

    def widened(self, sequence: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [B, S, D] and the pooled one [B, D] in the widths of the UNet."""
        if self.to_sequence is not None:
            sequence = self.to_sequence(sequence)
        if self.spec.pooled == 0:
            return sequence, pooled[:, :0]
        return sequence, pooled if self.to_pooled is None else self.to_pooled(pooled)

    def positions_on(self, height: int, width: int) -> Float[Tensor, "1 s d"]:
        """The learned positions of a grid of tokens; those of any but the trained one are interpolated.

        The trained square is stretched over the whole grid, bicubically as vision transformers do (Dosovitskiy et
        al. 2021, section 3.2), so that an edge of the condition stays an edge.
        """
        trained = self.positions[:, 1:]  # [1, g², D]
        if (height, width) == (self.grid, self.grid):
            return trained
        square = trained.transpose(1, 2).unflatten(2, (self.grid, self.grid)).float()  # [1, D, g, g]
        fitted = F.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return fitted.to(trained.dtype).flatten(2).transpose(1, 2)


class AlignedEncoder(nn.Module):
    """Condition [B, C, H, W] => Tokens(empty, empty, residuals, maps): only the aligned path, at any size.

    For upsamplers, which need details of the condition (class edges, poles, signs) that are finer than tokens can
    represent. The feature maps have no normalisation, so those of a crop equal those of the whole image.
    """

    def __init__(self, spec: AlignedEncoderSpec, places: list[tuple[int, int]], sample_size: int) -> None:
        super().__init__()
        self.spec = spec
        widths = (spec.in_channels, *spec.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=2 if k else 1, padding=1)
            for k, (c_in, c_out) in enumerate(pairwise(widths))
        )
        self.residuals = AlignedResiduals(spec.map_shapes(), places, sample_size)

    def forward(self, condition: Float[Tensor, "b c h w"]) -> Tokens:
        """condition: [B, in_channels, H, W], its sides multiples of the spec's `stride`."""
        _check_condition(condition, self.spec.in_channels, self.spec.stride, self.spec.size)
        maps, x = [], condition
        for conv in self.convs:
            x = F.silu(conv(x))  # [B, C_k, H/2^k, W/2^k]
            maps.append(x)
        empty, sequence = condition.new_empty(len(condition), 0), condition.new_empty(len(condition), 0, 0)
        return Tokens(empty, sequence, self.residuals(maps), tuple(maps))


def _check_condition(condition: Tensor, channels: int, stride: int, size: int) -> None:
    if condition.ndim != 4 or condition.shape[1] != channels or any(n < 1 or n % stride for n in condition.shape[2:]):
        raise UserError(
            f"the encoder expects a condition of shape [B, {channels}, H, W], H and W multiples of {stride} "
            f"(trained at {size}), got {list(condition.shape)}; resize it, or load the model that fits it"
        )
