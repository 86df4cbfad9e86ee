"""A lock in a run's folder that allows one process and ends with it."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

from filelock import FileLock, Timeout

from piti.core.errors import UserError, option

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LOCK_FILE = "training.lock"
_TRIES = 10  # attempts at locking a file that still exists then


class RunLockedError(UserError):
    """A run's folder is already being trained in."""


class RunLock:
    """The lock of a folder. A process that dies leaves the file but not the lock, so the next one takes it over.

    (A POSIX record lock, which forked workers do not inherit. Windows has none, and locked files cannot be read by
    others; there a second file is locked, since processes fork no workers.)

    A record lock does not exclude its own process, which loses it by closing the file anywhere: the locks of this
    process are also listed in memory, and their files are not opened again.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / LOCK_FILE
        self._file: IO[str] | None = None
        self._process = 0
        self._beside = FileLock(self.path.with_suffix(".held"))

    def check(self) -> None:
        """Raises RunLockedError if it is held by another process, or by another object of this one. Changes nothing."""
        self._refuse_own()
        if self._file is None and self.path.exists():
            try:
                self._opened("r+").close()
            except FileNotFoundError:  # released since
                return
            self._beside.release()

    def take(self) -> None:
        """Acquire it until `release`. Raises RunLockedError, OSError."""
        with _TAKING:
            self._refuse_own()
            self._file, self._process = self._written(), os.getpid()
            _HELD.add(self)

    def _written(self) -> IO[str]:
        """The folder's file, locked, with this process as its holder. Raises RunLockedError, OSError."""
        file = self._opened("a+")
        try:
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
        except BaseException:
            file.close()
            self._beside.release()
            raise
        return file

    def release(self) -> None:
        """Release it, and remove its file."""
        if self._file is not None:
            if fcntl is None:  # Windows cannot remove open files
                self._file.close()
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            _HELD.discard(self)
            self._beside.release()

    def _refuse_own(self) -> None:
        """Raises RunLockedError if another object of this process holds it."""
        place = self.path.resolve()
        if any(one is not self and one._process == os.getpid() and one.path.resolve() == place for one in set(_HELD)):
            raise RunLockedError(
                f"this process (pid {os.getpid()}) is already training in {self.root}", remedy=self._remedy
            )

    @property
    def _remedy(self) -> str:
        return f"wait for it, stop it, or give another {option('out')}"

    def _opened(self, mode: str) -> IO[str]:
        """The folder's file, locked. Raises RunLockedError, OSError.

        The previous holder may have removed the file after it was opened here. A lock on a removed file has no effect,
        so the file is opened again; if it differs every time, the file system cannot identify files.
        """
        file = self._opened_once(mode)
        for _ in range(_TRIES):
            if _is_at(file, self.path):
                break
            file.close()
            self._beside.release()
            file = self._opened_once(mode)
        return file

    def _opened_once(self, mode: str) -> IO[str]:
        file = self.path.open(mode, encoding="utf-8")
        try:
            self._locked(file)
        except BaseException:
            file.close()
            self._beside.release()
            raise
        return file

    def _locked(self, file: IO[str]) -> None:
        """Lock an open file. Raises RunLockedError if another process has, on this machine or on another."""
        file.seek(0)
        holder = _holder(file.read())
        host = str(holder.get("host", socket.gethostname()))
        elsewhere = host != socket.gethostname()
        if not elsewhere:
            try:
                if fcntl is not None:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    self._beside.acquire(timeout=0)
                return
            except (BlockingIOError, PermissionError, Timeout):
                pass
            except OSError:  # a file system without locks
                return
        remedy = self._remedy
        if elsewhere:
            remedy += f"; if it has ended without removing {self.path}, remove that file"
        raise RunLockedError(
            f"another process (pid {holder.get('pid', 'unknown')}, on {host}) is training in {self.root}", remedy=remedy
        )


_HELD: WeakSet[RunLock] = WeakSet()
"""The locks that this process holds, and those that its parent held when it was forked."""
_TAKING = threading.Lock()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(text: str) -> dict[str, Any]:
    """The holder recorded in the file; empty if it is truncated."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
