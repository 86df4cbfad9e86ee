"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from piti.errors import UserError


class OutputError(UserError):
    """A result cannot be written where it was asked for. The message says what is there and what to do."""


@contextmanager
def whole_folder(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` when the block ends without an error.

    An empty `target` is taken; one with contents only if `overwrite`, and if `ours` says that it is a result of the
    same kind. However the block ends, nothing else remains beside it, and until it ends well `target` is as it was.
    Raises OutputError, also for a full disk.
    """
    check_folder(target, overwrite, ours)
    with _beside(target) as partial:
        partial.mkdir()
        yield partial
        flush_all(partial)
        _swap(partial, target)


@contextmanager
def whole_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """The name of a file to write, which becomes `target` as a folder does in `whole_folder`."""
    check_file(target, overwrite)
    with _beside(target) as partial:
        yield partial
        flush(partial)
        os.replace(partial, target)


def check_folder(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Raises OutputError unless `whole_folder` may write there."""
    if not (target.exists() or target.is_symlink()):
        return
    if not target.is_dir() or target.is_symlink():
        raise OutputError(f"{target}: is there already and is no folder; give another --out")
    if not any(target.iterdir()):
        return
    if not ours(target):
        raise OutputError(f"{target}: holds other things, which would be lost; give another --out")
    if not overwrite:
        raise OutputError(f"{target}: is there already; add --overwrite to replace it, or give another --out")


def check_file(target: Path, overwrite: bool) -> None:
    """Raises OutputError unless `whole_file` may write there."""
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; give a file's name as --out")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: is there already; add --overwrite to replace it, or give another --out")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A name beside `target` that is not taken; what is left there at the end is removed."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except BaseException as error:
        _remove(partial)
        for parent in missing:  # the innermost first
            parent.rmdir() if parent.is_dir() and not any(parent.iterdir()) else None
        if isinstance(error, OSError):
            what = error.strerror or str(error)
            raise OutputError(
                f"{target}: cannot be written ({what}); nothing was changed: check the folder and the free space"
            ) from error
        raise


def _swap(partial: Path, target: Path) -> None:
    """Rename a finished folder to `target`; what was there is put back if that fails, and else removed."""
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush_all(folder: Path) -> None:
    """Bring a folder, with all that is in it, onto the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Bring a file's contents, or a folder's names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
