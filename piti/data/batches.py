"""Batches that depend only on (seed, step, rank), so that a resumed run gets the same ones."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piti.core.errors import UserError, option
from piti.core.seeding import generator_for
from piti.core.system import ending_signals
from piti.data.crops import Sample
from piti.data.degrade import DegradationSpec, degrade, downsample
from piti.data.order import Order, SamplePlace
from piti.data.problems import BadSample, DataError, Skipped, Tally

log = logging.getLogger(__name__)


@dataclass
class TrainingBatch:
    """Images in [-1, 1], raw conditions (see Condition.encode), the keys of their files, and small images."""

    image: Float[Tensor, "B 3 s s"]
    condition: Shaped[Tensor, "B K hc wc"]
    keys: list[str]
    low_res: Float[Tensor, "B 3 l l"] | None = None
    """Small images for an upsampler, in [-1, 1]."""
    paired: Bool[Tensor, " B"] | None = None
    """Rows with a photograph; the small images of the others were generated. None: all rows."""
    read: int = 0
    """Number of samples read for it, and the unusable ones."""
    skipped: list[Skipped] = field(default_factory=list)

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The batch on a device; `paired` stays on the CPU. Pinned memory is copied asynchronously."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> TrainingBatch:
        """The batch in pinned memory, as used by torch's loaders."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, made: Callable[[Tensor], Tensor]) -> TrainingBatch:
        low_res = None if self.low_res is None else made(self.low_res)
        return replace(self, image=made(self.image), condition=made(self.condition), low_res=low_res)


@dataclass(frozen=True)
class LowRes:
    """Creates an upsampler's small image."""

    scale: int
    """Factor by which the sides are reduced."""
    degradation: DegradationSpec | None
    """Degradation (PITI, section 3.3); None: only antialiased bicubic downscaling."""

    def __call__(self, image: Float[Tensor, "3 s s"], generator: torch.Generator) -> Float[Tensor, "3 l l"]:
        """image in [-1, 1] => [3, s / scale, s / scale] in [-1, 1]."""
        if self.degradation is None:
            return downsample(image, self.scale)
        return degrade(image, self.scale, self.degradation, generator)


def collate(samples: Sequence[Sample], low_res: Sequence[Tensor] = ()) -> TrainingBatch:
    """Stack samples of one size, with their small images if there are any."""
    return TrainingBatch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.condition for sample in samples]),
        [sample.key for sample in samples],
        torch.stack(list(low_res)) if low_res else None,
    )


@runtime_checkable
class SampleSet(Protocol):
    """Samples by index, from a folder or from shards."""

    @property
    def split(self) -> str | None:
        """Name of the split; None: everything."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random crop. Raises BadSample if only this sample cannot be used."""
        ...

    def center(self, index: int) -> Sample:
        """The deterministic centre crop. Raises BadSample."""
        ...

    def order(self, seed: int, rank: int, world: int) -> Order:
        """The order of samples for a rank."""
        ...

    def files_of(self, keys: Sequence[str]) -> list[str]:
        """The locations of these keys, a line each, for messages."""
        ...

    def identity(self) -> str | None:
        """A hash that identifies the samples independently of their location; None if unknown."""
        ...

    def contents(self) -> str | None:
        """A hash of the files' contents; None if unknown."""
        ...


class BatchStream(Dataset[TrainingBatch]):
    """An endless stream of batches, addressed by step.

    The set's order determines the samples of a step (see piti.data.order); each is cropped and mirrored by a generator
    seeded by (seed, n), where n is its number. So every epoch has each sample exactly once, independently of earlier
    draws. low_res: creates small images for an upsampler, by a generator seeded by (seed, n). max_bad: largest share of
    unusable samples in a process (see Tally); an unusable one is replaced by the next.
    """

    def __init__(
        self,
        samples: SampleSet,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        low_res: LowRes | None = None,
        max_bad: float = 0.01,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size = {batch_size}: expected at least 1")
        if not 0 <= rank < world:
            raise DataError(f"rank = {rank} of {world}: expected 0 <= rank < world")
        if not len(samples):
            raise DataError(f"split '{samples.split}' has no pairs to make batches of")
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.low_res = low_res
        self.order = samples.order(seed, rank, world)
        self._tally = Tally(max_bad)

    def __getitem__(self, step: int) -> TrainingBatch:
        """The batch of this rank at `step` (0, 1, …, without end). Raises DataError if too many samples are
        unusable."""
        places = self.order.places(step, self.batch_size)
        skipped: list[Skipped] = []
        samples = [self._sample(place, skipped) for place in places]
        small = []
        if self.low_res is not None:
            pairs = zip(samples, places, strict=True)
            small = [self._small(self.low_res, one, place) for one, place in pairs]
        batch = collate(samples, small)
        if any(one.low_res is not None for one in samples):
            batch.paired = torch.tensor([one.low_res is None for one in samples])
        batch.read, batch.skipped = len(samples) + len(skipped), skipped
        return batch

    def _small(self, low_res: LowRes, sample: Sample, place: SamplePlace) -> Tensor:
        """The small image of a sample for an upsampler."""
        if sample.low_res is not None:
            return sample.low_res
        return low_res(sample.image, generator_for(self.seed, "low_res", place.number))

    def _sample(self, place: SamplePlace, skipped: list[Skipped]) -> Sample:
        """The sample at a place, or the first usable substitute."""
        for index in place.candidates:
            try:
                sample = self.samples.sample(index, generator_for(self.seed, "augment", place.number))
            except BadSample as bad:
                skipped.append(bad.skipped)
                self._tally.add(1, [bad.skipped])
                self._tally.check()
                continue
            self._tally.add(1, [])
            return sample
        raise DataError(
            f"neither this sample nor those near it can be used; check the shard and its neighbours:\n  {skipped[-1]}"
        )


def centers(samples: SampleSet, count: int) -> list[Sample]:
    """The first `count` usable samples, or as many as there are, centre-cropped."""
    found: list[Sample] = []
    for index in range(len(samples)):
        if len(found) == count:
            break
        try:
            found.append(samples.center(index))
        except BadSample as bad:
            log.warning("left out: %s", bad.skipped)
    if not found:
        raise DataError(f"split '{samples.split}' has no usable sample; check its files")
    return found


class Batches(Iterator[TrainingBatch]):
    """The batches of a loader, and the time spent waiting for them."""

    def __init__(self, loaded: Iterable[TrainingBatch | UserError], tally: Tally | None = None) -> None:
        self._loaded: Iterator[TrainingBatch | UserError] = iter(loaded)
        self._tally = tally
        self._waited = 0.0

    def __next__(self) -> TrainingBatch:
        """The next batch. Raises errors of the process that created it."""
        started = time.perf_counter()
        batch = next(self._loaded)
        self._waited += time.perf_counter() - started
        if isinstance(batch, UserError):
            self._loaded = iter(())  # ends the workers now, not when the traceback is collected
            raise batch
        if self._tally is not None:
            self._tally.add(batch.read, batch.skipped)
        return batch

    def waited(self) -> float:
        """Seconds spent waiting for batches since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds


def loader(
    stream: BatchStream, start: int, stop: int, workers: int = 0, tally: Tally | None = None, pinned: bool = False
) -> Batches:
    """Batches of steps `start` to `stop` - 1 in order, loaded by `workers` processes (0: by this one).

    tally: counts samples read and skipped for the batches taken. pinned: whether batches are in pinned memory.
    """
    return Batches(
        DataLoader(
            _ErrorsReturned(stream),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_begin_worker,
            pin_memory=pinned,
        ),
        tally,
    )


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """Convert the error for a killed loading process to a DataError within the block; torch raises it anywhere."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a data loading process has ended: {str(error).strip().rstrip('.')}",
            local_remedy=f"use fewer if memory is short, such as {option('set')} workers=1 (0: none)",
            remedy=f"free memory, then continue with {option('resume')}",
        ) from error


@dataclass(frozen=True)
class _ErrorsReturned(Dataset[TrainingBatch | UserError]):
    """A stream that returns UserErrors, since torch would add a worker's traceback to raised ones."""

    stream: BatchStream

    def __getitem__(self, step: int) -> TrainingBatch | UserError:
        try:
            return self.stream[step]
        except UserError as error:
            return error


def _begin_worker(number: int) -> None:
    """Ignore signals in a worker: terminals and schedulers send Ctrl-C, SIGHUP and SIGTERM to all processes, but the
    training process needs its workers to finish the step and to save. Forked workers inherit its handlers, which do
    this; others have none."""
    if multiprocessing.get_start_method() != "fork":
        for number in {signal.SIGINT, *ending_signals()} - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(owner: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
        pass
    os._exit(0)


def _unchanged(batch: Any) -> Any:
    return batch
