"""Whether an image can be a line drawing; photographs and class masks are refused as sketches."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from torch.nn import functional as F

from piti.conditions.base import ConditionError
from piti.conditions.lines import depth_of, grey_of, lines_of, rgba_of
from piti.core.errors import option

_LOOKED = 256  # largest number of rows and columns that are examined
_MUCH = 0.2  # share of ink, and of medium grey values, above which an image is not a drawing
_SOFT = 12  # largest half width of a soft edge map's lines in pixels
_BLACK = 0.04  # smallest share of black in a soft edge map
_AREAS = 3  # number of flat areas from which on an image is a mask
_COVERED = 0.9  # smallest share of pixels with the value of such an area in a mask
_ENDS = 0.8  # smallest share of black and white in a line drawing

SMALLEST = 48
"""Short side in pixels below which areas and lines cannot be distinguished."""
NARROW = 6
"""Largest half width of a drawing's lines in pixels, after `thinned`."""

_BLACK_AND_WHITE = "if it is a drawing, save it in black and white"


def check_drawing(
    pixels: UInt8[np.ndarray, "h w 4"], lines: Bool[np.ndarray, "h w"], is_lossy: bool, source: str
) -> None:
    """Raises ConditionError for an RGBA image, read as `lines`, that is a photograph or a class mask.

    Of 176 photographs, 99% have more than 20% ink and more than 20% medium grey values; drawings have far less. Many
    soft edge maps have as much (71% of 750), but they are grey, partly black, and have thin lines: at most 11 pixels
    half width. A mask consists of flat areas of three or more values; in a lossy file they are not flat. Any black and
    white image is a drawing, and thumbnails below 48 px are not checked.
    """
    if min(lines.shape) < SMALLEST:
        return
    seen, ink = thinned(pixels), thinned(lines)
    grey = grey_of(seen[..., :3])
    if not is_lossy and (count := _areas(seen)):
        raise ConditionError(
            f"consists of flat areas of {count} values, like class ids or colours, but lines are expected",
            remedy=f"give masks to a mask model; {_BLACK_AND_WHITE}",
            source=source,
        )
    share = float(ink.mean())
    if share > _MUCH and _middle(grey) > _MUCH and not _is_soft_edge_map(seen, grey, ink):
        raise ConditionError(
            f"{round(100 * share)}% of it would be lines, as in a photograph",
            remedy="take its lines first (“Lines of a photograph” on the page), or give lines on an even ground; "
            + _BLACK_AND_WHITE,
            local_remedy="extract its lines by `piti prepare sketch`",
            source=source,
        )


def drawing_remedy(image: Image.Image) -> str:
    """The remedy for an image that cannot be read as a mask but looks like a drawing; empty for others.

    A drawing is black and white, with thin lines.
    """
    if image.mode == "F" or min(image.size) < SMALLEST:
        return ""
    seen = thinned(rgba_of(image, ""))
    grey = grey_of(seen[..., :3])
    ink = lines_of(seen, 0.35)
    drawn = ink.any() and ((grey < 64) | (grey > 191)).mean() > _ENDS and depth_of(ink) <= NARROW
    return f"if it is a drawing, use a sketch model ({option('model')} sketch)" if drawn and _is_grey(seen) else ""


def thinned(plane: Shaped[np.ndarray, "h w *more"]) -> Shaped[np.ndarray, "h2 w2 *more"]:
    """Subsample a plane to at most `_LOOKED` evenly spaced rows and columns."""
    rows, columns = (np.linspace(0, side - 1, min(side, _LOOKED)).astype(int) for side in plane.shape[:2])
    return plane[np.ix_(rows, columns)]


def _is_grey(pixels: UInt8[np.ndarray, "h w c"]) -> bool:
    """Whether there is no colour, apart from JPEG noise."""
    colours = pixels[..., :3].astype(np.int16)
    return bool((colours.max(-1) - colours.min(-1) > 24).mean() < 0.01)


def _middle(grey: Shaped[np.ndarray, "h w"]) -> float:
    """The share of grey values away from both ends of their range."""
    low, high = np.percentile(grey, [1, 99])
    return float((np.abs(grey - (low + high) / 2) < 0.35 * (high - low)).mean())


def _is_soft_edge_map(
    pixels: UInt8[np.ndarray, "h w 4"], grey: Shaped[np.ndarray, "h w"], ink: Bool[np.ndarray, "h w"]
) -> bool:
    return _is_grey(pixels) and float((grey < 16).mean()) >= _BLACK and depth_of(ink) <= _SOFT


def _areas(pixels: UInt8[np.ndarray, "h w 4"]) -> int:
    """The number of values with flat areas; 0 if they are too few for a mask, or do not cover the image."""
    red, green, blue = (torch.from_numpy(pixels[..., c].astype(np.float32)) for c in range(3))
    codes = (red * 65536 + green * 256 + blue)[None, None]  # [1, 1, h, w]; exact in float32
    side = max(3, min(codes.shape[-2:]) // 16)
    if min(codes.shape[-2:]) < side:
        return 0
    highest, lowest = F.max_pool2d(codes, side, 1), -F.max_pool2d(-codes, side, 1)
    values = highest[highest == lowest].unique()
    covered = torch.isin(codes, values).float().mean().item()
    return len(values) if len(values) >= _AREAS and covered >= _COVERED else 0
