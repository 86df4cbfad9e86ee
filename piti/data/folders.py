"""Folders of paired images and conditions, checked as a whole before anything starts."""

from __future__ import annotations

import hashlib
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from piti.conditions import Condition, ConditionError
from piti.conditions.base import LossyCondition
from piti.core.images import ImageError, image_size, read_rgb
from piti.core.system import cores
from piti.data.archives import Archived
from piti.data.crops import Cutter, Decoded, Sample
from piti.data.order import Shuffled
from piti.data.pairs import FolderSpec, Pair, PairList
from piti.data.problems import Problems
from piti.data.shown import FITS_UNTURNED, LOSSY, TURNED, UNEQUAL, Seen, Shown, seen_in

log = logging.getLogger(__name__)

_GIB = 2**30
_RGB = 3  # bytes of a pixel


@dataclass(frozen=True)
class FolderReport:
    """What a check found in order: the number of pairs, and whether they are now held in memory."""

    pairs: int
    cached: bool
    bytes: int
    notes: tuple[str, ...] = ()
    """What else a person should know."""

    def __str__(self) -> str:
        where = "in memory" if self.cached else "read from disk as needed"
        return f"{self.pairs} pairs, {self.bytes / 2**20:,.0f} MiB decoded, {where}"


class PairedFolder:
    """Pairs of one split of a folder, matched by path without suffix, sorted by key.

    split: a name in the splits file ("train" or "val" where there is none), None for every pair.
    sharp: refuse photographs of which a crop would have to be enlarged; an upsampler learns sharpness.
    A model that takes no condition sees the photographs of `spec.images`, if there is a root, and in
    training those of `spec.photographs` too.
    Only the folders are listed here; call `check` before training. Raises DataError if a folder is
    missing, the splits file is not valid, the split is unknown, or nothing matches.
    """

    def __init__(self, spec: FolderSpec, condition: Condition, split: str | None = None, sharp: bool = False) -> None:
        self.spec, self.condition, self.split = spec, condition, split
        self.cutter = Cutter(spec, condition)
        self.smallest = math.ceil(spec.size / spec.crop_scale[0]) if sharp else spec.size
        listed = PairList(spec, condition, split)
        self.pairs = listed.pairs()
        self.split_names = listed.split_names
        self._root, self._problems = listed.root, listed.problems
        self._decoded: dict[int, Decoded] = {}
        self._sums: list[int] = []
        """A checksum of each pair's files, once they are checked."""
        self._cached: bool | None = None if spec.cache else False

    def __len__(self) -> int:
        return len(self.pairs)

    # Samples

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random square crop, perhaps mirrored, the same for image and condition."""
        return self.cutter.random(self._read(index), self.pairs[index].key, generator)

    def center(self, index: int) -> Sample:
        """The centred square of the largest crop, not mirrored: the same every time."""
        return self.cutter.center(self._read(index), self.pairs[index].key)

    def order(self, seed: int, rank: int, world: int) -> Shuffled:
        """In which order training sees the pairs."""
        return Shuffled(len(self), seed, rank, world)

    def files_of(self, keys: Sequence[str]) -> list[str]:
        """The files of these keys, a line each, for a person."""
        wanted = set(keys)
        return [str(pair) for pair in self.pairs if pair.key in wanted]

    def identity(self) -> str:
        """SHA-256 of the pairs' keys in order, wherever their files lie. Keys of `spec.photographs` count without the
        name of their folder or archive."""
        keys = [pair.key for pair in self.pairs]
        if self.spec.photographs:
            keys = [key.partition("/")[2] or key for key in keys]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    def contents(self) -> str | None:
        """SHA-256 of what is in the pairs' files, in the order of their keys; None before they are checked."""
        return hashlib.sha256(repr(self._sums).encode()).hexdigest() if self._sums else None

    def raw(self, index: int) -> Shaped[Tensor, "K h w"]:
        """A pair's raw condition in its own resolution."""
        return self._read(index)[1]

    # Reading

    def _read(self, index: int) -> Decoded:
        found = self._decoded.get(index)
        if found is None:
            found = self.cutter.decode(self.pairs[index])
            if self._fits():
                self._decoded[index] = found
        return found

    def _fits(self) -> bool:
        """Whether the cache may be used; decided once, from the images' headers."""
        if self._cached is None:
            raw = self.condition.planes * self.condition.raw_dtype.itemsize
            needed = sum(_pixels(pair.image) for pair in self.pairs) * (_RGB + raw)
            self._cached = needed <= self.spec.cache_gib * _GIB
            if not self._cached:
                log.warning(
                    "%s: %.1f GiB decoded exceed data.cache_gib = %g; pictures are read from disk as needed. "
                    "Raise data.cache_gib if there is memory for it, or shrink the pictures.",
                    self._root,
                    needed / _GIB,
                    self.spec.cache_gib,
                )
        return self._cached

    # Checking

    def check(self, progress: Callable[[int, int], None] | None = None) -> FolderReport:
        """Decode every pair once (filling the cache) and verify the whole.

        progress: called with (done, total). Raises one DataError that lists all problems together:
        images or conditions alone, keys of the splits file without files, unreadable files, unknown
        ids or colours, sizes that differ within a pair, pictures smaller than a sample.
        """
        problems, shown = Problems(self._problems), Shown(self.condition)
        _settle([self], problems, shown)
        report = self._collect(problems, shown, progress)
        _add_unturned(problems, shown)
        problems.raise_if_any(self._root)
        return replace(report, notes=tuple(shown.notes()))

    def settle(self, condition: Condition) -> None:
        """Read conditions as this one does from now on."""
        self.condition, self.cutter = condition, Cutter(self.spec, condition)

    def _collect(
        self, problems: Problems, shown: Shown, progress: Callable[[int, int], None] | None = None
    ) -> FolderReport:
        """Decode every pair and add what is wrong to `problems`, and what a person should know to `shown`."""
        self._fits()  # decided here once, not by several threads
        total, self._sums = 0, []
        with ThreadPoolExecutor(cores()) as pool:
            for index, (size, found, seen, checksum) in enumerate(pool.map(self._examine, range(len(self.pairs)))):
                total += size
                self._sums.append(checksum)
                for kind, what in found:
                    problems.add(kind, what)
                shown.add(seen, str(self.pairs[index].image))
                if progress is not None:
                    progress(index + 1, len(self.pairs))
        if not self.pairs:
            problems.add("splits without pairs (name some, or train without this one)", self.split or "all")
        return FolderReport(len(self.pairs), len(self._decoded) == len(self.pairs), total)

    def _too_small(self) -> str:
        size, share = self.spec.size, self.spec.crop_scale[0]
        if self.smallest == size:
            return f"images smaller than a sample (enlarge them, or lower data.size = {size})"
        return (
            f"images of which a crop is smaller than a sample: crops of {share:g} of the short side are to have {size} "
            f"px, so it needs {self.smallest} (leave these out, raise data.crop_scale, or lower data.size)"
        )

    def _examine(self, index: int) -> tuple[int, list[tuple[str, str]], Seen, int]:
        """Bytes decoded, what is wrong with one pair, as (kind, detail), what it shows, and its files' checksum."""
        pair = self.pairs[index]
        found: list[tuple[str, str]] = []
        image = raw = None
        try:
            image = np.asarray(read_rgb(pair.image))
        except ImageError as error:
            found.append((_UNREADABLE, str(error)))
        try:
            if pair.condition is not None or image is not None:
                raw = self.cutter.condition_of(pair, image)
        except ImageError as error:
            found.append((_UNREADABLE, str(error)))
        except ConditionError as error:
            kind = LOSSY if isinstance(error, LossyCondition) else "conditions that do not fit their kind"
            found.append((kind, str(error)))
        if image is None or raw is None:
            return 0, found, Seen(), 0
        seen = seen_in(self.condition, pair.image, image, raw)
        height, width = image.shape[:2]
        if self.condition.spatial and raw.shape[-2:] != (height, width):
            size = f"{raw.shape[-1]} x {raw.shape[-2]}"
            turned = raw.shape[-2:] == (width, height) and seen.orientation in TURNED
            kind, why = (FITS_UNTURNED, ", the file's pixels unturned") if turned else (UNEQUAL, "")
            found.append((kind, f"{pair.key}: image {width} x {height}, condition {size}{why}"))
        if min(width, height) < self.smallest:
            found.append((self._too_small(), f"{pair.image}: {width} x {height}"))
        if self._fits():
            self._decoded[index] = (image, raw)
        return image.nbytes + raw.nbytes, found, seen, _checksum(pair)


def _checksum(pair: Pair) -> int:
    """Of the bytes of a pair's files."""
    checksum = 0
    for file in pair.files():
        checksum = zlib.crc32(file.open().read() if isinstance(file, Archived) else file.read_bytes(), checksum)
    return checksum


_UNREADABLE = "unreadable files (replace or remove them)"


def check_together(folders: Sequence[PairedFolder], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check several splits of one folder, see `check`, and say what a person should know of the whole.

    Raises one DataError with the problems of all.
    """
    total, before = sum(len(folder) for folder in folders), 0
    problems = Problems(folders[0]._problems)  # of the folder as a whole, the same for every split
    shown = Shown(folders[0].condition)
    _settle(folders, problems, shown)
    for folder in folders:
        folder._collect(problems, shown, _shifted(progress, before, total))
        before += len(folder)
    _add_unturned(problems, shown)
    problems.raise_if_any(folders[0]._root)
    return shown.notes()


def _add_unturned(problems: Problems, shown: Shown) -> None:
    """Make problems of masks that lie over the pixels of their photographs before these are turned."""
    if shown.fits_unturned:
        kind = f"{FITS_UNTURNED}, by their colours; {shown.turns()[0]}"
        for name in shown.unturned:
            problems.add(kind, name)


def _settle(folders: Sequence[PairedFolder], problems: Problems, shown: Shown) -> None:
    """Decide once for all conditions how they are read."""
    files = [pair.condition for folder in folders for pair in folder.pairs if pair.condition is not None]
    try:
        condition, notes = folders[0].condition.settled(files)
    except ConditionError as error:
        problems.add("masks that can be read in two ways", str(error))
        return
    shown.said += notes
    for folder in folders:
        folder.settle(condition)


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int, int], None]:
    """Progress within one of several parts, told as progress in the whole."""

    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return told


def _pixels(path: Path | Archived) -> int:
    """Width times height, 0 for what cannot be opened (the check names it)."""
    try:
        width, height = image_size(path)
    except ImageError:
        return 0
    return width * height
