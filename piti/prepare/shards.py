"""`piti prepare shards`: a folder of training data as WebDataset tars, with a manifest of their checksums."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from piti.conditions import ClassTable, Condition, ConditionError, MaskCondition
from piti.conditions.class_table import CLASSES_FILE
from piti.conditions.coverage import Coverage
from piti.core.errors import Message, count_of, option, text_of
from piti.core.files import alone, check_folder, flush, flush_all
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError, open_image, orientation
from piti.core.progress import OnProgress
from piti.core.system import cores
from piti.data.order import spaced
from piti.data.pairs import SPLITS_FILE
from piti.data.problems import DataError, Problems, Skipped, reason_of, unlisted_notes
from piti.data.shards.dataset import LOOKED
from piti.data.shards.index import Manifest, ShardEntry, read_manifest
from piti.data.shards.sources import MANIFEST
from piti.data.shown import TURNED
from piti.prepare.packable import CAPTION, MASKS, MIB, Packable, PackItem, PackJob, ShardPlan, find_samples, shard_plans
from piti.prepare.writer import SKIPPED_FILE, beside, write_skipped

_CHUNK = 1 << 20
_AHEAD = 32  # samples read and decoded in parallel

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class PackReport:
    """Result of packing."""

    manifest: Manifest
    kept: int
    """Number of shards finished by an interrupted run."""
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    """Notes on the masks, and on samples in no split."""

    def __str__(self) -> str:
        entries = self.manifest.entries
        size = _size(sum(entry.bytes for entry in entries))
        splits = ", ".join(
            f"{name} {sum(entry.samples for entry in found)}" for name, found in self.manifest.splits.items()
        )
        kept = f", {self.kept} of them already there" if self.kept else ""
        left = f"; {len(self.skipped)} skipped, see {SKIPPED_FILE}" if self.skipped else ""
        return f"{count_of(len(entries), 'shard')} of {size} in all{kept}; samples: {splits}{left}"


def _size(count: int) -> str:
    """Format a size in bytes with a suitable unit."""
    for unit, name in ((MIB * 1024, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if count >= unit:
            return f"{count / unit:,.{0 if count >= 10 * unit else 1}f} {name}"
    return f"{count} bytes"


def pack_shards(job: PackJob, progress: OnProgress | None = None) -> PackReport:
    """Pack a folder. The same files give byte-identical shards; the files themselves are unchanged.

    Shards are written into a hidden folder next to `job.out`, which is renamed when all are complete: after a killed
    run, the same call continues after the last complete shard. Unusable pairs are skipped and listed. progress: called
    with (done, total) samples. Raises DataError if they exceed `job.max_bad`, or if there are no samples; OutputError
    if `job.out` is not empty, or another process packs into it.
    """
    _check_out(job)
    found = find_samples(job)
    table, notes = _table(job, found)
    notes += unlisted_notes(found.unlisted, SPLITS_FILE)
    with alone(job.out, "OUT"):
        _check_out(job)  # another run may have finished
        return _packed(job, found, table, notes, progress)


def _check_out(job: PackJob) -> None:
    check_folder(job.out, job.overwrite, lambda folder: (folder / MANIFEST).is_file(), "OUT")


def _packed(
    job: PackJob, found: Packable, table: ClassTable | None, notes: list[str], progress: OnProgress | None
) -> PackReport:
    """See `pack_shards`; one process at a time."""
    work = job.out.absolute().with_name(f".{job.out.absolute().name}.packing")
    work.mkdir(parents=True, exist_ok=True)
    packer = _Packer(job, work, len(found.items) + len(found.skipped), list(found.skipped), progress)
    splits = {
        split: tuple(entry for entry in map(packer.packed, shard_plans(job, split, keys, found.items)) if entry.samples)
        for split, keys in found.splits.items()
    }
    manifest = Manifest(conditions=found.conditions, classes=table and table.to_dict(), splits=splits)
    if not sum(entry.samples for entry in manifest.entries):
        raise DataError(
            f"{job.source}: none of its samples can be used:\n  " + "\n  ".join(map(str, packer.skipped[:5]))
        )
    _finish(job, work, manifest, table, packer.skipped)
    return PackReport(manifest, packer.kept, tuple(packer.skipped), tuple(notes))


def _table(job: PackJob, found: Packable) -> tuple[ClassTable | None, list[str]]:
    """The folder's class table, with the reading of its masks, and notes on them, since files in shards are only read
    on demand.

    Raises ConditionError for a damaged table, and for ambiguous masks.
    """
    place = job.source / CLASSES_FILE
    if not place.is_file():
        return None, []
    table = ClassTable.read(place)
    named = [extension for name, extension in found.conditions.items() if name.startswith(MASKS)]
    masks = [
        path
        for item in found.items.values()
        for extension, path in item.files.items()
        if extension.partition(".")[0] in named and path.suffix.lower() in IMAGE_SUFFIXES
    ]
    settled, notes = MaskCondition(table).settled(masks)
    notes = [*notes, *_coverage(settled, masks)]
    reading = settled.reading if isinstance(settled, MaskCondition) else None
    return (table.model_copy(update={"reading": reading}) if reading else table), notes


def _coverage(condition: Condition, masks: list[Path]) -> list[str]:
    """Notes on the classes in some masks; unreadable ones are reported when packing."""
    coverage, read = Coverage(condition), 0
    for path in spaced(masks, LOOKED):
        try:
            coverage.add(coverage.counted(condition.load(path)))
        except (ImageError, ConditionError):
            continue
        read += 1
    return [Message(f"of {read} of {len(masks)} masks checked: {text_of(note)}") for note in coverage.notes()]


# Writing


@dataclass
class _Packer:
    job: PackJob
    work: Path
    total: int
    skipped: list[Skipped]
    progress: OnProgress | None
    kept: int = 0
    done: int = 0

    def packed(self, plan: ShardPlan) -> ShardEntry:
        """Write a shard, or reuse that of an earlier run; returns its entry."""
        record = self.work / f"{plan.name}.json"
        mark = plan.mark
        entry = self._kept(plan, record, mark)
        if entry is None:
            record.unlink(missing_ok=True)
            entry, skipped = self._write(plan)
            self.skipped += skipped
            values = {"mark": mark, "entry": entry.to_dict(), "skipped": [[one.name, one.reason] for one in skipped]}
            with beside(record) as partial:
                partial.write_text(json.dumps(values), encoding="utf-8")
        self._check_share()
        return entry

    def _kept(self, plan: ShardPlan, record: Path, mark: str) -> ShardEntry | None:
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            entry = ShardEntry.parse(values["entry"], str(record))
            skipped = [Skipped(*one) for one in values["skipped"]]
            if values["mark"] != mark or (self.work / plan.name).stat().st_size != entry.bytes:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.kept += 1
        self.skipped += skipped
        self._advance(len(plan.items))
        return entry

    def _write(self, plan: ShardPlan) -> tuple[ShardEntry, list[Skipped]]:
        skipped: list[Skipped] = []
        with beside(self.work / plan.name) as partial:
            with partial.open("wb") as file, ThreadPoolExecutor(cores()) as pool:
                hashing = _Hashing(file)
                with tarfile.open(fileobj=hashing, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[arg-type]
                    for item, contents in _mapped(pool, _read, plan.items):
                        if isinstance(contents, Skipped):
                            skipped.append(contents)
                        else:
                            _add(tar, item, contents)
                        self._advance(1)
            flush(partial)
        count = len(plan.items) - len(skipped)
        return ShardEntry(name=plan.name, samples=count, bytes=hashing.size, sha256=hashing.hexdigest()), skipped

    def _advance(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _check_share(self) -> None:
        if len(self.skipped) <= self.job.max_bad * self.total:
            return
        first = "\n  ".join(map(str, self.skipped[:5]))
        raise DataError(
            f"{len(self.skipped)} of {self.total} samples cannot be used, more than {option('max_bad')} "
            f"{self.job.max_bad:g} allows; correct them, or raise it:\n  {first}",
            source=self.job.source,
        )


class _Hashing(io.RawIOBase):
    """Writes to a file, and computes its size and SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _mapped(pool: ThreadPoolExecutor, work: Callable[[T], R], items: tuple[T, ...]) -> Iterator[tuple[T, R]]:
    """`work` on all items, in order, a few at a time."""
    rest = iter(items)
    while some := list(islice(rest, _AHEAD)):
        yield from zip(some, pool.map(work, some), strict=True)


def _read(item: PackItem) -> dict[str, bytes] | Skipped:
    """A sample's files, if usable: images can be decoded and have one size, texts are UTF-8."""
    contents: dict[str, bytes] = {}
    sizes: dict[tuple[int, int], Path] = {}
    for extension, path in sorted(item.files.items(), key=lambda one: ("." in one[0], one[0])):
        try:
            contents[extension] = data = path.read_bytes()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                exact = extension.startswith(MASKS)
                sizes.setdefault(open_image(_Bytes(path, data), exact).size, path)
            elif path.suffix.lower() == CAPTION and not data.decode("utf-8-sig").strip():
                return Skipped(str(path), "is empty")
        except ImageError as error:
            return Skipped(str(path), reason_of(error, str(path)))
        except (OSError, UnicodeDecodeError) as error:
            return Skipped(str(path), f"cannot be read ({error})")
        if not data:
            return Skipped(str(path), "is empty")
    if len(sizes) > 1:
        told = " and ".join(f"{path} {width} x {height}" for (width, height), path in sizes.items())
        turned = any(orientation(path) in TURNED for path in sizes.values())
        cause = " (one is rotated by its EXIF orientation: rotate the other too)" if turned else ""
        return Skipped(item.key, f"its images differ in size: {told}{cause}")
    return contents


@dataclass(frozen=True)
class _Bytes:
    """A file in memory."""

    path: Path
    data: bytes

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return str(self.path)


def _add(tar: tarfile.TarFile, item: PackItem, contents: Mapping[str, bytes]) -> None:
    """Add a sample's files, with reproducible headers."""
    for extension, data in contents.items():
        header = tarfile.TarInfo(f"{item.key}.{extension}")
        header.size, header.mode = len(data), 0o644
        tar.addfile(header, io.BytesIO(data))


def _finish(job: PackJob, work: Path, manifest: Manifest, table: ClassTable | None, skipped: list[Skipped]) -> None:
    """Remove temporary files, add the manifest, and rename the folder."""
    names = {entry.name for entry in manifest.entries}
    for path in work.iterdir():
        if path.name not in names:
            path.unlink()
    write_skipped(work, [str(one) for one in skipped])
    if table is not None:
        text = json.dumps(table.to_file(), indent=1, ensure_ascii=False)
        (work / CLASSES_FILE).write_text(text + "\n", encoding="utf-8")
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    flush_all(work)
    if job.out.exists():
        old = work.with_name(f".{job.out.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        job.out.rename(old)
        work.rename(job.out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(job.out)
    flush(job.out.absolute().parent)


# Checking


def verify_shards(folder: Path, progress: OnProgress | None = None) -> Manifest:
    """Compare all shards of a folder with its manifest. Raises DataError that names those that differ.

    progress: called with (done, total) shards.
    """
    place = folder / MANIFEST if folder.is_dir() else folder
    manifest = read_manifest(str(place))
    problems = Problems()
    for done, entry in enumerate(manifest.entries, start=1):
        wrong = _difference(place.with_name(entry.name), entry)
        if wrong:
            problems.add("shards that differ from the manifest (copy or pack them again)", f"{entry.name}: {wrong}")
        if progress is not None:
            progress(done, len(manifest.entries))
    problems.raise_if_any(folder)
    return manifest


def _difference(path: Path, entry: ShardEntry) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != entry.bytes:
        return f"{size} bytes instead of {entry.bytes}"
    return None if digest.hexdigest() == entry.sha256 else "different contents"
