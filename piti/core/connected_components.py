"""Regions of equal values that hang together."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

_BELOW = (-1, 0, 1)  # columns to the side of the pixel below that a pixel touches


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
