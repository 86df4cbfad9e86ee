"""Mapping masks with approximate colours, from anti-aliasing and JPEG noise, to the nearest classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch.nn import functional as F

from piti.conditions import ConditionError
from piti.conditions.class_table import Colour

NEAR = 48.0
"""Largest RGB distance (0..255) of a colour to its class."""
_EXACT = 2.0  # rounding of an encoder
_RIM = 2  # pixels on either side of a border that may be mixed by anti-aliasing and JPEG
_MOST_FAR = 0.35  # largest share of pixels far from every class, since thin strokes have long borders
_COLOURS = 1 << 16  # colours compared at once


def snapped(pixels: UInt8[np.ndarray, "h w 3"], colours: Sequence[Colour], source: str) -> Int[np.ndarray, "h w"]:
    """The index in `colours` of each pixel's class.

    Away from borders it is the class of the nearest colour. At a border, where a mixture of two classes may be nearest
    to a third one, only the classes on its sides are considered.

    Raises ConditionError if an area or too many pixels are too far from every class, as in a photograph, or with the
    colours of another table.
    """
    known = np.array(colours, np.float32)
    index, distance = _nearest(pixels, known)
    _check(pixels, distance, source)
    core = distance <= NEAR / 2
    core &= _uniform(index) | (distance <= _EXACT)
    if core.all() or not core.any():
        return index
    return _of_neighbours(pixels, known, index, core)


def _nearest(
    pixels: UInt8[np.ndarray, "h w 3"], colours: Float[np.ndarray, "n 3"]
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """The nearest colour of each pixel, and its distance."""
    red, green, blue = (pixels[..., c].astype(np.int32) for c in range(3))
    codes = red << 16 | green << 8 | blue
    used = np.zeros(1 << 24, bool)
    used[codes] = True
    distinct, known = np.flatnonzero(used), torch.from_numpy(colours)
    index, distance = np.empty(1 << 24, np.int16), np.empty(1 << 24, np.float32)  # by code; filled where used
    for start in range(0, len(distinct), _COLOURS):
        part = distinct[start : start + _COLOURS]
        found = torch.from_numpy(np.stack([part >> 16, part >> 8 & 255, part & 255], -1).astype(np.float32))
        least = torch.cdist(found, known).min(dim=1)
        index[part], distance[part] = least.indices.numpy(), least.values.numpy()
    return index[codes], distance[codes]


def _check(pixels: UInt8[np.ndarray, "h w 3"], distance: Float[np.ndarray, "h w"], source: str) -> None:
    """Raises ConditionError for an area that is wider than a border, or very many pixels, far from every class."""
    far = distance > NEAR
    area = ~_grown(~far, _RIM)
    if not area.any() and far.mean() <= _MOST_FAR:
        return
    y, x = np.argwhere(area if area.any() else far)[0]
    colour = tuple(int(value) for value in pixels[y, x])
    share = max(1, round(100 * float(far.mean())))
    raise ConditionError(
        f"{source}: {share}% of its pixels are far from the colour of every class, such as {colour} at column {x}, "
        f"row {y}; paint with the palette's colours, or give an image of class ids. (A photograph cannot be a mask.)"
    )


def _uniform(index: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Whether a pixel's eight neighbours have its class."""
    values = torch.from_numpy(index).float()[None, None]
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    highest, lowest = F.max_pool2d(padded, 3, 1), -F.max_pool2d(-padded, 3, 1)
    return (highest == lowest)[0, 0].numpy()


def _grown(mask: Bool[np.ndarray, "h w"], by: int) -> Bool[np.ndarray, "h w"]:
    """Dilate by so many pixels on every side."""
    values = torch.from_numpy(mask).float()[None, None]
    return (F.max_pool2d(values, 2 * by + 1, 1, by) > 0)[0, 0].numpy()


def _of_neighbours(
    pixels: UInt8[np.ndarray, "h w 3"],
    colours: Float[np.ndarray, "n 3"],
    index: Int[np.ndarray, "h w"],
    core: Bool[np.ndarray, "h w"],
) -> Int[np.ndarray, "h w"]:
    """Classes where they are certain; elsewhere the nearest of the certain ones within reach, if any."""
    y, x = np.nonzero(~core)
    seen, best = pixels[y, x].astype(np.float32), np.full(len(y), np.inf, np.float32)
    found, reach = index[y, x], range(-_RIM - 1, _RIM + 2)
    last_y, last_x = index.shape[0] - 1, index.shape[1] - 1
    for dy in reach:
        for dx in reach:
            at = (y + dy).clip(0, last_y), (x + dx).clip(0, last_x)
            there = index[at]
            away = ((seen - colours[there]) ** 2).sum(-1)
            better = core[at] & (away < best)
            best, found = np.where(better, away, best), np.where(better, there, found)
    result = index.copy()
    result[y, x] = found
    return result
