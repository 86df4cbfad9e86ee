"""Sketches: lines, dark on light or light on dark, encoded as the distance to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Size, register, sides_of
from piti.conditions.class_table import Colour
from piti.conditions.mask import nearest_positions
from piti.core.images import Box
from piti.core.spec import Spec, SpecError

INK: Colour = (24, 24, 40)
"""What previews draw lines in: a picture of this and pure white alone is read as lines on paper, however dense."""

_FAR = 1 << 16  # the distance to a line where there is none
_FAINT = 32  # what differs from the paper by less, of 255, is no line: grain, creases, JPEG's noise


class _SketchConfig(Spec):
    """What a sketch condition saves."""

    kind: Literal["sketch"] = "sketch"
    threshold: float = Field(0.35, gt=0, lt=1)
    null_value: float = 1.0
    clip: int = Field(255, ge=2, le=_FAR)


@register
@dataclass(frozen=True)
class SketchCondition(Condition):
    """Lines, one channel: how far every pixel is from the nearest one.

    Raw form: uint8 [1, h, w], 1 on lines, 0 elsewhere. Encoded: the L1 (city-block) distance to the nearest line
    in pixels, clipped at `clip`, then brought to [-1, 1], so that lines are -1; without any line 1 everywhere. At a
    clip of 255 this is what the released sketch models read: OpenCV's DIST_L1 on a 3 x 3 neighbourhood, which for
    L1 is exact. They were trained at 256 px; elsewhere the same drawing has other distances, and another model. At
    64 px a clip of 64 or less spreads the distances that occur over more of the range.

    Files may be drawings or edge maps, in colour, grey or black and white, see `lines_of`. threshold: how strong a
    line must be, between 0 and 1. (The release binarised its edge maps at 0.6 beforehand; such files are read
    as they are, whatever the threshold.) null_value fills the null condition: ones, as in the release, which
    is also how a page without lines encodes. To such a model an empty page says nothing, and is sampled so.
    """

    kind: ClassVar[str] = "sketch"

    threshold: float = 0.35
    null_value: float = 1.0
    clip: int = 255

    def __post_init__(self) -> None:
        """Raises ConditionError for a threshold that is not between 0 and 1, or a clip below 2."""
        _parsed(self._settings(), "SketchCondition")

    @property
    def channels(self) -> int:
        """One: the distance."""
        return 1

    def read(self, image: Image.Image, source: str) -> UInt8[Tensor, "1 h w"]:
        """Lines of a decoded picture, 1 on lines; a blank page has none.

        Raises ConditionError for floating-point pixels, which have no fixed range.
        """
        lines = lines_of(_pixels(image, source), self.threshold)
        return torch.from_numpy(lines.astype(np.uint8))[None]

    def checked(self, raw: Tensor, source: str) -> UInt8[Tensor, "1 h w"]:
        """Lines [1, h, w] as they are. Raises ConditionError for another shape, type, or value."""
        if raw.ndim != 3 or len(raw) != 1 or raw.dtype != torch.uint8:
            shape = f"{list(raw.shape)} of {raw.dtype}"
            raise ConditionError(
                f"{source}: expected lines [1, h, w] of torch.uint8, 1 on a line and 0 elsewhere, got {shape}; "
                "convert it, or hand in a picture"
            )
        odd = raw[raw > 1]
        if len(odd):
            raise ConditionError(
                f"{source}: {len(odd)} pixels hold values such as {int(odd[0])}; lines are 1, the rest is 0: compare "
                "with a threshold first, or hand in a picture"
            )
        return raw

    def crop_resize(self, raw: UInt8[Tensor, "1 h w"], box: Box, size: Size) -> UInt8[Tensor, "1 h2 w2"]:
        """Cut `box` out and resize it so that no line is lost.

        Shrinking, every source pixel belongs to the one target pixel that holds its centre, and a target pixel is
        a line if any of its source pixels is: lines stay connected and at least one pixel wide, and none
        grows. Enlarging, it is nearest neighbour, as PIL's to the pixel. (The released code takes the nearest
        neighbour throughout, which tears thin lines where it shrinks; at equal size all agree.)
        """
        height, width = sides_of(size)
        first, last = _source_spans(box.top, box.height, height)
        lines = _any_between(raw != 0, first.to(raw.device), last.to(raw.device))  # [1, h2, w]
        first, last = _source_spans(box.left, box.width, width)
        lines = _any_between(lines.mT, first.to(raw.device), last.to(raw.device))  # [1, w2, h2]
        return lines.mT.to(torch.uint8)

    def encode(self, raw: Shaped[Tensor, "*batch 1 h w"]) -> Float[Tensor, "*batch 1 h w"]:
        """Distances to the nearest line in [-1, 1], float32."""
        return city_block_distance(raw != 0).clamp(max=self.clip).float().div_(self.clip / 2).sub_(1)

    def preview(self, raw: UInt8[Tensor, "1 h w"]) -> Image.Image:
        """Lines in `INK` on white; `read` of the result gives `raw` again."""
        colours = np.array([(255, 255, 255), INK], np.uint8)
        return Image.fromarray(colours[raw[0].cpu().numpy()])

    def to_config(self) -> dict[str, Any]:
        """Kind, threshold, null value and clip as plain data."""
        return _SketchConfig.parse(self._settings(), "SketchCondition").to_dict()

    def _settings(self) -> dict[str, float]:
        return {"threshold": self.threshold, "null_value": self.null_value, "clip": self.clip}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> SketchCondition:
        """Build from `to_config`'s data. Raises ConditionError, naming source and key."""
        parsed = _parsed(config, source)
        return cls(parsed.threshold, parsed.null_value, parsed.clip)


def _parsed(config: Mapping[str, Any], source: str) -> _SketchConfig:
    try:
        return _SketchConfig.parse(config, source)
    except SpecError as error:
        raise ConditionError.like(error) from None


# Distances


def city_block_distance(lines: Bool[Tensor, "*batch h w"]) -> Int[Tensor, "*batch h w"]:
    """L1 distance of every pixel to the nearest True, in pixels, int32, on the device of `lines`.

    The distance separates: min over rows and columns of |y - y'| + |x - x'| is a pass down the columns, then
    one along the rows. Without any True it is at least 65,536 everywhere.
    """
    far = max(_FAR, sum(lines.shape[-2:]))
    distance = torch.where(lines, 0, far).to(torch.int32)
    for axis in (-2, -1):
        distance = _nearest_along(distance, axis)
    return distance


def _nearest_along(cost: Int[Tensor, "*batch h w"], axis: int) -> Int[Tensor, "*batch h w"]:
    """min over j of cost[j] + |i - j| along an axis: what lies before i, then what lies after."""
    place = torch.arange(cost.shape[axis], dtype=cost.dtype, device=cost.device)
    place = place[:, None] if axis == -2 else place
    before = (cost - place).cummin(axis).values + place
    after = (cost + place).flip(axis).cummin(axis).values.flip(axis) - place
    return torch.minimum(before, after)


# Resizing


def _source_spans(start: int, length: int, size: int) -> tuple[Int[Tensor, " size"], Int[Tensor, " size"]]:
    """First source position of each of `size` pixels over [start, start + length), and the one after its last."""
    if size >= length:
        first = nearest_positions(start, length, size)
        return first, first + 1
    # Source pixel j lies in target pixel floor((j + 1/2) · size / length).
    edges = -((size - 2 * length * torch.arange(size + 1)) // (2 * size)) + start
    return edges[:-1], edges[1:]


def _any_between(
    lines: Bool[Tensor, "1 n w"], first: Int[Tensor, " size"], last: Int[Tensor, " size"]
) -> Bool[Tensor, "1 size w"]:
    """Whether any of the rows first[i] to last[i] - 1 is True, for each i."""
    counts = torch.nn.functional.pad(lines.cumsum(-2, dtype=torch.int32), (0, 0, 1, 0))  # [1, n + 1, w]
    return counts[:, last] > counts[:, first]


# Reading


def lines_of(pixels: UInt8[np.ndarray, "h w 4"], threshold: float) -> Bool[np.ndarray, "h w"]:
    """Where an RGBA picture has lines: where it differs enough, in any channel, from its paper.

    Paper is the lighter or the darker end of the greys, by `_paper_is_light`; transparent pixels are paper. On
    dark paper `threshold` is a share of the way from there to white, so that a soft edge map (black counts as
    black up to a little noise) is cut at threshold · 255. On light paper it is a share of the way to the
    ink, so that faint pencil counts. A picture without contrast has no lines.
    """
    ink, white = _is_colour(pixels, INK), _is_colour(pixels, (255, 255, 255))
    if (ink | white).all():
        return ink
    paper = _paper_of(pixels)
    steps = (np.abs(pixels[..., c] - paper[c]) for c in range(3))
    difference = reduce(np.maximum, steps) * (pixels[..., 3] / np.float32(255))  # [h, w]; laid on it, then compared
    strong = difference[difference >= _FAINT]
    if not strong.size:
        return np.zeros(difference.shape, bool)
    reach = np.percentile(strong, 95) if paper.mean() > 127 else 255 - paper.min()
    return difference > threshold * reach


def _pixels(image: Image.Image, source: str) -> UInt8[np.ndarray, "h w 4"]:
    """Any picture as 8-bit RGBA.

    Greys of nothing but 0 and 1 are black and white (a JPEG's are noise on black); greys of 16 or 32 bits are
    scaled down unless all of them fit 8.
    """
    if image.mode == "F":
        raise ConditionError(f"{source}: floating-point pixels have no fixed range; save the sketch as 8-bit PNG")
    if image.mode.startswith("I") or (image.mode == "L" and not image.has_transparency_data):
        values = np.asarray(image).clip(0, 65535)
        if values.max() <= 1 and image.format != "JPEG":
            values = values * 255
        elif values.max() > 255:
            values = values // 257
        image = Image.fromarray(values.astype(np.uint8))
    return np.asarray(image.convert("RGBA"))


def _is_colour(pixels: UInt8[np.ndarray, "h w 4"], colour: Colour) -> Bool[np.ndarray, "h w"]:
    """Where a picture has exactly this colour, opaque."""
    code = np.array([*colour, 255], np.uint8).view(np.uint32)
    return np.ascontiguousarray(pixels).view(np.uint32)[..., 0] == code


def _grey(colours: Shaped[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any"]:
    """Rec. 601 luma."""
    return colours.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _paper_of(pixels: UInt8[np.ndarray, "h w 4"]) -> Float[np.ndarray, " 3"]:
    """The colour of the paper; where most is transparent, white or black, whichever is farther from the strokes."""
    opaque = pixels[..., 3] > 127
    grey = _grey(pixels[..., :3])
    if opaque.mean() <= 0.5:
        light = not opaque.any() or np.median(grey[opaque]) < 128
        return np.full(3, 255.0 if light else 0.0, np.float32)
    ends = _ends(grey, opaque, 1 / 8)
    paper = np.median(pixels[ends[_paper_is_light(grey, opaque)]][:, :3], axis=0).astype(np.float32)
    return paper if paper.max() > _FAINT else np.zeros(3, np.float32)


def _ends(
    grey: Float[np.ndarray, "h w"], opaque: Bool[np.ndarray, "h w"], share: float
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The darkest and the lightest opaque pixels: this share of the range of greys, which a few specks do not set."""
    low, high = np.percentile(grey[opaque], [0.1, 99.9])
    margin = (high - low) * share
    return opaque & (grey <= low + margin), opaque & (grey >= high - margin)


def _paper_is_light(grey: Float[np.ndarray, "h w"], opaque: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the light end of the greys is the paper and the dark one the lines.

    Paper is the end with more pixels: soft lines are in between, paper is not. Where there is little in between
    and both ends are large, as where thick lines are black and white, paper is the half of the greys whose
    pixels lie deeper: lines are narrow, and what they enclose is not.
    """
    dark, light = (float(end.mean()) for end in _ends(grey, opaque, 1 / 8))
    if dark + light < 0.4 or max(dark, light) > 3 * min(dark, light):
        return light >= dark
    dark_depth, light_depth = (_depth(half) for half in _ends(grey, opaque, 1 / 2))
    return light >= dark if light_depth == dark_depth else light_depth > dark_depth


def _depth(region: Bool[np.ndarray, "h w"]) -> float:
    """How far from the outside the inner tenth of a region's pixels lies at least."""
    distance = city_block_distance(torch.from_numpy(~region)).numpy()
    return float(np.percentile(distance[region], 90))
