"""Which connected regions of a mask are small objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from piti.data.regions import connected

SMALL = 0.01
"""Regions that cover a smaller share of the image than this are small objects."""


@dataclass(frozen=True)
class SmallRegions:
    """The small objects of a mask.

    A small object is a region of pixels of one class that hang together, corners touching, and that cover less than
    a share of the image; of the whole image, ignored pixels included. A stripe of the pavement between two cars is
    one as well as a sign: the mask does not say what is a thing.
    """

    ids: Integer[Tensor, "h w"]
    """The number of the region at each pixel, from 0; -1 where there is no small one."""
    classes: Integer[Tensor, " regions"]
    """The class of each."""
    pixels: Integer[Tensor, " regions"]
    """The size of each."""

    def found(self, hit: Bool[Tensor, "h w"]) -> Bool[Tensor, " regions"]:
        """Which have at least half of their pixels among `hit`."""
        counted = torch.bincount(self.ids[hit & (self.ids >= 0)], minlength=len(self.pixels))
        return 2 * counted >= self.pixels


def small_regions(truth: Integer[Tensor, "h w"], judged: Bool[Tensor, "h w"], share: float = SMALL) -> SmallRegions:
    """The small objects among the pixels that are `judged`, of class indices `truth`."""
    kept = torch.where(judged, truth.long(), -1)
    ids = connected(kept)
    pixels = torch.bincount(ids.flatten())
    classes = torch.full_like(pixels, -1)
    classes[ids.flatten()] = kept.flatten()
    small = (classes >= 0) & (pixels < share * truth.numel())
    numbers = torch.where(small, small.cumsum(0) - 1, -1)
    return SmallRegions(numbers[ids], classes[small], pixels[small])
