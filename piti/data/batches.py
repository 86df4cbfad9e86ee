"""Batches that depend on (seed, step, rank) alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piti.data.degrade import DegradationSpec, degrade, downsample
from piti.data.folders import PairedFolder, Sample
from piti.data.problems import DataError
from piti.seeding import generator_for


@dataclass
class Batch:
    """Images in [-1, 1], raw conditions (see Condition.encode), the keys of their files, and small images."""

    image: Float[Tensor, "B 3 s s"]
    condition: Shaped[Tensor, "B K hc wc"]
    keys: list[str]
    low_res: Float[Tensor, "B 3 l l"] | None = None
    """What an upsampler enlarges, in [-1, 1]."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        low_res = None if self.low_res is None else self.low_res.to(device)
        return Batch(self.image.to(device), self.condition.to(device), self.keys, low_res)


@dataclass(frozen=True)
class LowRes:
    """Makes the small image that an upsampler is to enlarge."""

    scale: int
    """By how much the sides shrink."""
    degradation: DegradationSpec | None
    """How it is degraded (PITI, section 3.3); none: antialiased bicubic and nothing else."""

    def __call__(self, image: Float[Tensor, "3 s s"], generator: torch.Generator) -> Float[Tensor, "3 l l"]:
        """image in [-1, 1] => [3, s / scale, s / scale] in [-1, 1]."""
        if self.degradation is None:
            return downsample(image, self.scale)
        return degrade(image, self.scale, self.degradation, generator)


def collate(samples: Sequence[Sample], low_res: Sequence[Tensor] = ()) -> Batch:
    """Samples of one size, stacked, with their small images if there are any."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.condition for sample in samples]),
        [sample.key for sample in samples],
        torch.stack(list(low_res)) if low_res else None,
    )


class BatchStream(Dataset[Batch]):
    """An endless stream of batches, addressed by step.

    All ranks together walk through one permutation of the folder an epoch: sample number n =
    (step · world + rank) · batch_size + j is at position n mod N of the permutation of epoch ⌊n / N⌋,
    seeded by (seed, epoch), and is cropped and mirrored by a generator seeded by (seed, n). So every
    epoch has each pair exactly once, and nothing depends on what was drawn before. low_res: makes the small
    images for an upsampler, by a generator seeded by (seed, n).
    """

    def __init__(
        self,
        folder: PairedFolder,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        low_res: LowRes | None = None,
    ) -> None:
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
        self.low_res = low_res
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, step: int) -> Batch:
        """The batch of this rank at `step` (0, 1, …; there is no last one)."""
        first = (step * self.world + self.rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        samples = [self._sample(n) for n in numbers]
        if self.low_res is None:
            return collate(samples)
        pairs = zip(samples, numbers, strict=True)
        small = [self.low_res(sample.image, generator_for(self.seed, "low_res", n)) for sample, n in pairs]
        return collate(samples, small)

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
