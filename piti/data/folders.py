"""Folders of paired images and conditions, checked as a whole before anything starts."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from piti.conditions import Condition, ConditionError
from piti.data.archives import Archived
from piti.data.pairs import FolderSpec, Pair, PairList
from piti.data.problems import Problems
from piti.images import Box, ImageError, crop_resize, image_size, read_rgb, to_tensor

log = logging.getLogger(__name__)

_GIB = 2**30
_BYTES_PER_PIXEL = 4  # RGB and a class index


@dataclass
class Sample:
    """One training example: image in [-1, 1], raw condition (see Condition), and its key."""

    image: Float[Tensor, "3 s s"]
    condition: Shaped[Tensor, "K hc wc"]
    key: str


@dataclass(frozen=True)
class FolderReport:
    """What a check found in order: the number of pairs, and whether they are now held in memory."""

    pairs: int
    cached: bool
    bytes: int

    def __str__(self) -> str:
        where = "in memory" if self.cached else "read from disk as needed"
        return f"{self.pairs} pairs, {self.bytes / 2**20:,.0f} MiB decoded, {where}"


_Decoded = tuple[UInt8[np.ndarray, "h w 3"], Shaped[Tensor, "K h2 w2"]]


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
        self.smallest = math.ceil(spec.size / spec.crop_scale[0]) if sharp else spec.size
        listed = PairList(spec, condition, split)
        self.pairs = listed.pairs()
        self.split_names = listed.split_names
        self._root, self._problems = listed.root, listed.problems
        self._decoded: dict[int, _Decoded] = {}
        self._cached: bool | None = None if spec.cache else False

    def __len__(self) -> int:
        return len(self.pairs)

    # Samples

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random square crop, perhaps mirrored, the same for image and condition."""
        image, raw = self._read(index)
        box, mirrored = self._draw(image.shape[1], image.shape[0], generator)
        return self._cut(index, image, raw, box, mirrored)

    def center(self, index: int) -> Sample:
        """The centred square of the largest crop, not mirrored: the same every time."""
        image, raw = self._read(index)
        height, width = image.shape[:2]
        side = max(1, round(min(width, height) * self.spec.crop_scale[1]))
        return self._cut(index, image, raw, Box((width - side) // 2, (height - side) // 2, side, side), mirrored=False)

    def _draw(self, width: int, height: int, generator: torch.Generator) -> tuple[Box, bool]:
        """Always four numbers, so that a sample does not depend on what the others used."""
        scale, x, y, mirror = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        low, high = self.spec.crop_scale
        side = max(1, round(min(width, height) * (low + (high - low) * scale)))
        box = Box(int(x * (width - side + 1)), int(y * (height - side + 1)), side, side)
        return box, self.spec.flip and mirror < 0.5

    def _cut(
        self,
        index: int,
        image: UInt8[np.ndarray, "h w 3"],
        raw: Shaped[Tensor, "K h2 w2"],
        box: Box,
        mirrored: bool,
    ) -> Sample:
        pixels = to_tensor(crop_resize(image, box, self.spec.size))  # [3, s, s]
        condition = self.condition.crop_resize(raw, box, self.spec.condition_side)  # [K, c, c]
        if mirrored:
            pixels, condition = pixels.flip(-1), self.condition.flip(condition)
        return Sample(pixels, condition, self.pairs[index].key)

    # Reading

    def _read(self, index: int) -> _Decoded:
        found = self._decoded.get(index)
        if found is None:
            found = self._decode(index)
            if self._fits():
                self._decoded[index] = found
        return found

    def _decode(self, index: int) -> _Decoded:
        pair = self.pairs[index]
        image = np.asarray(read_rgb(pair.image))
        return image, self._condition_of(pair, image)

    def _condition_of(self, pair: Pair, image: UInt8[np.ndarray, "h w 3"] | None) -> Shaped[Tensor, "K h2 w2"]:
        """The pair's raw condition; no planes for a photograph alone. Raises ImageError or ConditionError."""
        if pair.condition is not None:
            return self.condition.load(pair.condition)
        return torch.empty(0, *(image.shape[:2] if image is not None else (0, 0)), dtype=torch.uint8)

    def _fits(self) -> bool:
        """Whether the cache may be used; decided once, from the images' headers."""
        if self._cached is None:
            needed = sum(_pixels(pair.image) for pair in self.pairs) * _BYTES_PER_PIXEL
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
        problems = Problems(self._problems)
        report = self._collect(problems, progress)
        problems.raise_if_any(self._root)
        return report

    def _collect(self, problems: Problems, progress: Callable[[int, int], None] | None = None) -> FolderReport:
        """Decode every pair and add what is wrong to `problems`."""
        self._fits()  # decided here once, not by several threads
        total = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, (size, found) in enumerate(pool.map(self._examine, range(len(self.pairs)))):
                total += size
                for kind, what in found:
                    problems.add(kind, what)
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

    def _examine(self, index: int) -> tuple[int, list[tuple[str, str]]]:
        """Bytes decoded and what is wrong with one pair, as (kind, detail)."""
        pair = self.pairs[index]
        found: list[tuple[str, str]] = []
        image = raw = None
        try:
            image = np.asarray(read_rgb(pair.image))
        except ImageError as error:
            found.append((_UNREADABLE, str(error)))
        try:
            if pair.condition is not None or image is not None:
                raw = self._condition_of(pair, image)
        except ImageError as error:
            found.append((_UNREADABLE, str(error)))
        except ConditionError as error:
            found.append(("conditions that do not fit their kind", str(error)))
        if image is None or raw is None:
            return 0, found
        height, width = image.shape[:2]
        if self.condition.spatial and raw.shape[-2:] != (height, width):
            size = f"{raw.shape[-1]} x {raw.shape[-2]}"
            found.append((_UNEQUAL, f"{pair.key}: image {width} x {height}, condition {size}"))
        if min(width, height) < self.smallest:
            found.append((self._too_small(), f"{pair.image}: {width} x {height}"))
        if self._fits():
            self._decoded[index] = (image, raw)
        return image.nbytes + raw.nbytes, found


_UNREADABLE = "unreadable files (replace or remove them)"
_UNEQUAL = "pairs whose sizes differ (export both at the same size)"


def check_together(folders: Sequence[PairedFolder], progress: Callable[[int, int], None] | None = None) -> None:
    """Check several splits of one folder and raise one DataError with the problems of all, see `check`."""
    total, before = sum(len(folder) for folder in folders), 0
    problems = Problems(folders[0]._problems)  # of the folder as a whole, the same for every split
    for folder in folders:
        folder._collect(problems, _shifted(progress, before, total))
        before += len(folder)
    problems.raise_if_any(folders[0]._root)


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
