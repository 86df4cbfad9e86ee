"""The order of samples in training: an endless sequence that is a function of the seed and sample numbers.

Sample number n belongs to epoch ⌊n / N⌋ of a set of N, and every epoch has every sample once, over all ranks and
workers together. The samples of a rank at a step are computed without state, so a resumed run needs no replay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64

from piti.core.seeding import generator_for

T = TypeVar("T")


@dataclass(frozen=True)
class SamplePlace:
    """A place in the sequence."""

    number: int
    """n, which determines how the sample is cropped and mirrored."""
    candidates: Iterable[int]
    """Indices of samples: the one at this place, then substitutes, nearest first."""


def numbers_of(step: int, batch: int, rank: int, world: int) -> range:
    """Numbers of the `batch` samples of a rank at a step, which is a backward pass."""
    first = (step * world + rank) * batch
    return range(first, first + batch)


@runtime_checkable
class Order(Protocol):
    """The sequence of one rank."""

    def places(self, step: int, batch: int) -> list[SamplePlace]:
        """The `batch` places of this rank at a step."""
        ...


class Shuffled:
    """A permutation of all samples per epoch, shared by all ranks.

    n = (step · world + rank) · batch + j, so the joint sequence does not depend on the number of ranks.
    """

    def __init__(self, length: int, seed: int, rank: int, world: int) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self._orders: dict[int, list[int]] = {}

    def places(self, step: int, batch: int) -> list[SamplePlace]:
        """The `batch` places of this rank at a step."""
        return [SamplePlace(n, (self._index(n),)) for n in numbers_of(step, batch, self.rank, self.world)]

    def _index(self, n: int) -> int:
        """The permutations of the last two epochs are cached, since a batch may span them."""
        epoch, position = divmod(n, self.length)
        if epoch not in self._orders:
            generator = generator_for(self.seed, "order", epoch)
            kept = sorted(self._orders)[-1:]
            self._orders = {
                **{old: self._orders[old] for old in kept},
                epoch: torch.randperm(self.length, generator=generator).tolist(),
            }
        return self._orders[epoch][position]


@dataclass(frozen=True)
class _Window:
    """Neighbouring shards of an epoch whose samples are shuffled together."""

    shards: tuple[int, ...]
    indices: Int64[np.ndarray, " n"]
    """Indices of its samples, in order."""


@dataclass(frozen=True)
class _Layout:
    """A rank's part of an epoch."""

    windows: list[list[tuple[int, int, int]]]
    """(shard, first, last + 1) of its samples, as lists."""
    ends: list[int]
    """Cumulative number of samples at the end of each."""


class ByShards:
    """Shards in a new order every epoch, divided among ranks, with samples shuffled within windows.

    The samples of an epoch are concatenated shard by shard, and each rank takes a contiguous part, sharing only the
    shards at its two ends. Within its part, the samples of `window` shards at a time are permuted, so that a rank needs
    few shards at once. Rank r has used ⌊(e · N + r) / world⌋ samples at the start of its epoch e; these add up to e · N
    over the ranks (Hermite's identity), and no rank is ahead of another by more than one sample.

    counts: samples of each shard; sample k of shard s has the index counts[:s].sum() + k. on_window: called with the
    shards of a window when it starts, and with those of the next.
    """

    def __init__(
        self,
        counts: Sequence[int],
        window: int,
        seed: int,
        rank: int,
        world: int,
        on_window: Callable[[Sequence[int], Sequence[int]], None] | None = None,
    ) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.offsets = np.cumsum(self.counts) - self.counts
        self.length = int(self.counts.sum())
        self.window, self.seed, self.rank, self.world = window, seed, rank, world
        self.on_window = on_window
        self._windows: dict[tuple[int, int], _Window] = {}
        self._layouts: dict[int, _Layout] = {}

    def places(self, step: int, batch: int) -> list[SamplePlace]:
        """The `batch` places of this rank at a step."""
        return [self._place(m) for m in range(step * batch, (step + 1) * batch)]

    def _place(self, m: int) -> SamplePlace:
        """This rank's m-th place."""
        epoch = ((m + 1) * self.world - 1 - self.rank) // self.length
        within = m - self._seen(epoch, self.rank)
        position = self._begin(epoch) + within
        ends = self._layout(epoch).ends
        number = bisect_right(ends, within)
        window = self._window(epoch, number)
        return SamplePlace(
            epoch * self.length + position, _From(window.indices, within - (ends[number - 1] if number else 0))
        )

    def _seen(self, epoch: int, rank: int) -> int:
        """Number of samples that a rank has used at the start of its epoch."""
        return (epoch * self.length + rank) // self.world

    def _begin(self, epoch: int) -> int:
        """Start of this rank's part of an epoch."""
        return sum(self._seen(epoch + 1, rank) - self._seen(epoch, rank) for rank in range(self.rank))

    def _layout(self, epoch: int) -> _Layout:
        """The windows of this rank's part; those of the last two epochs are cached."""
        if epoch not in self._layouts:
            parts = self._parts(epoch)
            count = -(-len(parts) // self.window)
            bounds = [round(k * len(parts) / max(1, count)) for k in range(count + 1)]
            windows = [parts[a:b] for a, b in pairwise(bounds)]
            ends = list(accumulate(sum(last - first for _, first, last in window) for window in windows))
            kept = sorted(self._layouts)[-1:]
            self._layouts = {**{old: self._layouts[old] for old in kept}, epoch: _Layout(windows, ends)}
        return self._layouts[epoch]

    def _parts(self, epoch: int) -> list[tuple[int, int, int]]:
        """This rank's part of an epoch's shards, in order: (shard, first, last + 1) of its samples."""
        begin = self._begin(epoch)
        end = begin + self._seen(epoch + 1, self.rank) - self._seen(epoch, self.rank)
        shards = torch.randperm(len(self.counts), generator=generator_for(self.seed, "shards", epoch)).numpy()
        ends = np.cumsum(self.counts[shards])
        parts = []
        for k in range(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, end, "left")) + 1):
            first, last = int(ends[k] - self.counts[shards[k]]), int(ends[k])
            low, high = max(begin, first), min(end, last)
            if low < high:
                parts.append((int(shards[k]), low - first, high - first))
        return parts

    def _window(self, epoch: int, number: int) -> _Window:
        """A window with its samples in order; the last two are cached."""
        if (epoch, number) not in self._windows:
            parts = self._layout(epoch).windows[number]
            indices = np.concatenate([self.offsets[s] + np.arange(a, b) for s, a, b in parts])
            generator = generator_for(self.seed, "samples", epoch, self.rank, self.world, number)
            shuffled = indices[torch.randperm(len(indices), generator=generator).numpy()]
            kept = list(self._windows.items())[-1:]
            window = _Window(tuple(shard for shard, _, _ in parts), shuffled)
            self._windows = {**dict(kept), (epoch, number): window}
            if self.on_window is not None:
                self.on_window(window.shards, self._next_shards(epoch, number))
        return self._windows[epoch, number]

    def _next_shards(self, epoch: int, number: int) -> tuple[int, ...]:
        """The shards of the window after this one."""
        windows = self._layout(epoch).windows
        while number + 1 >= len(windows):
            epoch, number = epoch + 1, -1
            windows = self._layout(epoch).windows
        return tuple(shard for shard, _, _ in windows[number + 1])


@dataclass(frozen=True)
class _From:
    """All of some indices cyclically, starting at one of them."""

    indices: Int64[np.ndarray, " n"]
    first: int

    def __iter__(self) -> Iterator[int]:
        for k in range(len(self.indices)):
            yield int(self.indices[(self.first + k) % len(self.indices)])


def spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` evenly spaced items, including the first."""
    count = min(len(items), most)
    return [items[k * len(items) // count] for k in range(count)]
