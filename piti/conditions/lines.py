"""Extracting the lines of a drawing on any paper, and distances to them."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor

from piti.conditions.base import ConditionError
from piti.conditions.class_table import Colour

INK: Colour = (24, 24, 40)
"""Line colour of previews: an image of only this and pure white is read as lines on paper, however dense."""

FAR = 1 << 16
"""The distance if there are no lines."""

_FAINT = 32  # smallest difference of lines from the paper, of 255, above grain, creases and JPEG noise


# Distances


def city_block_distance(lines: Bool[Tensor, "*batch h w"]) -> Int[Tensor, "*batch h w"]:
    """L1 distance of every pixel to the nearest True, in pixels, int32, on the device of `lines`.

    The distance is separable: the minimum over rows and columns of |y - y'| + |x - x'| is a pass along the columns,
    then one along the rows. Without any True it is at least 65,536 everywhere.
    """
    far = max(FAR, sum(lines.shape[-2:]))
    distance = torch.where(lines, 0, far).to(torch.int32)
    for axis in (-2, -1):
        distance = _nearest_along(distance, axis)
    return distance


def _nearest_along(cost: Int[Tensor, "*batch h w"], axis: int) -> Int[Tensor, "*batch h w"]:
    """min over j of cost[j] + |i - j| along an axis: first over j ≤ i, then over j ≥ i."""
    place = torch.arange(cost.shape[axis], dtype=cost.dtype, device=cost.device)
    place = place[:, None] if axis == -2 else place
    before = (cost - place).cummin(axis).values + place
    after = (cost + place).flip(axis).cummin(axis).values.flip(axis) - place
    return torch.minimum(before, after)


# Reading


def lines_of(pixels: UInt8[np.ndarray, "h w 4"], threshold: float) -> Bool[np.ndarray, "h w"]:
    """The lines of an RGBA image: pixels that differ sufficiently from the paper in any channel.

    Paper is the lightest or the darkest grey value, see `_paper_is_light`; transparent pixels are paper. On dark paper,
    `threshold` is relative to the range from paper to white, so that a soft edge map (black up to a little noise) is
    cut at threshold · 255. On light paper it is relative to the range from paper to ink, so that faint pencil counts.
    An image without contrast has no lines.
    """
    ink, white = _is_colour(pixels, INK), _is_colour(pixels, (255, 255, 255))
    if (ink | white).all():
        return ink
    paper = _paper_of(pixels)
    steps = (np.abs(pixels[..., c] - paper[c]) for c in range(3))
    difference = reduce(np.maximum, steps) * (
        pixels[..., 3] / np.float32(255)
    )  # [h, w]; composited over it, then compared
    strong = difference[difference >= _FAINT]
    if not strong.size:
        return np.zeros(difference.shape, bool)
    reach = np.percentile(strong, 95) if paper.mean() > 127 else 255 - paper.min()
    return difference > threshold * reach


def rgba_of(image: Image.Image, source: str) -> UInt8[np.ndarray, "h w 4"]:
    """Convert any image to 8-bit RGBA.

    Greyscale with only 0 and 1 is black and white (except in a JPEG, where it is noise on black); 16-bit and 32-bit
    greyscale is scaled down unless all values fit 8 bits.
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
    """Pixels with exactly this colour, opaque."""
    code = np.array([*colour, 255], np.uint8).view(np.uint32)
    return np.ascontiguousarray(pixels).view(np.uint32)[..., 0] == code


def grey_of(colours: Shaped[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any"]:
    """Rec. 601 luma."""
    return colours.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _paper_of(pixels: UInt8[np.ndarray, "h w 4"]) -> Float[np.ndarray, " 3"]:
    """The colour of the paper; for mostly transparent images white or black, whichever is farther from the strokes."""
    opaque = pixels[..., 3] > 127
    grey = grey_of(pixels[..., :3])
    if opaque.mean() <= 0.5:
        light = not opaque.any() or np.median(grey[opaque]) < 128
        return np.full(3, 255.0 if light else 0.0, np.float32)
    ends = _ends(grey, opaque, 1 / 8)
    paper = np.median(pixels[ends[_paper_is_light(grey, opaque)]][:, :3], axis=0).astype(np.float32)
    return paper if paper.max() > _FAINT else np.zeros(3, np.float32)


def _ends(
    grey: Float[np.ndarray, "h w"], opaque: Bool[np.ndarray, "h w"], share: float
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The darkest and lightest opaque grey values, as robust quantiles."""
    low, high = np.percentile(grey[opaque], [0.1, 99.9])
    margin = (high - low) * share
    return opaque & (grey <= low + margin), opaque & (grey >= high - margin)


def _paper_is_light(grey: Float[np.ndarray, "h w"], opaque: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the paper is light and the lines are dark.

    Paper is the end of the grey values with more pixels, since soft lines are in between. If there is little in between
    and both ends are large, as for thick black and white lines, paper is the half of the values with deeper regions,
    since lines are thin and the areas between them are not.
    """
    dark, light = (float(end.mean()) for end in _ends(grey, opaque, 1 / 8))
    if dark + light < 0.4 or max(dark, light) > 3 * min(dark, light):
        return light >= dark
    dark_depth, light_depth = (depth_of(half) for half in _ends(grey, opaque, 1 / 2))
    return light >= dark if light_depth == dark_depth else light_depth > dark_depth


def depth_of(region: Bool[np.ndarray, "h w"]) -> float:
    """Smallest distance from the outside of the inner tenth of a region's pixels."""
    distance = city_block_distance(torch.from_numpy(~region)).numpy()
    return float(np.percentile(distance[region], 90))
