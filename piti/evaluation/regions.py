"""Connected regions of a mask, and which of them are small objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor

SMALL = 0.01
"""Regions that cover a smaller share of the image than this are small objects."""

_BELOW = (-1, 0, 1)  # columns to the side of the pixel below that a pixel touches


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


def connected(labels: Integer[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """Numbers, from 0, of the regions of equal values that hang together, corners touching.

    Runs of equal values along the rows are joined where they touch one of the same value in the row below: every run
    takes the lowest number among those that it is joined with, until nothing changes.
    """
    values = labels.cpu().numpy()
    starts = np.ones(values.shape, bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    run = starts.cumsum().reshape(values.shape) - 1  # [h, w]
    above, below = _touching(values, run)
    root = np.arange(int(run[-1, -1]) + 1)
    while True:
        high, low = np.maximum(root[above], root[below]), np.minimum(root[above], root[below])
        apart = high != low
        if not apart.any():
            break
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(root[root], root):
            root = root[root]
    _, numbers = np.unique(root, return_inverse=True)
    return torch.from_numpy(numbers[run])


def _touching(values: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs of one value, of which the second lies in the row below the first and touches it."""
    width = values.shape[1]
    pairs = []
    for aside in _BELOW:
        here = slice(max(0, -aside), width - max(0, aside))
        there = slice(max(0, aside), width - max(0, -aside))
        same = values[:-1, here] == values[1:, there]
        found = run[:-1, here][same] * run.size + run[1:, there][same]
        pairs.append(found[np.diff(found, prepend=-1) != 0])  # two runs touch in many pixels, one after the other
    codes = np.unique(np.concatenate(pairs))
    return codes // run.size, codes % run.size
