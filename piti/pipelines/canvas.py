"""Sizes of images for conditions of any aspect ratio, and the canvas that the networks work on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from piti.conditions import Condition, ConditionError
from piti.core.errors import UserError, option
from piti.core.images import Box
from piti.models import Translator

MAX_RATIO = 4
"""Largest aspect ratio of a condition; the networks were trained on squares."""
MAX_ENLARGED = 4
"""Largest ratio of the requested size to the size that a model was trained for."""
MIN_SIZE = 16
"""Smallest short side in pixels that may be requested, unless the model was trained for a smaller one."""


@runtime_checkable
class Sized(Protocol):
    """What determines a canvas: a network that generates images from a condition, or enlarges them."""

    @property
    def image_size(self) -> int: ...

    @property
    def low_res(self) -> int | None: ...

    @property
    def granularity(self) -> int: ...

    @property
    def condition_side(self) -> int | None: ...


@dataclass(frozen=True)
class Canvas:
    """The area that the networks generate, and the part of it that is the image.

    The image has the condition's aspect ratio, up to rounding to whole pixels. It is the upper left part of the canvas;
    the rest is generated too, then cropped away.
    """

    image_height: int
    """In pixels of the image."""
    image_width: int
    base_size: tuple[int, int]
    """(height, width) of the canvas in pixels of the base's images, multiples of the networks' granularity."""
    scale: int = 1
    """Side of the image divided by that of the base's image."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the canvas in pixels of the image."""
        height, width = self.base_size
        return height * self.scale, width * self.scale

    def crop(self, images: Shaped[Tensor, "*batch h w"]) -> Shaped[Tensor, "*batch h2 w2"]:
        """Crop the image from a canvas of the same scale."""
        return images[..., : self.image_height, : self.image_width]


def canvas_of(
    condition: Condition,
    raw: Shaped[Tensor, "K h w"],
    base: Sized,
    upsampler: Translator | None,
    size: int | None = None,
    source: str = "the condition",
) -> Canvas:
    """The canvas of a condition in raw form.

    upsampler: the network that enlarges the base's images, if any.
    size: the image's short side, from `MIN_SIZE` to `MAX_ENLARGED` times the training size. By default the training
    size, so that objects have the scale of the training images.

    Conditions without a size (texts) give a square. Raises ConditionError, naming `source`, for an aspect ratio above
    `MAX_RATIO`, and UserError for an invalid size.
    """
    rows, columns = raw.shape[-2:] if condition.spatial else (1, 1)
    return canvas_over(rows, columns, base, upsampler, size, source)


def canvas_over(
    rows: int, columns: int, base: Sized, upsampler: Translator | None, size: int | None = None, source: str = "it"
) -> Canvas:
    """The canvas for the aspect ratio of rows and columns; otherwise as `canvas_of`."""
    last = base if upsampler is None else upsampler
    scale = last.image_size // base.image_size
    short = last.image_size if size is None else _checked(size, last.image_size, upsampler is None)
    check_proportions(rows, columns, source)
    height, width = (max(short, _rounded(short * side / min(rows, columns))) for side in (rows, columns))
    unit = math.lcm(base.granularity, 1 if upsampler is None else _unit_of(upsampler))
    base_size = (_up(height, unit * scale) // scale, _up(width, unit * scale) // scale)
    return Canvas(height, width, base_size, scale)


def check_proportions(rows: int, columns: int, source: str) -> None:
    """Raise ConditionError, naming `source`, for an aspect ratio above `MAX_RATIO`."""
    if min(rows, columns) * MAX_RATIO < max(rows, columns):
        raise ConditionError(
            f"is {columns} x {rows} pixels; at most {MAX_RATIO}:1 is supported",
            remedy="crop it, or cut it into pieces",
            local_remedy=f"use only its centre square, by {option('square')}",
            source=source,
        )


def fitted(condition: Condition, raw: Shaped[Tensor, "K h w"], canvas: Canvas, translator: Sized) -> Tensor:
    """A raw condition at the encoder's resolution, over the whole canvas; text is unchanged.

    It is resized to the image's part of the canvas, rounded to whole pixels of the encoder. Beyond that, its last
    column and row are repeated in raw form, which keeps classes, missing values and distances to lines.
    """
    if not condition.spatial:
        return raw
    side, size = _read_sides(translator)
    whole = (canvas.base_size[0] * size // side, canvas.base_size[1] * size // side)
    part = part_of(canvas, translator)
    resized = condition.crop_resize(raw, Box(0, 0, raw.shape[-1], raw.shape[-2]), part)
    return resized if part == whole else extended(resized, whole)


def content_hash(content: Tensor) -> str:
    """The hash of a condition as an encoder reads it, see `fitted`."""
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def part_of(canvas: Canvas, translator: Sized) -> tuple[int, int]:
    """(height, width) of the image's part of the canvas at the encoder's resolution.

    Raises UserError for a network that does not read image conditions.
    """
    side, size = _read_sides(translator)
    zoom = size / side
    return _within(canvas.image_height, canvas, zoom), _within(canvas.image_width, canvas, zoom)


def extended(raw: Shaped[Tensor, "K h w"], size: tuple[int, int]) -> Shaped[Tensor, "K h2 w2"]:
    """Extend to `size` (height, width) by repeating the last column and row."""
    rows, columns = (torch.arange(n).clamp(max=have - 1) for n, have in zip(size, raw.shape[-2:], strict=True))
    return raw[:, rows[:, None], columns]


def batches_alike(canvases: Sequence[Canvas], most: int) -> list[list[int]]:
    """Positions of canvases grouped by size, at most `most` per group, in the order in which sizes first occur."""
    alike: dict[tuple[int, int], list[int]] = {}
    for position, canvas in enumerate(canvases):
        alike.setdefault(canvas.base_size, []).append(position)
    return [rows[k : k + most] for rows in alike.values() for k in range(0, len(rows), most)]


def enlarged(canvas: Canvas, least: int) -> tuple[int, int]:
    """(width, height) of a canvas's image, enlarged if its short side is below `least`."""
    factor = max(1.0, least / min(canvas.image_width, canvas.image_height))
    return round(canvas.image_width * factor), round(canvas.image_height * factor)


def _checked(size: int, trained: int, alone: bool) -> int:
    """Check a size. alone: without an upsampler. Raises UserError if it is out of range."""
    least, most = min(MIN_SIZE, trained), MAX_ENLARGED * trained
    if not least <= size <= most:
        why = f" without an upsampler (it has none, or {option('base_only')} is set)" if alone else ""
        raise UserError(
            f"this model was trained for {trained} px{why}",
            remedy=f"give {least} to {most}",
            option="size",
            value=size,
        )
    return size


def _unit_of(upsampler: Translator) -> int:
    """The unit of which sides of small images must be multiples for the upsampler."""
    return upsampler.granularity // math.gcd(upsampler.granularity, upsampler.scale)


def _read_sides(translator: Sized) -> tuple[int, int]:
    """The base's image size, and the size of the condition that the encoder reads for it. Raises UserError."""
    if translator.condition_side is None:
        raise UserError("this translator reads no image as its condition")
    return translator.low_res or translator.image_size, translator.condition_side


def _within(length: int, canvas: Canvas, zoom: float) -> int:
    """The length in encoder pixels of `length` image pixels. zoom: encoder pixels per base pixel."""
    return max(1, _rounded(length / canvas.scale * zoom))


def _rounded(value: float) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + 0.5)


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit
