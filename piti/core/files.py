"""Atomic files and folders, written under temporary names and renamed; a lock per folder; hashes of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from piti.core.errors import UserError, option
from piti.core.system import WINDOWS

OUT = option("out")
"""Default option for an output path, in messages."""


class OutputError(UserError):
    """A result cannot be written to its path. The message says why and what to do."""


@contextmanager
def whole_folder(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an error.

    An existing `target` is replaced if it is empty, or if `overwrite` is set and `ours` recognises it as a result of
    the same kind. The temporary folder is always removed, also on SIGTERM (raised as SystemExit), and `target` is
    unchanged unless the block succeeds. Raises OutputError, also for a full disk.
    """
    check_folder(target, overwrite, ours)
    with _termination_raised(), _beside(target) as partial:
        partial.mkdir()
        yield partial
        flush_all(partial)
        _swap(partial, target)


@contextmanager
def filled_folder(target: Path, named: str = OUT) -> Iterator[Path]:
    """A temporary folder whose files are moved into `target` when the block ends without an error, replacing files of
    the same name and keeping others.

    Top-level files are moved last. The temporary folder is always removed, and `target` is unchanged unless the block
    succeeds. named: the option for the folder, see `option`. Raises OutputError, also for a full disk.
    """
    check_place(target, named)
    place = target.resolve()
    with _termination_raised(), _beside(place, inside=place.exists()) as partial:
        partial.mkdir()
        yield partial
        flush_all(partial)
        if partial.parent != place:
            partial.rename(place)
            return
        with _interrupts_held():
            files = [path for path in partial.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: (-len(path.parts), path)):
                final = place / path.relative_to(partial)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, final)
            shutil.rmtree(partial)


@contextmanager
def whole_file(target: Path, overwrite: bool, named: str = OUT) -> Iterator[Path]:
    """A temporary path for a file, renamed to `target` like the folder in `whole_folder`."""
    check_file(target, overwrite, named)
    with _termination_raised(), _beside(target) as partial:
        yield partial
        flush(partial)
        os.replace(partial, target)


@contextmanager
def alone(target: Path, named: str = OUT) -> Iterator[None]:
    """Lock `target` against other processes that do the same. named: the option for it, see `option`.

    The lock ends with its process. File systems without locks are not protected. Raises OutputError if it is locked.
    """
    from filelock import FileLock, Timeout

    path = target.absolute().with_name(f".{target.absolute().name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            "another process is writing there", remedy=f"wait for it, or give another {named}", source=target
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def check_folder(target: Path, overwrite: bool, ours: Callable[[Path], bool], named: str = OUT) -> None:
    """Raises OutputError unless `whole_folder` may write there. named: the option for the folder, see `option`."""
    if not (target.exists() or target.is_symlink()):
        return
    if not target.is_dir() or target.is_symlink():
        raise OutputError("exists and is not a folder", remedy=f"give another {named}", source=target)
    if not any(target.iterdir()):
        return
    if not ours(target):
        raise OutputError("holds other files, which would be lost", remedy=f"give another {named}", source=target)
    if not overwrite:
        raise _taken(target, named)


def check_file(target: Path, overwrite: bool, named: str = OUT) -> None:
    """Raises OutputError unless `whole_file` may write there. named: the option for the file, see `option`."""
    if target.is_dir():
        raise OutputError("is a folder", remedy=f"give a file name as {named}", source=target)
    if target.exists() and not overwrite:
        raise _taken(target, named)


def _taken(target: Path, named: str) -> OutputError:
    remedy = f"add {option('overwrite')} to replace it, or give another {named}"
    return OutputError("already exists", remedy=remedy, source=target)


def check_place(folder: Path, named: str = OUT) -> None:
    """Raises OutputError unless a folder exists or can be created, and is writable."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file, not a folder", remedy=f"give another {named}", source=folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} is not writable", remedy=f"give another {named}", source=folder)


@contextmanager
def _beside(target: Path, inside: bool = False) -> Iterator[Path]:
    """An unused temporary path next to `target`, or inside it, which is removed at the end."""
    target = target.absolute()
    name = f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    partial = target / name if inside else target.with_name(name)
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except BaseException as error:
        with _interrupts_held():
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
    """Rename a finished folder to `target`; an existing one is restored if that fails, else removed."""
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    with _interrupts_held():
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        try:
            shutil.rmtree(old)
        except OSError as error:
            raise OutputError(
                f"{target}: is written, but the files that it replaces cannot be removed ({error}); remove {old}"
            ) from error


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Within the block, SIGTERM raises SystemExit(143), unless it has another handler, or in other threads."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block, for operations that must not be interrupted."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not _in_main_thread() or None in handlers.values():  # None: not set from Python, and cannot be restored
        yield
        return
    came: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _in_main_thread() -> bool:
    """Whether this is the main thread, the only one that can handle signals."""
    return threading.current_thread() is threading.main_thread()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):  # the latter where a parent is a file
            path.unlink()


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new one in its folder, since safetensors ignores the umask and writes files
    readable only by their owner. The umask cannot be read without setting it, which would affect other threads. Raises
    OSError."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    fresh.touch(exist_ok=False)
    try:
        shutil.copymode(fresh, path)
    finally:
        fresh.unlink()


def flush_all(folder: Path) -> None:
    """Flush a folder and all its contents to disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to disk. On Windows folders are not flushed."""
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
