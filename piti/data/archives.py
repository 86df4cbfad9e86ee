"""Random access to images inside tar archives, by offset."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from piti.conditions.depth_files import DEPTH_SUFFIXES
from piti.core.errors import count_of, in_utf8
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError
from piti.data.problems import DataError

DOTTED = "images in archives whose names end at the first dot, not at their suffix (rename them, or unpack the archive)"

_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Archived:
    """A file inside an uncompressed tar archive, accepted by `images` like a path."""

    archive: Path
    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The path inside the archive, up to the first dot of the file's name."""
        path = PurePosixPath(self.name)
        return (path.parent / path.name.partition(".")[0]).as_posix()

    @property
    def extension(self) -> str:
        """The lower-case part after the first dot of the file name: `edge.jpg` for `KEY.edge.JPG`."""
        return PurePosixPath(self.name).name.partition(".")[2].lower()

    def open(self) -> io.BytesIO:
        """The file's bytes."""
        with self.archive.open("rb") as tar:
            tar.seek(self.offset)
            return io.BytesIO(tar.read(self.size))

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


def list_archived(archive: Path, suffixes: Set[str] = IMAGE_SUFFIXES, extension: str | None = None) -> list[Archived]:
    """The images of a tar archive, or its files with another extension, sorted by name.

    As in WebDataset, a name ends at its first dot: of `KEY.jpg`, `KEY.edge.jpg` and `KEY.txt` only the first is an
    image, the last a `.txt`. extension: list files with this one instead, with or without its suffix: `KEY.edge.jpg`
    for "edge". Raises ImageError if the archive is missing, damaged or compressed.
    """
    wanted = suffixes if extension is None else {f".{extension}{suffix}" for suffix in suffixes}
    if extension is not None and {f".{extension}", PurePosixPath(extension).suffix} & suffixes:
        wanted = wanted | {f".{extension}"}
    return [member for member in _files(archive) if f".{member.extension}" in wanted]


def dotted(archive: Path) -> list[Archived]:
    """The images of a tar archive that would be missed: those with further dots in their names, such as `a.b.jpg`,
    unless there is an image for the part before the first, such as `a.jpg` for `a.edge.jpg`. Raises ImageError."""
    files = _files(archive)
    known = {member.key for member in files if f".{member.extension}" in IMAGE_SUFFIXES}
    return [
        member
        for member in files
        if PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES
        and member.key not in known
        and not PurePosixPath(member.name).name.startswith(".")
    ]


def list_conditions(archive: Path, suffixes: Set[str]) -> list[Archived]:
    """The conditions of a tar archive without other candidates, sorted by name.

    Raises ImageError as `list_archived`, for images that would be missed, see `dotted`, and if there are both `KEY.jpg`
    and `KEY.edge.jpg` or `KEY.png`, since either could be the photograph.
    """
    found = list_archived(archive, suffixes)
    if suffixes & IMAGE_SUFFIXES and (missed := dotted(archive)):
        raise ImageError(f"{archive}: {len(missed)} {DOTTED}: {', '.join(member.name for member in missed[:3])}")
    likely = suffixes | IMAGE_SUFFIXES | DEPTH_SUFFIXES if suffixes & IMAGE_SUFFIXES else suffixes
    of_key: dict[str, list[Archived]] = defaultdict(list)
    for member in _files(archive):
        if PurePosixPath(member.name).suffix.lower() in likely:
            of_key[member.key].append(member)
    for member in found:
        others = [one for one in of_key[member.key] if one.name != member.name and one.extension != member.extension]
        if others:
            raise ImageError(
                f"holds {member.name} and {others[0].name}, and either could be the condition",
                remedy=(
                    "put the tar beside its shards.json, or unpack only the conditions, the files "
                    f"*.{others[0].extension}"
                ),
                source=archive,
            )
    return found


def _files(archive: Path) -> list[Archived]:
    """All files of a tar archive, sorted by name. Raises ImageError."""
    try:
        with tarfile.open(archive, "r:") as tar:
            found = [Archived(archive, in_utf8(name), offset, size) for name, offset, size in _stored(tar)]
    except FileNotFoundError:
        raise ImageError(f"{archive}: no such file; check the path") from None
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{archive}: not an uncompressed tar archive ({error}); pack it again") from None
    return sorted(found, key=lambda member: member.name)


def _stored(tar: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files of an open archive, in order. A link stands for the earlier file that it
    names, as tar packs a further hard link to a file; links to others are left out."""
    places: dict[str, tuple[int, int]] = {}
    for member in tar:
        if member.islnk() or member.issym():
            folder = posixpath.dirname(member.name) if member.issym() else ""
            place = places.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        else:
            place = (member.offset_data, member.size) if member.isfile() and not member.issparse() else None
        if place is not None:
            places[posixpath.normpath(member.name)] = place
            yield member.name, *place


@dataclass(frozen=True)
class InShard(Archived):
    """A file in an open shard, readable even after the shard is removed from a cache."""

    shown: str
    """The shard's address, as shown to the user."""
    handle: io.BufferedReader

    def open(self) -> io.BytesIO:
        """The file's bytes. Raises OSError if the shard is too short."""
        data = self._read(self.size, self.offset)
        while len(data) < self.size:
            more = self._read(self.size - len(data), self.offset + len(data))
            if not more:
                raise OSError(f"cut short, {len(data)} of {self.size} bytes")
            data += more
        return io.BytesIO(data)

    def _read(self, size: int, offset: int) -> bytes:
        """Read at most `size` bytes without moving the handle's position, which threads share."""
        if hasattr(os, "pread"):
            return os.pread(self.handle.fileno(), size, offset)
        with self.archive.open("rb") as file:  # Windows, which cannot remove open files
            file.seek(offset)
            return file.read(size)

    def __str__(self) -> str:
        return f"{self.shown}:{self.name}"


@dataclass(frozen=True)
class ShardSample:
    """The files of one key of a shard, with their positions by extension."""

    key: str
    files: dict[str, tuple[int, int]]
    """Offset and size of `KEY.jpg` at "jpg", of `KEY.edge.jpg` at "edge.jpg"."""
    twice: tuple[str, ...] = ()
    """Extensions that occur several times."""

    def name(self, extension: str) -> str:
        """The file's name inside the shard."""
        return f"{self.key}.{extension}"


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard in the order of their first files."""

    samples: list[ShardSample]
    damage: str | None = None
    """Damage after which the shard cannot be read; None if it is complete."""

    @property
    def sha256(self) -> str:
        """Hash of the samples' keys, and of the positions and sizes of their files; not of what the files contain."""
        return hashlib.sha256(repr(self).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class _Found:
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def index_shard(file: io.BufferedReader, shown: str) -> ShardIndex:
    """Index an uncompressed tar by its headers. shown: its address in messages.

    As in WebDataset, a key is a path up to the first dot of its last part; files without a dot, starting with one, or
    named `__…__` belong to no sample. In a damaged tar, the files before the damage are found. Raises DataError if it
    is compressed.
    """
    _check_plain(file, shown)
    found: dict[str, _Found] = {}
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for name, offset, length in _stored(tar):
                if offset + length > size:
                    raise tarfile.ReadError(f"'{name}' extends beyond its end")
                _add(found, name, offset, length)
            damage = _unended(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        where = (
            f"damaged after {count_of(len(found), 'sample')}" if found else "not a tar archive, or damaged at its start"
        )
        damage = f"{where} ({error})"
    return ShardIndex([ShardSample(key, one.files, tuple(one.twice)) for key, one in found.items()], damage)


def _check_plain(file: io.BufferedReader, shown: str) -> None:
    """Raises DataError if the file is compressed."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{shown}: is compressed by {name}, so its members have no known offsets; decompress it, or "
                "read it through a tool such as 'pipe:gzip -dc FILE' or 'pipe:curl -sf ADDRESS | gzip -dc'"
            )


def _add(found: dict[str, _Found], name: str, offset: int, size: int) -> None:
    """Add a file to its sample."""
    path = PurePosixPath(in_utf8(name))
    stem, dot, extension = path.name.partition(".")
    if not (stem and dot) or (stem[:2] == stem[-2:] == "__"):
        return
    one = found.setdefault((path.parent / stem).as_posix(), _Found())
    extension = extension.lower()
    if extension in one.files:
        one.twice.append(extension)
    else:
        one.files[extension] = (offset, size)


def _unended(file: io.BufferedReader, offset: int) -> str | None:
    """What is wrong at the end of the headers, where an archive has a block of zeros; None if nothing."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    what = "is cut off" if len(block) < _BLOCK else "has no header"
    return f"damaged: {what} at byte {offset}, instead of the next file or the archive's end"
