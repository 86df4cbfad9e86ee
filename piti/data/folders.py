"""Folders of paired images and conditions, checked as a whole before anything starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from piti.conditions.base import Condition, ConditionError
from piti.errors import UserError
from piti.images import (
    Box,
    ImageError,
    center_box,
    crop_resize,
    image_size,
    list_images,
    read_rgb,
    to_tensor,
)
from piti.spec import Spec, choices

log = logging.getLogger(__name__)

_GIB = 2**30
_BYTES_PER_PIXEL = 4  # RGB and a class index
_HELD_OUT = 0.05  # the share of keys that a hash gives to "val" where there is no splits file
_NAMED = 5  # how many files of each kind of problem a report names


class DataError(UserError):
    """A data set cannot be used. The message lists the problems, the files and the remedies."""


@dataclass(frozen=True)
class Pair:
    """An image and the condition that belongs to it; `key` is their common path without suffix."""

    key: str
    image: Path
    condition: Path


@dataclass
class Sample:
    """One training example: image in [-1, 1], raw condition (see Condition), and its key."""

    image: Float[Tensor, "3 s s"]
    condition: Shaped[Tensor, "K c c"]
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


class FolderSpec(Spec):
    """Where the pairs lie and how samples are cut out of them."""

    root: Path | None = None
    """The folder that holds the others."""
    images: str = "images"
    """Photographs, in any depth of subfolders."""
    conditions: str = "labels"
    """Conditions: the same paths, any suffix."""
    splits: str = "splits.json"
    """`{"train": [keys], "val": [keys]}`; without the file a hash of each key holds out about 5%."""
    size: int = Field(default=64, ge=1)
    """Side of a sample in pixels."""
    condition_size: int | None = Field(default=None, ge=1)
    """Side of its condition; none: the sample's."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Random square crops: their side as a share of the picture's short side, from and to."""
    flip: bool = True
    """Mirror half of the samples."""
    cache: bool = True
    """Keep decoded pictures in memory if they fit."""
    cache_gib: float = Field(default=4.0, ge=0)
    """The most that the cache may take."""

    @property
    def condition_side(self) -> int:
        """Side of a sample's condition in pixels."""
        return self.condition_size or self.size

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError("expected [from, to] with 0 < from <= to <= 1, shares of the short side")
        return value


_Decoded = tuple[UInt8[np.ndarray, "h w 3"], Shaped[Tensor, "K h w"]]


class _Problems:
    """What is wrong, by kind, in the order of discovery."""

    def __init__(self, others: _Problems | None = None) -> None:
        self._by_kind = {kind: list(found) for kind, found in others._by_kind.items()} if others else {}

    def add(self, kind: str, what: str) -> None:
        self._by_kind.setdefault(kind, []).append(what)

    def raise_if_any(self, root: Path) -> None:
        """One DataError with every kind, its count and its first few."""
        if not self._by_kind:
            return
        lines = [f"{root}: the data set has problems"]
        for kind, found in self._by_kind.items():
            lines.append(f"  {len(found)} {kind}:")
            lines += [f"    {what}" for what in found[:_NAMED]]
            if len(found) > _NAMED:
                lines.append(f"    … and {len(found) - _NAMED} more")
        raise DataError("\n".join(lines))


class PairedFolder:
    """Pairs of one split of a folder, matched by path without suffix, sorted by key.

    split: a name in the splits file ("train" or "val" where there is none), None for every pair.
    Only the folders are listed here; call `check` before training. Raises DataError if a folder is
    missing, the splits file is not valid, the split is unknown, or nothing matches.
    """

    def __init__(self, spec: FolderSpec, condition: Condition, split: str | None = None) -> None:
        if spec.root is None:
            raise DataError("no data folder given; set data.root in the recipe or pass --data FOLDER")
        self.spec = spec
        self.condition = condition
        self.split = split
        self._root = spec.root
        self._problems = _Problems()
        images = self._files(spec.root / spec.images)
        conditions = self._files(spec.root / spec.conditions)
        for key in sorted(images.keys() - conditions.keys()):
            self._problems.add(f"images without a condition in {spec.conditions}/", key)
        for key in sorted(conditions.keys() - images.keys()):
            self._problems.add(f"conditions without an image in {spec.images}/", key)
        keys = sorted(images.keys() & conditions.keys())
        if not keys:
            self._problems.raise_if_any(spec.root)
            raise DataError(f"{spec.root}: {spec.images}/ and {spec.conditions}/ hold no pictures")
        if split is not None:
            keys = self._keys_of(split, keys, images.keys() | conditions.keys())
        self.pairs = [Pair(key, images[key], conditions[key]) for key in keys]
        self._decoded: dict[int, _Decoded] = {}
        self._cached: bool | None = None if spec.cache else False

    def __len__(self) -> int:
        return len(self.pairs)

    # Matching

    def _files(self, folder: Path) -> dict[str, Path]:
        """Pictures below `folder` by key; two files of one key are a problem."""
        try:
            paths = list_images(folder, recursive=True)
        except ImageError:
            raise DataError(
                f"{folder}: no such folder; put the pictures there, or set data.images and data.conditions"
            ) from None
        files: dict[str, Path] = {}
        for path in paths:
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in files:
                self._problems.add("keys with several files (keep one)", f"{files[key]} and {path.name}")
            files[key] = path
        return files

    def _keys_of(self, split: str, paired: Sequence[str], existing: Set[str]) -> list[str]:
        """The keys of a split that have both files; whatever else the split names is a problem."""
        splits = self._read_splits()
        if splits is None:
            splits = split_by_hash(paired)
        if split not in splits:
            raise DataError(f"{self._root}: no split '{split}'; {choices(split, splits)}")
        places: dict[str, list[str]] = {}
        for name, keys in splits.items():
            for key in keys:
                places.setdefault(key, []).append(name)
        for key, names in places.items():
            if len(names) > 1:
                self._problems.add(f"keys listed more than once in {self.spec.splits}", f"{key}: {', '.join(names)}")
            if key not in existing:
                self._problems.add(f"keys in {self.spec.splits} without files (paths without suffix)", key)
        return sorted(set(splits[split]).intersection(paired))

    @property
    def split_names(self) -> list[str]:
        """The splits there are to choose from."""
        return list(self._read_splits() or split_by_hash([]))

    def _read_splits(self) -> dict[str, list[str]] | None:
        """The splits file, None where there is none by the usual name."""
        path = self._root / self.spec.splits
        if not path.exists() and self.spec.splits == FolderSpec.model_fields["splits"].default:
            return None
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot read the splits ({error}); correct data.splits or the file") from error
        lists = splits.values() if isinstance(splits, dict) else [None]
        if not all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in lists):
            raise DataError(f'{path}: expected {{"train": [keys], "val": [keys]}}, lists of strings by name')
        return splits

    # Samples

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random square crop, perhaps mirrored, the same for image and condition."""
        image, raw = self._read(index)
        box, mirrored = self._draw(image.shape[1], image.shape[0], generator)
        return self._cut(index, image, raw, box, mirrored)

    def center(self, index: int) -> Sample:
        """The largest centred square, not mirrored: the same every time."""
        image, raw = self._read(index)
        return self._cut(index, image, raw, center_box(image.shape[1], image.shape[0]), mirrored=False)

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
        raw: Shaped[Tensor, "K h w"],
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
        return np.asarray(read_rgb(pair.image)), self.condition.load(pair.condition)

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
        problems = _Problems(self._problems)
        report = self._collect(problems, progress)
        problems.raise_if_any(self._root)
        return report

    def _collect(self, problems: _Problems, progress: Callable[[int, int], None] | None = None) -> FolderReport:
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
            raw = self.condition.load(pair.condition)
        except ImageError as error:
            found.append((_UNREADABLE, str(error)))
        except ConditionError as error:
            found.append(("conditions that do not fit their kind", str(error)))
        if image is None or raw is None:
            return 0, found
        height, width = image.shape[:2]
        if raw.shape[-2:] != (height, width):
            size = f"{raw.shape[-1]} x {raw.shape[-2]}"
            found.append((_UNEQUAL, f"{pair.key}: image {width} x {height}, condition {size}"))
        if min(width, height) < self.spec.size:
            kind = f"images smaller than a sample (enlarge them, or lower data.size = {self.spec.size})"
            found.append((kind, f"{pair.key}: {width} x {height}"))
        if self._fits():
            self._decoded[index] = (image, raw)
        return image.nbytes + raw.nbytes, found


_UNREADABLE = "unreadable files (replace or remove them)"
_UNEQUAL = "pairs whose sizes differ (export both at the same size)"


def check_together(folders: Sequence[PairedFolder], progress: Callable[[int, int], None] | None = None) -> None:
    """Check several splits of one folder and raise one DataError with the problems of all, see `check`."""
    total, before = sum(len(folder) for folder in folders), 0
    problems = _Problems(folders[0]._problems)  # of the folder as a whole, the same for every split
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


def split_by_hash(keys: Sequence[str]) -> dict[str, list[str]]:
    """ "train" and "val" where nobody chose: a key is held out if its hash falls into the lowest 5%.

    A key's place does not change when others come or go, except that "val" gets the key of the lowest
    hash where none fell into it, and "train" never loses its last one.
    """
    order = sorted(keys, key=_hash)
    count = sum(_hash(key) < _HELD_OUT for key in order)
    held_out = min(max(1, count), len(order) - 1)
    return {"train": sorted(order[held_out:]), "val": sorted(order[:held_out])}


def _hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _pixels(path: Path) -> int:
    """Width times height, 0 for what cannot be opened (the check names it)."""
    try:
        width, height = image_size(path)
    except ImageError:
        return 0
    return width * height
