"""The degradation of tests, its kinds of resizing, and the distance of images."""

from __future__ import annotations

import math

from torch import Tensor

from piti.data.degrade import DegradationSpec

SPEC = DegradationSpec()
KINDS = ("linear", "cubic", "area")


def psnr(one: Tensor, other: Tensor) -> float:
    """Decibels, of images in [-1, 1]."""
    return 10 * math.log10(4 / max((one - other).square().mean().item(), 1e-10))
