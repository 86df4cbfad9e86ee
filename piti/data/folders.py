"""Folders of paired images and conditions, checked completely before training."""

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
from piti.core.errors import count_of
from piti.core.images import ImageError, image_size, read_rgb
from piti.core.system import cores
from piti.data.archives import Archived
from piti.data.crops import Cutter, Decoded, Sample
from piti.data.order import Shuffled
from piti.data.pairs import FolderSpec, Pair, PairList
from piti.data.problems import UNREADABLE, Problems, unlisted_notes
from piti.data.shown import FITS_UNTURNED, LOSSY, TURNED, UNEQUAL, Seen, Shown, seen_in

log = logging.getLogger(__name__)

_GIB = 2**30
_RGB = 3  # bytes per pixel


@dataclass(frozen=True)
class FolderReport:
    """Result of a check: the number of pairs, and whether they are cached in memory."""

    pairs: int
    cached: bool
    bytes: int
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    def __str__(self) -> str:
        where = "in memory" if self.cached else "read from disk as needed"
        return f"{count_of(self.pairs, 'pair')}, {self.bytes / 2**20:,.0f} MiB decoded, {where}"


class PairedFolder:
    """Pairs of one split of a folder, matched by path without suffix, sorted by key.

    split: a name in the splits file ("train" or "val" without one), None for every pair. sharp: refuse photographs
    whose crops would have to be enlarged, since an upsampler learns sharpness. A model without a condition uses the
    photographs of `spec.images`, if there is a root, and in training also those of `spec.photographs`. The constructor
    only lists the folders; call `check` before training. Raises DataError if a folder is missing, the splits file is
    not valid, the split is unknown, or nothing matches.
    """

    def __init__(self, spec: FolderSpec, condition: Condition, split: str | None = None, sharp: bool = False) -> None:
        self.spec, self.condition, self.split = spec, condition, split
        self.cutter = Cutter(spec, condition)
        self.smallest = math.ceil(spec.size / spec.crop_scale[0]) if sharp else spec.size
        listed = PairList(spec, condition, split)
        self.pairs = listed.pairs()
        self.split_names = listed.split_names
        self._root, self._problems = listed.root, listed.problems
        self._unlisted = listed.unlisted
        self._decoded: dict[int, Decoded] = {}
        self._sums: list[int] = []
        """Checksums of the pairs' files, after `check`."""
        self._cached: bool | None = None if spec.cache else False

    def __len__(self) -> int:
        return len(self.pairs)

    # Samples

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random square crop, possibly mirrored, the same for image and condition."""
        return self.cutter.random(self._read(index), self.pairs[index].key, generator)

    def center(self, index: int) -> Sample:
        """The deterministic centred square of the largest crop, not mirrored."""
        return self.cutter.center(self._read(index), self.pairs[index].key)

    def order(self, seed: int, rank: int, world: int) -> Shuffled:
        """The order of the pairs in training."""
        return Shuffled(len(self), seed, rank, world)

    def files_of(self, keys: Sequence[str]) -> list[str]:
        """The files of these keys, a line each, for messages."""
        wanted = set(keys)
        return [str(pair) for pair in self.pairs if pair.key in wanted]

    def identity(self) -> str:
        """SHA-256 of the pairs' keys in order, independent of their location. Keys of `spec.photographs` are used
        without the name of their folder or archive."""
        keys = [pair.key for pair in self.pairs]
        if self.spec.photographs:
            keys = [key.partition("/")[2] or key for key in keys]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    def contents(self) -> str | None:
        """SHA-256 of the contents of the pairs' files, in the order of their keys; None before `check`."""
        return hashlib.sha256(repr(self._sums).encode()).hexdigest() if self._sums else None

    def raw(self, index: int) -> Shaped[Tensor, "K h w"]:
        """A pair's raw condition at its own resolution."""
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
        """Whether the data fit the cache; decided once, from the images' headers."""
        if self._cached is None:
            raw = self.condition.planes * self.condition.raw_dtype.itemsize
            needed = sum(_pixels(pair.image) for pair in self.pairs) * (_RGB + raw)
            self._cached = needed <= self.spec.cache_gib * _GIB
            if not self._cached:
                log.warning(
                    "%s: %.1f GiB decoded exceed data.cache_gib = %g; images are read from disk as needed. "
                    "Raise data.cache_gib if there is memory for it, or shrink the images.",
                    self._root,
                    needed / _GIB,
                    self.spec.cache_gib,
                )
        return self._cached

    # Checking

    def check(self, progress: Callable[[int, int], None] | None = None) -> FolderReport:
        """Decode every pair once (filling the cache) and check all.

        progress: called with (done, total). Raises one DataError that lists all problems: images or conditions without
        a partner, keys of the splits file without files, unreadable files, unknown ids or colours, different sizes
        within a pair, images smaller than a sample.
        """
        problems, shown = Problems(self._problems), Shown(self.condition)
        _settle([self], problems, shown)
        report = self._collect(problems, shown, progress)
        _add_unturned(problems, shown)
        problems.raise_if_any(self._root)
        return replace(report, notes=tuple(shown.notes()))

    def settle(self, condition: Condition) -> None:
        """Read conditions with this one from now on."""
        self.condition, self.cutter = condition, Cutter(self.spec, condition)

    def _collect(
        self, problems: Problems, shown: Shown, progress: Callable[[int, int], None] | None = None
    ) -> FolderReport:
        """Decode every pair, adding to `problems` and `shown`."""
        self._fits()  # decided once here, not in several threads
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
            problems.add("splits without pairs (list some, or train without this one)", self.split or "all")
        return FolderReport(len(self.pairs), len(self._decoded) == len(self.pairs), total)

    def _too_small(self) -> str:
        size, share = self.spec.size, self.spec.crop_scale[0]
        if self.smallest == size:
            return f"images smaller than a sample (enlarge them, or lower data.size = {size})"
        return (
            f"images whose crops are smaller than a sample: for {size} px, a crop of {share:g} of the short "
            f"side needs one of {self.smallest} px (remove these images, raise data.crop_scale, or lower data.size)"
        )

    def _examine(self, index: int) -> tuple[int, list[tuple[str, str]], Seen, int]:
        """Decoded bytes of one pair, its problems as (kind, detail), its statistics, and its files' checksum."""
        pair = self.pairs[index]
        found: list[tuple[str, str]] = []
        image = raw = None
        try:
            image = np.asarray(read_rgb(pair.image))
        except ImageError as error:
            found.append((UNREADABLE, str(error)))
        try:
            if pair.condition is not None or image is not None:
                raw = self.cutter.condition_of(pair, image)
        except ImageError as error:
            found.append((UNREADABLE, str(error)))
        except ConditionError as error:
            kind = LOSSY if isinstance(error, LossyCondition) else "invalid conditions"
            found.append((kind, str(error)))
        if image is None or raw is None:
            return 0, found, Seen(), 0
        seen = seen_in(self.condition, pair.image, image, raw)
        height, width = image.shape[:2]
        if self.condition.spatial and raw.shape[-2:] != (height, width):
            size = f"{raw.shape[-1]} x {raw.shape[-2]}"
            turned = raw.shape[-2:] == (width, height) and seen.orientation in TURNED
            kind, why = (FITS_UNTURNED, ", matching the unrotated pixels") if turned else (UNEQUAL, "")
            found.append((kind, f"{pair.key}: image {width} x {height}, condition {size}{why}"))
        if min(width, height) < self.smallest:
            found.append((self._too_small(), f"{pair.image}: {width} x {height}"))
        if self._fits():
            self._decoded[index] = (image, raw)
        return image.nbytes + raw.nbytes, found, seen, _checksum(pair)


def _checksum(pair: Pair) -> int:
    """Checksum of a pair's files."""
    checksum = 0
    for file in pair.files():
        checksum = zlib.crc32(file.open().read() if isinstance(file, Archived) else file.read_bytes(), checksum)
    return checksum


def check_together(folders: Sequence[PairedFolder], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check several splits of one folder, see `check`, and return notes on all of them.

    Raises one DataError with the problems of all.
    """
    total, before = sum(len(folder) for folder in folders), 0
    problems = Problems(folders[0]._problems)  # of the whole folder, the same for every split
    shown = Shown(folders[0].condition)
    _settle(folders, problems, shown)
    for folder in folders:
        folder._collect(problems, shown, _shifted(progress, before, total))
        before += len(folder)
    _add_unturned(problems, shown)
    problems.raise_if_any(folders[0]._root)
    return shown.notes()


def _add_unturned(problems: Problems, shown: Shown) -> None:
    """Add problems for masks that match their photographs before EXIF rotation."""
    if shown.fits_unturned:
        kind = f"{FITS_UNTURNED}, by their colours; {shown.turns()[0]}"
        for name in shown.unturned:
            problems.add(kind, name)


def _settle(folders: Sequence[PairedFolder], problems: Problems, shown: Shown) -> None:
    """Decide how all conditions are read, and note what is not used."""
    shown.said += unlisted_notes(folders[0]._unlisted, folders[0].spec.splits)
    files = [pair.condition for folder in folders for pair in folder.pairs if pair.condition is not None]
    try:
        condition, notes = folders[0].condition.settled(files)
    except ConditionError as error:
        problems.add("ambiguous masks", str(error))
        return
    shown.said += notes
    for folder in folders:
        folder.settle(condition)


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int, int], None]:
    """Convert progress within a part to progress in total."""

    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return told


def _pixels(path: Path | Archived) -> int:
    """Width times height, 0 for unreadable files (which the check reports)."""
    try:
        width, height = image_size(path)
    except ImageError:
        return 0
    return width * height
