"""Listing a recipe's shards, with their sample counts and the extensions of conditions."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from piti.conditions import Condition, NoCondition, SeveralCondition
from piti.core.spec import Spec, SpecError, choices
from piti.data.pairs import FolderSpec, condition_folders
from piti.data.problems import DataError
from piti.data.shards.cache import Shard, ShardCache
from piti.data.shards.fetch import Expected, read_small
from piti.data.shards.sources import MANIFEST, beside, expanded, is_manifest, is_remote, shown


class ShardEntry(Spec):
    """One shard."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/]+\.tar$")]
    """Its file name, relative to the manifest."""
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Spec):
    """All shards of a data set."""

    version: Literal[1] = 1
    conditions: dict[str, str] = Field(default_factory=dict)
    """Extensions of conditions, without suffix, by the names of the packed folders."""
    classes: dict[str, Any] | None = None
    """The class table, if any, in the form of the recipe's `condition.classes`."""
    splits: dict[str, tuple[ShardEntry, ...]]
    """Shards by split."""

    @model_validator(mode="after")
    def _distinct(self) -> Manifest:
        names = [entry.name for entries in self.splits.values() for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"names {twice[0]} more than once")
        return self

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [entry for entries in self.splits.values() for entry in entries]

    def to_json(self) -> str:
        """The manifest file's contents."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def read_manifest(address: str, timeout: float = 60.0) -> Manifest:
    """Read a manifest from a path, by HTTP or from a `pipe:`. Raises DataError."""
    try:
        data = read_small(address, timeout) if is_remote(address) else Path(address).read_bytes()
        values = json.loads(data)
    except OSError as error:
        raise DataError(f"{address}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise DataError(f"{shown(address)}: not valid JSON ({error}); pack the shards again") from None
    if not isinstance(values, dict) or "splits" not in values:
        raise DataError(f"{shown(address)}: is not a shard manifest; give the {MANIFEST} of `piti prepare shards`")
    try:
        return Manifest.parse(values, shown(address))
    except SpecError as error:
        raise DataError(f"{error}\n  pack the shards again, or correct the file") from None


log = logging.getLogger(__name__)

_NAMED = 5  # number of shards listed in an error
_AT_ONCE = 4  # shards counted in parallel


@dataclass(frozen=True)
class ShardList:
    """The shards of a recipe's addresses."""

    train: tuple[Shard, ...]
    val: tuple[Shard, ...]
    chosen: bool
    """Whether the validation shards are given, possibly none; else some samples are held out."""
    conditions: dict[str, str]
    """Extensions of conditions by the packed folders, from the manifests."""
    tables: dict[str, dict[str, Any]]
    """The class table of each manifest that has one, by its address."""

    @property
    def classes(self) -> dict[str, Any] | None:
        """The class table of the manifests, if any. Raises DataError if they differ, since the masks of one would be
        read with the classes of another."""
        first = next(iter(self.tables), None)
        if first is None:
            return None
        other = next((address for address, table in self.tables.items() if table != self.tables[first]), None)
        if other is not None:
            raise DataError(
                f"data.shards: the class tables of {shown(first)} and {shown(other)} differ, and a recipe has one",
                remedy="pack them again with the same classes.json, or name a table in condition.classes",
            )
        return self.tables[first]


def cache_of(spec: FolderSpec) -> ShardCache:
    """The cache of downloaded shards and indices."""
    return ShardCache(spec.shard_cache, spec.shard_cache_gib, spec.shard_timeout)


def list_shards(spec: FolderSpec) -> ShardList:
    """A recipe's shards, with the data of their manifests. Raises DataError."""
    given = _given(spec.shards, spec, "data.shards")
    further = _given(spec.val_shards, spec, "data.val_shards")
    train = [shard for one in given for shard in one.of("train", "data.shards")]
    val = [shard for one in further for shard in one.of("val", "data.val_shards")]
    both: list[_Given] = []
    if not further:
        both = [one for one in given if one.manifest is not None and {"train", "val"} <= one.manifest.splits.keys()]
        val = [shard for one in both for shard in one.of("val", "data.shards")]
    _check_places([*train, *val])
    manifests = [one.manifest for one in (*given, *further) if one.manifest is not None]
    conditions = {folder: extension for one in manifests for folder, extension in one.conditions.items()}
    tables = {one.address: one.manifest.classes for one in (*given, *further) if one.manifest and one.manifest.classes}
    return ShardList(tuple(train), tuple(val), bool(further or both), conditions, tables)


def check_reached(spec: FolderSpec, listed: ShardList) -> None:
    """Download the first remote shard into the cache. Raises DataError if it is unavailable or not a tar."""
    remote = [shard for shard in listed.train if shard.remote]
    if remote:
        counted([replace(remote[0], samples=None)], cache_of(spec))


@dataclass(frozen=True)
class _Given:
    """An address in a recipe."""

    address: str
    manifest: Manifest | None

    def of(self, split: str, key: str) -> list[Shard]:
        """Its shards of a split; all shards of a manifest with a single split. Raises DataError."""
        if self.manifest is None:
            return [Shard(self.address)]
        splits = self.manifest.splits
        if split not in splits and len(splits) != 1:
            raise DataError(f"{key}: {shown(self.address)} has no split '{split}'; {choices(split, splits)}")
        entries = splits[split] if split in splits else next(iter(splits.values()))
        return [
            Shard(beside(self.address, entry.name), entry.samples, Expected(entry.bytes, entry.sha256))
            for entry in entries
        ]


def _given(addresses: Sequence[str], spec: FolderSpec, key: str) -> list[_Given]:
    single = [one for address in addresses for one in expanded(address, key)]
    return [_Given(one, read_manifest(one, spec.shard_timeout) if is_manifest(one) else None) for one in single]


def _check_places(shards: Sequence[Shard]) -> None:
    """Raises DataError for duplicate or missing shards."""
    twice = [shard for shard, count in Counter(shard.address for shard in shards).items() if count > 1]
    if twice:
        raise DataError(
            f"data.shards: {shown(twice[0])} is listed more than once; list it once, for training or validation"
        )
    gone = [str(shard) for shard in shards if not shard.remote and not Path(shard.address).is_file()]
    if gone:
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        raise DataError(
            f"data.shards: {', '.join(gone[:_NAMED])}{more}: listed in the manifest, but missing; copy them again"
        )


def counted(
    shards: Sequence[Shard], cache: ShardCache, progress: Callable[[int, int], None] | None = None
) -> list[Shard]:
    """The shards with their sample counts, and with the hashes of the indices that were needed for that.

    Without a manifest, each is downloaded and indexed once. The unreadable rest of a damaged shard counts as one
    sample. progress: called with (done, total). Raises DataError.
    """
    unknown = [shard for shard in shards if shard.samples is None]
    remote = sum(shard.remote and not cache.knows(shard) for shard in unknown)
    if remote:
        log.warning(
            "no manifest gives the sample counts of %d shards, so each is downloaded once before training begins; "
            "give the shards.json of `piti prepare shards` instead",
            remote,
        )
    found: dict[str, Shard] = {}
    readable, damaged = len(shards) - len(unknown), ""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        indices = zip(unknown, pool.map(cache.index_of, unknown), strict=True)
        for done, (shard, index) in enumerate(indices, start=1):
            if index.damage is not None:
                log.warning("%s: %s", shard, index.damage)
                damaged = damaged or f"{shard}: {index.damage}"
            readable += len(index.samples)
            samples = len(index.samples) + (index.damage is not None)
            found[shard.address] = replace(shard, samples=samples, index_sha256=index.sha256)
            if progress is not None:
                progress(done, len(unknown))
    if damaged and not readable:
        raise DataError(f"{damaged}; no sample can be read from the shards; check data.shards")
    return [found.get(shard.address, shard) for shard in shards]


def extensions_of(spec: FolderSpec, condition: Condition, packed: dict[str, str]) -> dict[str, str]:
    """The extension of each of `condition.named_parts()`, with or without its suffix.

    packed: extensions by folder, from a manifest. Raises DataError if `spec` does not match the parts.
    """
    if isinstance(condition, NoCondition):
        return {}
    parts, named = condition.named_parts(), spec.shard_condition
    if isinstance(named, str):
        if isinstance(condition, SeveralCondition):
            example = ", ".join(f"{name}: EXTENSION" for name in parts)
            raise DataError(f"data.shard_condition: names one extension for several parts; write {{{example}}}")
        return {condition.kind: named.removeprefix(".").lower()}
    if named is not None:
        if named.keys() != parts.keys():
            raise DataError(f"data.shard_condition: names {', '.join(named)}; the parts are {', '.join(parts)}")
        return {name: extension.removeprefix(".").lower() for name, extension in named.items()}
    if len(packed) == 1 and len(parts) == 1:
        return {condition.kind: next(iter(packed.values()))}
    folders = condition_folders(spec, condition)
    usual = {name: "txt" if part.suffixes == {".txt"} else folders[name] for name, part in parts.items()}
    return {name: packed.get(folders[name], usual[name]) for name in parts}
