"""Saturation and contrast of images, which strong guidance increases."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601."""


@dataclass(frozen=True)
class Look:
    """Statistics of an image, or their means over images."""

    clipped: float
    """Share of pixels with a channel at 0 or 255, in %."""
    saturation: float
    """Mean saturation of HSV, (max - min) / max over a pixel's channels and 0 for black, in %."""
    contrast: float
    """Standard deviation of luma within an image, in % of the range."""


LOOKS = ("clipped", "saturation", "contrast")
"""Names of the statistics."""


def look_of(pixels: UInt8[np.ndarray, "h w 3"]) -> Look:
    """The statistics of one image."""
    low, high = pixels.min(-1).astype(np.float64), pixels.max(-1).astype(np.float64)
    clipped = (low == 0) | (high == 255)
    saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    luma = pixels @ np.array(LUMA) / 255
    return Look(100 * float(clipped.mean()), 100 * float(saturation.mean()), 100 * float(luma.std()))


def mean_look(looks: Iterable[Look]) -> Look:
    """The mean of each statistic over images."""
    listed = list(looks)
    return Look(*(statistics.fmean(getattr(look, name) for look in listed) for name in LOOKS))
