"""What is random about a training sample, from the run's seed and the sample's number alone.

So a run draws the same whatever is done by one process or by many, by one backward pass or by several.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piti.core.seeding import generator_for


def numbers_of(draw: int, batch: int, rank: int, world: int) -> range:
    """Numbers of the samples of one process's backward pass `draw`, as `BatchStream` counts them."""
    first = (draw * world + rank) * batch
    return range(first, first + batch)


def noise_for(seed: int, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape], on the CPU, the row of sample n by a generator seeded by (seed, n)."""
    noise = torch.empty(len(numbers), *shape)
    for row, n in zip(noise, numbers, strict=True):
        row.normal_(generator=generator_for(seed, "noise", n))
    return noise


def uniform_for(seed: int, purpose: str, numbers: Sequence[int], count: int = 1) -> Tensor:
    """Numbers in [0, 1), [B, count], on the CPU, the row of sample n by a generator seeded by (seed, purpose, n)."""
    return torch.stack([torch.rand(count, generator=generator_for(seed, purpose, n)) for n in numbers])
