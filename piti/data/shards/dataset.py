"""Sample sets in WebDataset tars: selection, reading, and unusable samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from piti.conditions import Condition, ConditionError, SeveralCondition
from piti.core.errors import Message, count_of, text_of
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError
from piti.core.seeding import derive_seed
from piti.data.archives import InShard, ShardSample
from piti.data.crops import Cutter, Decoded, Sample
from piti.data.order import ByShards, spaced
from piti.data.pairs import HELD_OUT, FolderSpec, Pair, Stored
from piti.data.problems import BadSample, DataError, Skipped, reason_of
from piti.data.shards.cache import OpenShard, Shard, ShardStore
from piti.data.shards.index import cache_of, counted, extensions_of, list_shards
from piti.data.shown import Shown, seen_in

_GIB = 2**30
LOOKED = 200
"""Largest number of samples of shards that are checked before a run."""


class ShardSet:
    """The samples of some shards, decoded on demand.

    shards: each with its number of samples. held_out: use only held-out samples (True), only the others (False), or all
    (None); whether a sample is held out depends only on the shard's name and the sample's number in it. sharp: refuse
    photographs whose crops would have to be enlarged.
    """

    def __init__(
        self,
        spec: FolderSpec,
        condition: Condition,
        shards: Sequence[Shard],
        extensions: Mapping[str, str],
        split: str,
        held_out: bool | None = None,
        sharp: bool = False,
    ) -> None:
        self.spec, self.condition, self.split, self.held_out = spec, condition, split, held_out
        self.cutter = Cutter(spec, condition)
        self.smallest = math.ceil(spec.size / spec.crop_scale[0]) if sharp else spec.size
        self.extensions = dict(extensions)
        self.store = ShardStore(shards, cache_of(spec), keep=2 * spec.shuffle_shards + 2)
        self._kept = None if held_out is None else _held_out(shards, held_out)
        every = [shard.samples or 0 for shard in shards]
        self.counts = np.array(every if self._kept is None else [len(kept) for kept in self._kept], np.int64)
        self._ends = np.cumsum(self.counts)
        self._bad: dict[int, Skipped] = {}
        self._memory = _Memory(len(self), spec.cache_gib * _GIB if spec.cache else 0)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def order(self, seed: int, rank: int, world: int) -> ByShards:
        """The order in training: shard by shard for each rank, so that each downloads its own."""
        return ByShards(self.counts.tolist(), self.spec.shuffle_shards, seed, rank, world, self.store.expect)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A random square crop, possibly mirrored. Raises BadSample, and DataError for an unavailable shard."""
        key, decoded = self._read(index)
        return self.cutter.random(decoded, key, generator)

    def center(self, index: int) -> Sample:
        """The centred square of the largest crop. Raises as `sample`."""
        key, decoded = self._read(index)
        return self.cutter.center(decoded, key)

    def files_of(self, keys: Sequence[str]) -> list[str]:
        """The shards of these keys, a line each, for messages."""
        addresses = {shard.name: str(shard) for shard in self.store.shards}
        return [f"{key} in {addresses.get(key.partition('/')[0], '?')}" for key in keys]

    def identity(self) -> None:
        """None: keys are unknown before shards are downloaded, and samples may be packed differently."""

    def contents(self) -> str | None:
        """SHA-256 of the shards' names and contents in order, by the manifest, or without one by the names and sizes of
        the files in them; None if a shard has neither."""
        hashes = [(shard.name, shard.sha256) for shard in self.store.shards]
        if any(known is None for _, known in hashes):
            return None
        return hashlib.sha256(repr(hashes).encode()).hexdigest()

    def looked(self, most: int = LOOKED) -> list[str]:
        """Notes on evenly spaced samples of the local shards; nothing is downloaded.

        They cover the classes that occur, unlabelled pixels, rotated photographs, and the number of samples checked.
        Unusable samples are skipped here; training reports them.
        """
        here = [number for number, shard in enumerate(self.store.shards) if not shard.remote]
        ends = [range(int(self._ends[k] - self.counts[k]), int(self._ends[k])) for k in here]
        local = [index for span in ends for index in span]
        shown = Shown(self.condition)
        for index in spaced(local, most):
            try:
                pair, (image, raw) = self._decoded(index)
            except (BadSample, DataError):
                continue
            shown.add(seen_in(self.condition, pair.image, image, raw))
        notes = shown.notes()
        far = len(self.store.shards) - len(here)
        if far and not local:
            return ["no samples were checked: the shards are downloaded during training"]
        return [Message(f"in {shown.pairs} of {len(self)} samples checked: {text_of(note)}") for note in notes]

    # Reading

    def _read(self, index: int) -> tuple[str, Decoded]:
        if index in self._bad:
            raise BadSample(self._bad[index])
        found = self._memory.get(index)
        if found is not None:
            return found
        try:
            pair, decoded = self._decoded(index)
        except BadSample as bad:
            self._bad[index] = bad.skipped
            raise
        found = pair.key, decoded
        self._memory.put(index, found)
        return found

    def _decoded(self, index: int) -> tuple[Pair, Decoded]:
        number = int(np.searchsorted(self._ends, index, "right"))
        within = index - int(self._ends[number] - self.counts[number])
        position = within if self._kept is None else int(self._kept[number][within])
        opened = self.store.opened(number)
        if position >= len(opened.index.samples):
            raise BadSample(_beyond(opened, position))
        found = opened.index.samples[position]
        name = f"{opened.shard}: {found.key}"
        pair = self._pair(opened, found, name)
        try:
            decoded = self.cutter.decode(pair)
        except (ImageError, ConditionError, OSError) as error:
            raise BadSample(Skipped(name, reason_of(error, str(opened.shard)))) from None
        self._check(name, decoded)
        return pair, decoded

    def _pair(self, opened: OpenShard, found: ShardSample, name: str) -> Pair:
        """A sample's files by purpose. Raises BadSample if one is missing or ambiguous."""
        if found.twice:
            raise BadSample(Skipped(name, f"contains {found.name(found.twice[0])} more than once"))
        conditions = {part: self._condition_of(found, part, name) for part in self.extensions}
        given = {part: extension for part, extension in conditions.items() if extension is not None}
        image = self._image_of(found, set(given.values()), name)
        needed = 1 if self.spec.partial else len(conditions)
        if len(given) < needed:
            missing = next(part for part, extension in conditions.items() if extension is None)
            raise BadSample(Skipped(name, f"has no {found.name(self.extensions[missing])} beside {found.name(image)}"))
        files = {part: _file(opened, found, extension) for part, extension in given.items()}
        condition: Stored | dict[str, Stored] | None = None
        if files:
            condition = dict(files) if isinstance(self.condition, SeveralCondition) else next(iter(files.values()))
        return Pair(f"{opened.shard.name}/{found.key}", _file(opened, found, image), condition)

    def _image_of(self, found: ShardSample, others: set[str], name: str) -> str:
        """Extension of the photograph. Raises BadSample."""
        if self.spec.shard_image is not None:
            if self.spec.shard_image in found.files:
                return self.spec.shard_image
            raise BadSample(Skipped(name, f"has no {found.name(self.spec.shard_image)} (data.shard_image)"))
        pictures = [one for one in found.files if f".{one}" in IMAGE_SUFFIXES and one not in others]
        if len(pictures) == 1:
            return pictures[0]
        what = f"several photographs ({', '.join(pictures)}; set data.shard_image)" if pictures else "no photograph"
        raise BadSample(Skipped(name, f"has {what}"))

    def _condition_of(self, found: ShardSample, part: str, name: str) -> str | None:
        """Extension of a part's file: the given one, possibly with a suffix of its kind."""
        wanted = self.extensions[part]
        if wanted in found.files:
            return wanted
        suffixes = self.condition.named_parts()[part].suffixes
        fitting = [f"{wanted}{suffix}" for suffix in suffixes if f"{wanted}{suffix}" in found.files]
        if len(fitting) > 1:
            raise BadSample(Skipped(name, f"has several conditions ({', '.join(sorted(fitting))})"))
        return next(iter(fitting), None)

    def _check(self, name: str, decoded: Decoded) -> None:
        """Raises BadSample for different sizes, and images that are too small."""
        image, raw = decoded
        height, width = image.shape[:2]
        if self.condition.spatial and raw.shape[-2:] != (height, width):
            size = f"{raw.shape[-1]} x {raw.shape[-2]}"
            raise BadSample(Skipped(name, f"the image is {width} x {height}, its condition {size}"))
        if min(width, height) < self.smallest:
            raise BadSample(Skipped(name, f"is {width} x {height}, samples need a short side of {self.smallest}"))


def _beyond(opened: OpenShard, position: int) -> Skipped:
    """The error for a counted sample that is missing, or for the damage before it."""
    readable, damage = len(opened.index.samples), opened.index.damage
    if damage is None:
        cause = f"it has {count_of(readable, 'sample')}, fewer than counted"
        return Skipped(f"{opened.shard}: sample {position + 1} of {opened.shard.samples}", cause)
    return Skipped(f"{opened.shard}: what follows sample {readable}" if readable else str(opened.shard), damage)


def _file(opened: OpenShard, found: ShardSample, extension: str) -> InShard:
    offset, size = found.files[extension]
    return InShard(Path(opened.handle.name), found.name(extension), offset, size, str(opened.shard), opened.handle)


class _Memory:
    """Cache of decoded samples in this process, if the whole set would fit."""

    def __init__(self, count: int, most: float) -> None:
        self.count, self.most = count, most
        self._held: dict[int, tuple[str, Decoded]] = {}
        self._bytes = 0

    def get(self, index: int) -> tuple[str, Decoded] | None:
        return self._held.get(index)

    def put(self, index: int, found: tuple[str, Decoded]) -> None:
        """Cache a sample, unless the set is too large, as estimated from those so far."""
        image, raw = found[1]
        size = image.nbytes + raw.nbytes
        info = torch.utils.data.get_worker_info()
        most = self.most / (info.num_workers if info is not None else 1)
        mean = (self._bytes + size) / (len(self._held) + 1)
        if mean * self.count <= most and self._bytes + size <= most:
            self._held[index] = found
            self._bytes += size


def _held_out(shards: Sequence[Shard], held_out: bool) -> list[Int64[np.ndarray, " n"]]:
    """The held-out samples of each shard, or the others: about 5%, at least one, but never all."""
    drawn = [np.random.default_rng(derive_seed("held out", one.name)).random(one.samples or 0) for one in shards]
    total = sum(map(len, drawn))
    lowest = min((float(numbers.min()) for numbers in drawn if len(numbers)), default=1.0)
    share = 0.0 if total < 2 else max(HELD_OUT, math.nextafter(lowest, 1.0))
    return [np.flatnonzero((numbers < share) == held_out).astype(np.int64) for numbers in drawn]


def open_shards(
    spec: FolderSpec, condition: Condition, sharp: bool = False, progress: Callable[[int, int], None] | None = None
) -> tuple[ShardSet, ShardSet | None]:
    """A recipe's training and validation sets. Reads manifests and headers, not images.

    sharp: see `ShardSet`. progress: of counting samples without a manifest. Raises DataError.
    """
    listed = list_shards(spec)
    extensions = extensions_of(spec, condition, listed.conditions)
    every = counted([*listed.train, *listed.val], cache_of(spec), progress)
    train, val = every[: len(listed.train)], every[len(listed.train) :]
    if not listed.chosen:
        training = ShardSet(spec, condition, train, extensions, "train", held_out=False, sharp=sharp)
        held = ShardSet(spec, condition, train, extensions, "val", held_out=True, sharp=sharp)
    else:
        training = ShardSet(spec, condition, train, extensions, "train", sharp=sharp)
        held = ShardSet(spec, condition, val, extensions, "val", sharp=sharp)
    if not len(training):
        raise DataError(f"{', '.join(map(str, train[:3]))}: no samples; expected files such as KEY.jpg in them")
    return training, held if len(held) else None
