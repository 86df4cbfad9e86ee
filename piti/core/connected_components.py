"""Connected regions of equal values."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

_BELOW = (-1, 0, 1)  # horizontal reach of adjacency to the row below


def connected(labels: Integer[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """Label connected regions of equal values (8-connectivity), from 0.

    Runs of equal values along rows are joined with adjacent runs of the same value in the row below: every run takes
    the lowest label among its neighbours, until nothing changes.
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
    """Pairs of adjacent runs of equal value, the second in the row below the first."""
    width = values.shape[1]
    pairs = []
    for aside in _BELOW:
        here = slice(max(0, -aside), width - max(0, aside))
        there = slice(max(0, aside), width - max(0, -aside))
        same = values[:-1, here] == values[1:, there]
        found = run[:-1, here][same] * run.size + run[1:, there][same]
        pairs.append(found[np.diff(found, prepend=-1) != 0])  # two runs touch at consecutive pixels
    codes = np.unique(np.concatenate(pairs))
    return codes // run.size, codes % run.size
