"""What `piti prepare shards` packs: the samples of a folder, their splits, and which shard each goes into."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from piti.conditions import CONDITIONS
from piti.core.errors import option
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.walk import by_key, walk
from piti.data.near_names import near_misses
from piti.data.pairs import SPLITS_FILE, key_problems, read_splits, split_by_hash
from piti.data.problems import TWICE, DataError, Problems, Skipped

CAPTIONS = "captions"
MASKS = ("labels", "mask")
"""Prefix of mask folders' names."""
CAPTION = ".txt"
MIB = 2**20
_BLOCK = 512  # of a tar


@dataclass(frozen=True)
class PackJob:
    """Settings of packing."""

    source: Path
    """A data root, or a folder of photographs with or without captions."""
    out: Path
    images: str = "images"
    conditions: tuple[str, ...] = ("labels",)
    """Folders of conditions in the root; empty: only photographs."""
    shard_mib: int = 256
    """Largest size of a shard in MiB."""
    samples: int | None = None
    """Samples per shard, instead."""
    max_bad: float = 0.01
    """Largest share of unusable samples that may be skipped."""
    overwrite: bool = False


@dataclass(frozen=True)
class PackItem:
    """One sample: its key inside the tars, and its files by extension."""

    key: str
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Size in a tar in bytes, including headers."""
        sizes = (path.stat().st_size for path in self.files.values())
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)


@dataclass
class Packable:
    items: dict[str, PackItem]
    """Samples by their keys in the folder."""
    skipped: list[Skipped]
    conditions: dict[str, str]
    splits: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unlisted(self) -> int:
        """The number of samples in no split."""
        return len(self.items.keys() - {key for keys in self.splits.values() for key in keys})


def find_samples(job: PackJob) -> Packable:
    """The samples of the source, files without a partner, and splits. Raises DataError."""
    if not job.source.is_dir():
        raise DataError(f"{job.source}: no such folder; give the data root, or a folder of photographs")
    problems = Problems()
    found = _paired(job, problems) if (job.source / job.images).is_dir() else _photographs(job.source, problems)
    if not found.items:
        problems.raise_if_any(job.source)
        raise DataError(f"{job.source}: holds nothing to pack; expected {job.images}/ or photographs")
    bad = {skipped.name for skipped in found.skipped}
    given = read_splits(job.source / SPLITS_FILE, found.items.keys() | bad)
    splits = split_by_hash(sorted(found.items)) if given is None else given
    for _, kind, said in key_problems(splits, found.items.keys() | bad, SPLITS_FILE):
        problems.add(kind, said)
    _check_splits(splits, problems)
    problems.raise_if_any(job.source)
    found.splits = {split: sorted(set(keys).intersection(found.items)) for split, keys in splits.items()}
    return found


def _check_splits(splits: Mapping[str, list[str]], problems: Problems) -> None:
    """Check that shards of different splits have different names."""
    by_name: dict[str, list[str]] = {}
    for split in splits:
        by_name.setdefault(_plain(split), []).append(split)
    for same in by_name.values():
        if len(same) > 1:
            kind = (
                f"splits whose shards would have the same names (in {SPLITS_FILE} tell them apart by A-Z, a-z and 0-9)"
            )
            problems.add(kind, ", ".join(same))


def _paired(job: PackJob, problems: Problems) -> Packable:
    """The pairs of a data root."""
    images = _by_key(job.source / job.images, IMAGE_SUFFIXES, problems)
    known = frozenset[str]().union(*(kind.suffixes for kind in CONDITIONS.values()))
    folders: dict[str, dict[str, Path]] = {}
    for name in job.conditions:
        if not (job.source / name).is_dir():
            raise DataError(
                f"no folder {name}/ beside {job.images}/",
                remedy=(
                    f"give those of the conditions with {option('conditions')}, or pack only photographs with "
                    f"{option('alone')}"
                ),
                source=job.source,
            )
        suffixes = IMAGE_SUFFIXES if name.startswith(MASKS) else known
        folders[name] = _by_key(job.source / name, suffixes, problems)
    extensions = {name: _extension(name, files) for name, files in folders.items()}
    items: dict[str, PackItem] = {}
    everything, lacking = {job.images: images, **folders}, dict[str, str]()
    for key in sorted({key for files in everything.values() for key in files}):
        missing = next((name for name, files in everything.items() if key not in files), None)
        if missing is not None:
            lacking[key] = missing
            continue
        files = {images[key].suffix[1:].lower(): images[key]}
        for name, paths in folders.items():
            suffix = paths[key].suffix.lower()
            files[extensions[name] if extensions[name] == suffix[1:] else extensions[name] + suffix] = paths[key]
        items[key] = PackItem(_tar_key(key), files)
    _check_keys(items, problems)
    return Packable(items, _without_partner(lacking, everything), extensions)


def _without_partner(lacking: Mapping[str, str], folders: Mapping[str, Mapping[str, Path]]) -> list[Skipped]:
    """Samples skipped for a missing file, with a similar name. lacking: the folder of that file, by key."""
    near = {
        name: near_misses([key for key, missing in lacking.items() if missing == name], files)
        for name, files in folders.items()
    }
    skipped = []
    for key, name in lacking.items():
        said = f"; {name}/{near[name][key]} has almost the same name" if key in near[name] else ""
        skipped.append(Skipped(key, f"has no file in {name}/{said}"))
    return skipped


def _photographs(source: Path, problems: Problems) -> Packable:
    """Photographs at any depth, with captions if there are any."""
    images = _by_key(source, IMAGE_SUFFIXES, problems)
    captions, _ = by_key(walk(source, frozenset({CAPTION})).files, source)
    texts = {key: path for key, path in captions.items() if key in images}
    skipped = [Skipped(key, f"has no {CAPTION} beside it") for key in images if texts and key not in texts]
    items = {
        key: PackItem(_tar_key(key), {path.suffix[1:].lower(): path} | ({CAPTION[1:]: texts[key]} if texts else {}))
        for key, path in images.items()
        if key in texts or not texts
    }
    _check_keys(items, problems)
    return Packable(items, skipped, {CAPTIONS: CAPTION[1:]} if texts else {})


def _by_key(folder: Path, suffixes: frozenset[str], problems: Problems) -> dict[str, Path]:
    found = walk(folder, suffixes)
    for kind, path in found.lost():
        problems.add(kind, str(path))
    files, twice = by_key(found.files, folder)
    for said in twice.values():
        problems.add(TWICE, said)
    return files


def _extension(folder: str, files: Mapping[str, Path]) -> str:
    """Extension of a folder's files in the tars, without suffix: `KEY.labels.png`; texts are `KEY.txt`."""
    if files and all(path.suffix.lower() == CAPTION for path in files.values()):
        return CAPTION[1:]
    return re.sub(r"[^a-z0-9_-]", "_", PurePosixPath(folder).name.lower())


def _tar_key(key: str) -> str:
    """The key in a tar, where a name ends at its first dot."""
    path = PurePosixPath(key)
    return (path.parent / path.name.replace(".", "_")).as_posix()


def _check_keys(items: Mapping[str, PackItem], problems: Problems) -> None:
    places: dict[str, str] = {}
    for key, item in items.items():
        if item.key in places:
            problems.add(
                "keys that collide in tars, where dots are replaced (rename one)", f"{places[item.key]}, {key}"
            )
        places[item.key] = key


@dataclass(frozen=True)
class ShardPlan:
    """A planned shard."""

    name: str
    items: tuple[PackItem, ...]

    @property
    def mark(self) -> str:
        """Changes with its files' names, sizes and times."""
        digest = hashlib.sha256()
        for item in self.items:
            for extension, path in sorted(item.files.items()):
                state = path.stat()
                digest.update(
                    f"{item.key}.{extension}\n{path}\n{state.st_size}\n{state.st_mtime_ns}\n".encode(
                        "utf-8", "surrogateescape"
                    )
                )
        return digest.hexdigest()


def shard_plans(job: PackJob, split: str, keys: list[str], items: Mapping[str, PackItem]) -> Iterator[ShardPlan]:
    """The shards of a split, in the order of their keys."""
    number, size, chosen = 0, 0, list[PackItem]()
    for key in keys:
        own = items[key].size
        full = len(chosen) >= job.samples if job.samples else size + own > job.shard_mib * MIB
        if chosen and full:
            yield ShardPlan(_shard_name(job, split, number), tuple(chosen))
            number, size, chosen = number + 1, 0, []
        chosen.append(items[key])
        size += own
    if chosen:
        yield ShardPlan(_shard_name(job, split, number), tuple(chosen))


def _shard_name(job: PackJob, split: str, number: int) -> str:
    return f"{_plain(f'{job.out.absolute().name}-{split}')}-{number:06d}.tar"


def _plain(name: str) -> str:
    """A name in the form used for shards."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
