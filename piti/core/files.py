"""Files and folders that are whole or absent: written beside their place, then renamed into it, by one process at a
time; hashes of files."""

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
"""What names a result's place, unless it is said otherwise."""


class OutputError(UserError):
    """A result cannot be written where it was asked for. The message says what is there and what to do."""


@contextmanager
def whole_folder(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` when the block ends without an error.

    An empty `target` is taken; one with contents only if `overwrite`, and if `ours` says that it is a result of the
    same kind. However the block ends, by SIGTERM too (which is then SystemExit), nothing else remains beside it, and
    until it ends well `target` is as it was. Raises OutputError, also for a full disk.
    """
    check_folder(target, overwrite, ours)
    with _termination_raised(), _beside(target) as partial:
        partial.mkdir()
        yield partial
        flush_all(partial)
        _swap(partial, target)


@contextmanager
def filled_folder(target: Path, named: str = OUT) -> Iterator[Path]:
    """An empty folder to fill, whose files are put into `target` when the block ends without an error: in the place of
    those of the same names, beside the others.

    Those of the top go last. However the block ends, until it ends well `target` is as it was, and nothing else
    remains. named: what names the folder, see `option`. Raises OutputError, also for a full disk.
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
    """The name of a file to write, which becomes `target` as a folder does in `whole_folder`."""
    check_file(target, overwrite, named)
    with _termination_raised(), _beside(target) as partial:
        yield partial
        flush(partial)
        os.replace(partial, target)


@contextmanager
def alone(target: Path, named: str = OUT) -> Iterator[None]:
    """Keep other processes that ask likewise from writing `target` meanwhile. named: what names it, see `option`.

    A process that dies frees it. On a file system without locks nobody is kept out. Raises OutputError where another
    process is in it.
    """
    from filelock import FileLock, Timeout

    path = target.absolute().with_name(f".{target.absolute().name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            "another process writes there at this moment", remedy=f"wait for it, or give another {named}", source=target
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
    """Raises OutputError unless `whole_folder` may write there. named: what names the folder, see `option`."""
    if not (target.exists() or target.is_symlink()):
        return
    if not target.is_dir() or target.is_symlink():
        raise OutputError("is there already and is no folder", remedy=f"give another {named}", source=target)
    if not any(target.iterdir()):
        return
    if not ours(target):
        raise OutputError("holds other things, which would be lost", remedy=f"give another {named}", source=target)
    if not overwrite:
        raise _taken(target, named)


def check_file(target: Path, overwrite: bool, named: str = OUT) -> None:
    """Raises OutputError unless `whole_file` may write there. named: what names the file, see `option`."""
    if target.is_dir():
        raise OutputError("is a folder", remedy=f"give a file's name as {named}", source=target)
    if target.exists() and not overwrite:
        raise _taken(target, named)


def _taken(target: Path, named: str) -> OutputError:
    remedy = f"add {option('overwrite')} to replace it, or give another {named}"
    return OutputError("is there already", remedy=remedy, source=target)


def check_place(folder: Path, named: str = OUT) -> None:
    """Raises OutputError unless a folder is there, or can be made, and written into."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file, no folder", remedy=f"give another {named}", source=folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} may not be written into", remedy=f"give another {named}", source=folder)


@contextmanager
def _beside(target: Path, inside: bool = False) -> Iterator[Path]:
    """A name beside `target`, or inside it, that is not taken; what is left there at the end is removed."""
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
    """Rename a finished folder to `target`; what was there is put back if that fails, and else removed."""
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
                f"{target}: is written, but what it replaces cannot be removed ({error}); remove {old} yourself"
            ) from error


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Within the block, SIGTERM raises SystemExit(143), unless something else answers it, or in another thread."""
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
    """SIGINT and SIGTERM that come within the block are answered at its end; for what must not stop half-way."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not _in_main_thread() or None in handlers.values():  # none: set by no Python, and not to be put back by it
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
    """Signals are answered, and answers set, in no other thread."""
    return threading.current_thread() is threading.main_thread()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):  # the latter where a parent is a file
            path.unlink()


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new one beside it: safetensors keeps what it writes to its owner, whatever the
    umask, and results are read by other users too. The umask itself cannot be asked without setting it, which other
    threads would see. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    fresh.touch(exist_ok=False)
    try:
        shutil.copymode(fresh, path)
    finally:
        fresh.unlink()


def flush_all(folder: Path) -> None:
    """Bring a folder, with all that is in it, onto the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Bring a file's contents, or a folder's names, onto the disk. On Windows folders are left to the system."""
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
