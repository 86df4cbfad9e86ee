"""Pictures inside tar archives, found by offset, so that any of them can be read at any time."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from piti.images import IMAGE_SUFFIXES, ImageError


@dataclass(frozen=True)
class Archived:
    """One file inside an uncompressed tar archive; `images` reads it as it reads a path."""

    archive: Path
    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The path inside the archive, up to the first dot of the file's name."""
        path = PurePosixPath(self.name)
        return (path.parent / path.name.partition(".")[0]).as_posix()

    def open(self) -> io.BytesIO:
        """The file's bytes."""
        with self.archive.open("rb") as tar:
            tar.seek(self.offset)
            return io.BytesIO(tar.read(self.size))

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


def list_archived(archive: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Archived]:
    """The pictures of a tar archive, or its files of other suffixes, sorted by name.

    As in WebDataset a name ends at its first dot: of `KEY.jpg`, `KEY.edge.jpg` and `KEY.txt` only the first
    is a picture, the last a `.txt`. Raises ImageError if the archive is missing, damaged or compressed.
    """
    found = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                _, dot, extension = PurePosixPath(member.name).name.partition(".")
                if member.isfile() and dot + extension.lower() in suffixes:
                    found.append(Archived(archive, member.name, member.offset_data, member.size))
    except FileNotFoundError:
        raise ImageError(f"{archive}: no such file; check the path") from None
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{archive}: not an uncompressed tar archive ({error}); pack it again") from None
    return sorted(found, key=lambda member: member.name)
