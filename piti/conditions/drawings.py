"""Whether a picture can be a line drawing: photographs and masks of classes are refused as sketches, everywhere."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from torch.nn import functional as F

from piti.conditions.base import ConditionError
from piti.conditions.lines import depth_of, grey_of, lines_of, rgba_of
from piti.core.errors import option

_LOOKED = 256  # rows and columns that are looked at, at most
_MUCH = 0.2  # share of ink, and of middle greys, that no drawing has
_SOFT = 12  # pixels from the outside of a soft edge map's lines to their middle, at most
_BLACK = 0.04  # share of black that a soft edge map has at least
_AREAS = 3  # areas of one value each from which on a picture is a mask
_COVERED = 0.9  # share of a mask's pixels that have the value of such an area
_ENDS = 0.8  # share of black and white in a line drawing, at least

SMALLEST = 48
"""Pixels of the short side, below which areas and lines look alike."""
NARROW = 6
"""Pixels from the outside of a drawing's lines to their middle, at most, of what `thinned` leaves."""

_BLACK_AND_WHITE = "if it is a drawing, save it in black and white"


def check_drawing(
    pixels: UInt8[np.ndarray, "h w 4"], lines: Bool[np.ndarray, "h w"], is_lossy: bool, source: str
) -> None:
    """Raises ConditionError for an RGBA picture, read as `lines`, that is a photograph or a mask of classes.

    Of 176 photographs 99% have more than 20% of ink and of middle greys; drawings have far less. Many soft edge maps
    have as much (of 750, 71%), but these are grey, black in part, and their lines narrow: at most 11 pixels from the
    outside to the middle. A mask is flat areas of three values or more; in a lossy file they are not flat. A picture
    in black and white is a drawing, whatever it shows, and thumbnails of under 48 px are not judged.
    """
    if min(lines.shape) < SMALLEST:
        return
    seen, ink = thinned(pixels), thinned(lines)
    grey = grey_of(seen[..., :3])
    if not is_lossy and (count := _areas(seen)):
        raise ConditionError(
            f"is flat areas of {count} values, as of class ids or class colours, and lines are expected",
            remedy=f"give a mask to a model of masks; {_BLACK_AND_WHITE}",
            source=source,
        )
    share = float(ink.mean())
    if share > _MUCH and _middle(grey) > _MUCH and not _is_soft_edge_map(seen, grey, ink):
        raise ConditionError(
            f"{round(100 * share)}% of it would be lines, as of a photograph",
            remedy="take its lines first (“Lines of a photograph” on the page), or give lines on an even ground; "
            + _BLACK_AND_WHITE,
            local_remedy="draw its lines by `piti prepare sketch`",
            source=source,
        )


def drawing_remedy(image: Image.Image) -> str:
    """What to do with a picture that no mask condition reads and that looks like a drawing; nothing for others.

    A drawing is black and white, and its lines are narrow.
    """
    if image.mode == "F" or min(image.size) < SMALLEST:
        return ""
    seen = thinned(rgba_of(image, ""))
    grey = grey_of(seen[..., :3])
    ink = lines_of(seen, 0.35)
    drawn = ink.any() and ((grey < 64) | (grey > 191)).mean() > _ENDS and depth_of(ink) <= NARROW
    return (
        f"if it is a drawing, take a model of sketches ({option('model')} sketch)" if drawn and _is_grey(seen) else ""
    )


def thinned(plane: Shaped[np.ndarray, "h w *more"]) -> Shaped[np.ndarray, "h2 w2 *more"]:
    """Evenly spaced rows and columns of a plane, at most `_LOOKED` of each."""
    rows, columns = (np.linspace(0, side - 1, min(side, _LOOKED)).astype(int) for side in plane.shape[:2])
    return plane[np.ix_(rows, columns)]


def _is_grey(pixels: UInt8[np.ndarray, "h w c"]) -> bool:
    """Whether there is no colour, but for a JPEG's noise."""
    colours = pixels[..., :3].astype(np.int16)
    return bool((colours.max(-1) - colours.min(-1) > 24).mean() < 0.01)


def _middle(grey: Shaped[np.ndarray, "h w"]) -> float:
    """The share of greys away from both ends of their range."""
    low, high = np.percentile(grey, [1, 99])
    return float((np.abs(grey - (low + high) / 2) < 0.35 * (high - low)).mean())


def _is_soft_edge_map(
    pixels: UInt8[np.ndarray, "h w 4"], grey: Shaped[np.ndarray, "h w"], ink: Bool[np.ndarray, "h w"]
) -> bool:
    return _is_grey(pixels) and float((grey < 16).mean()) >= _BLACK and depth_of(ink) <= _SOFT


def _areas(pixels: UInt8[np.ndarray, "h w 4"]) -> int:
    """How many values have an area of their own; 0 where they are too few for a mask, or do not make up the picture."""
    red, green, blue = (torch.from_numpy(pixels[..., c].astype(np.float32)) for c in range(3))
    codes = (red * 65536 + green * 256 + blue)[None, None]  # [1, 1, h, w]; exact in float32
    side = max(3, min(codes.shape[-2:]) // 16)
    if min(codes.shape[-2:]) < side:
        return 0
    highest, lowest = F.max_pool2d(codes, side, 1), -F.max_pool2d(-codes, side, 1)
    values = highest[highest == lowest].unique()
    covered = torch.isin(codes, values).float().mean().item()
    return len(values) if len(values) >= _AREAS and covered >= _COVERED else 0
