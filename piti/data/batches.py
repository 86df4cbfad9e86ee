"""Batches that depend on (seed, step, rank) alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piti.data.folders import DataError, PairedFolder, Sample
from piti.seeding import generator_for


@dataclass
class Batch:
    """Images in [-1, 1], raw conditions (see Condition.encode), and the keys of their files."""

    image: Float[Tensor, "B 3 s s"]
    condition: Shaped[Tensor, "B K c c"]
    keys: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(self.image.to(device), self.condition.to(device), self.keys)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size, stacked."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.condition for sample in samples]),
        [sample.key for sample in samples],
    )


class BatchStream(Dataset[Batch]):
    """An endless stream of batches, addressed by step.

    All ranks together walk through one permutation of the folder an epoch: sample number n =
    (step · world + rank) · batch_size + j is at position n mod N of the permutation of epoch ⌊n / N⌋,
    seeded by (seed, epoch), and is cropped and mirrored by a generator seeded by (seed, n). So every
    epoch has each pair exactly once, and nothing depends on what was drawn before.
    """

    def __init__(self, folder: PairedFolder, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise DataError(f"batch size = {batch_size}: expected at least 1")
        if not 0 <= rank < world:
            raise DataError(f"rank = {rank} of {world}: expected 0 <= rank < world")
        if not len(folder):
            raise DataError(f"split '{folder.split}' has no pairs to make batches of")
        self.folder = folder
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, step: int) -> Batch:
        """The batch of this rank at `step` (0, 1, …; there is no last one)."""
        first = (step * self.world + self.rank) * self.batch_size
        return collate([self._sample(n) for n in range(first, first + self.batch_size)])

    def _sample(self, n: int) -> Sample:
        epoch, position = divmod(n, len(self.folder))
        generator = generator_for(self.seed, "augment", n)
        return self.folder.sample(self._order(epoch)[position], generator)

    def _order(self, epoch: int) -> list[int]:
        """The permutation of an epoch; the last two are kept (a batch may straddle them)."""
        if epoch not in self._orders:
            generator = generator_for(self.seed, "order", epoch)
            kept = sorted(self._orders)[-1:]
            self._orders = {
                **{old: self._orders[old] for old in kept},
                epoch: torch.randperm(len(self.folder), generator=generator).tolist(),
            }
        return self._orders[epoch]


def loader(stream: BatchStream, start: int, stop: int, workers: int = 0) -> DataLoader[Batch]:
    """Batches of steps `start` to `stop` - 1 in order, made by `workers` processes (0: by this one)."""
    return DataLoader(
        stream,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=_unchanged,
    )


def _unchanged(batch: Any) -> Any:
    return batch
