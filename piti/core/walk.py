"""Recursive listing of folders, with the same depth, links and key names in all commands."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path

from piti.core.errors import in_utf8
from piti.core.formats import ARRAYS, IMAGE_SUFFIXES, UNREAD_PICTURES
from piti.core.images import ImageError

BROKEN = "broken links (download their targets, or remove them)"
UNREAD = "images of an unsupported format (convert them to PNG or JPEG)"
ARRAY = "arrays where images are expected (save them as 8-bit or 16-bit grey PNG, or move them elsewhere)"


@dataclass(frozen=True)
class Found:
    """The files of a folder, without hidden files and folders, and without links to a parent folder.

    files: those with the requested suffixes. others: files with other suffixes. broken: broken links. All sorted.
    """

    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)

    def lost(self) -> list[tuple[str, Path]]:
        """Files that would be missed, with the kind of problem: broken links, and unsupported images and arrays, unless
        there is a supported file with the same name up to its suffix."""
        keys = {path.with_suffix("") for path in self.files}
        unread = [(kind, path) for path in self.others if (kind := _unread_kind(path))]
        missed = [(kind, path) for kind, path in unread if path.with_suffix("") not in keys]
        return [(BROKEN, path) for path in self.broken] + missed

    def check(self) -> list[Path]:
        """The files. Raises ImageError if some would be missed, see `lost`."""
        lost = self.lost()
        if lost:
            kinds = {kind: [str(path) for which, path in lost if which == kind] for kind, _ in lost}
            raise ImageError("; ".join(f"{len(paths)} {kind}: {', '.join(paths[:3])}" for kind, paths in kinds.items()))
        return self.files


def walk(folder: str | Path, suffixes: Set[str] = IMAGE_SUFFIXES, recursive: bool = True) -> Found:
    """The files of a folder, at any depth, with one of these suffixes in any case. Raises ImageError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; give a folder of images")
    found = Found()
    _collect(folder, frozenset(), {suffix.lower() for suffix in suffixes}, recursive, found)
    for paths in (found.files, found.others, found.broken):
        paths.sort()
    return found


def _collect(
    folder: Path, above: frozenset[tuple[int, int]], suffixes: Collection[str], deeper: bool, to: Found
) -> None:
    """above: the parent folders, by device and inode."""
    try:
        state = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if os.path.isdir(path):  # raised for an entry in a loop of links
            if deeper:
                _collect(path, above | {here}, suffixes, deeper, to)
        elif os.path.isfile(path):
            (to.files if path.suffix.lower() in suffixes else to.others).append(path)
        elif entry.is_symlink():
            to.broken.append(path)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The images in a folder, by suffix, sorted, without hidden files. Raises ImageError."""
    return walk(folder, IMAGE_SUFFIXES, recursive).files


def _unread_kind(path: Path) -> str:
    return UNREAD if is_unread(path) else ARRAY if path.suffix.lower() in ARRAYS else ""


def is_unread(path: Path) -> bool:
    """Whether a file's suffix belongs to an unsupported image format."""
    return path.suffix.lower() in UNREAD_PICTURES


# Names


def composed(text: str) -> str:
    """A name in Unicode's composed form, so that names that look the same are equal (macOS decomposes them), and
    `in_utf8`, so that it can be hashed and saved."""
    return unicodedata.normalize("NFC", in_utf8(text))


def key_of(path: Path, folder: Path) -> str:
    """The key of a file: its path inside the folder, without suffix, composed."""
    return composed(path.relative_to(folder).with_suffix("").as_posix())


def stem_of(path: Path, folder: Path) -> str:
    """Stem of output names for a file of a folder: `b-s2` for `b/s2.png`."""
    return flat(key_of(path, folder))


def flat(key: str) -> str:
    """Stem of output names for a key: `b-s2` for `b/s2`."""
    return key.replace("/", "-")


def by_key(paths: Iterable[Path], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files of a folder by `key_of`, and descriptions of files with duplicate keys."""
    files: dict[str, Path] = {}
    twice: dict[str, str] = {}
    for path in paths:
        key = key_of(path, folder)
        if key in files:
            twice[key] = f"{files[key]} and {path.name}"
        files[key] = path
    return files, twice
