"""Sketches: lines, dark on light or light on dark, encoded as a distance map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Pen, Size, register, sides_of
from piti.conditions.drawings import check_drawing
from piti.conditions.lines import FAR, INK, city_block_distance, lines_of, rgba_of
from piti.conditions.mask import nearest_positions
from piti.core.formats import lossy
from piti.core.images import Box
from piti.core.spec import Spec, SpecError


class _SketchConfig(Spec):
    """Saved configuration of a sketch condition."""

    kind: Literal["sketch"] = "sketch"
    threshold: float = Field(0.35, gt=0, lt=1)
    null_value: float = 1.0
    clip: int = Field(255, ge=2, le=FAR)


@register
@dataclass(frozen=True)
class SketchCondition(Condition):
    """Lines, encoded in one channel as the distance of each pixel to the nearest line.

    Raw form: uint8 [1, h, w], 1 on lines, 0 elsewhere. Encoded: the L1 (city-block) distance to the nearest line in
    pixels, clipped at `clip`, then scaled to [-1, 1], so that lines are -1; without any line 1 everywhere. With a clip
    of 255 this is the input of the released sketch models: OpenCV's DIST_L1 on a 3 x 3 neighbourhood, which is exact
    for L1. They were trained at 256 px; at other sizes the distances differ, which needs another model. At 64 px, a
    clip of 64 or less uses more of the range.

    Files may be drawings or edge maps, in colour, grey or black and white, see `lines_of`. threshold: smallest strength
    of a line, between 0 and 1. (The release binarised its edge maps at 0.6; such files do not depend on the threshold.)
    null_value fills the null condition: ones, as in the release, which equals an empty page, so such models sample it
    without a condition.
    """

    kind: ClassVar[str] = "sketch"
    usual_folder: ClassVar[str | None] = "sketches"

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
        """Lines of a decoded image, 1 on lines; a blank page has none.

        Raises ConditionError for floating-point pixels, which have no fixed range, and for photographs and class masks,
        see `check_drawing`.
        """
        pixels = rgba_of(image, source)
        lines = lines_of(pixels, self.threshold)
        check_drawing(pixels, lines, bool(lossy(image)), source)
        return torch.from_numpy(lines.astype(np.uint8))[None]

    def checked(self, raw: Tensor, source: str) -> UInt8[Tensor, "1 h w"]:
        """Return lines [1, h, w]. Raises ConditionError for another shape, dtype, or value."""
        if raw.ndim != 3 or len(raw) != 1 or raw.dtype != torch.uint8:
            shape = f"{list(raw.shape)} of {raw.dtype}"
            raise ConditionError(
                f"{source}: expected lines [1, h, w] of torch.uint8, 1 on a line and 0 elsewhere, got {shape}; "
                "convert it, or give an image"
            )
        odd = raw[raw > 1]
        if len(odd):
            raise ConditionError(
                f"{source}: {len(odd)} pixels hold values such as {int(odd[0])}; lines are 1, the rest is 0: apply a "
                "threshold first, or give an image"
            )
        return raw

    def crop_resize(self, raw: UInt8[Tensor, "1 h w"], box: Box, size: Size) -> UInt8[Tensor, "1 h2 w2"]:
        """Crop `box` and resize it without losing lines.

        When downsampling, every source pixel belongs to the target pixel that contains its centre, and a target pixel
        is a line if any of its source pixels is: lines stay connected and at least one pixel wide, and do not grow.
        Upsampling is nearest neighbour, equal to PIL's. (The released code always uses nearest neighbour, which breaks
        thin lines in downsampling; at equal size all agree.)
        """
        height, width = sides_of(size)
        first, last = _source_spans(box.top, box.height, height)
        lines = _any_between(raw != 0, first.to(raw.device), last.to(raw.device))  # [1, h2, w]
        first, last = _source_spans(box.left, box.width, width)
        lines = _any_between(lines.mT, first.to(raw.device), last.to(raw.device))  # [1, w2, h2]
        return lines.mT.to(torch.uint8)

    def redrawn(self, raw: UInt8[Tensor, "1 h w"], pen: Pen) -> UInt8[Tensor, "1 h w"]:
        """Transform the lines by `pen`, True on a line."""
        return pen(raw[0] != 0)[None].to(torch.uint8)

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


# Resizing


def _source_spans(start: int, length: int, size: int) -> tuple[Int[Tensor, " size"], Int[Tensor, " size"]]:
    """First source position of each of `size` pixels over [start, start + length), and the one after its last."""
    if size >= length:
        first = nearest_positions(start, length, size)
        return first, first + 1
    # Source pixel j is in target pixel floor((j + 1/2) · size / length).
    edges = -((size - 2 * length * torch.arange(size + 1)) // (2 * size)) + start
    return edges[:-1], edges[1:]


def _any_between(
    lines: Bool[Tensor, "1 n w"], first: Int[Tensor, " size"], last: Int[Tensor, " size"]
) -> Bool[Tensor, "1 size w"]:
    """Whether any of the rows first[i] to last[i] - 1 is True, for each i."""
    counts = torch.nn.functional.pad(lines.cumsum(-2, dtype=torch.int32), (0, 0, 1, 0))  # [1, n + 1, w]
    return counts[:, last] > counts[:, first]
