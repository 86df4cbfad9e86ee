"""One process at a run: a lock in its folder, which ends with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from piti.core.errors import UserError, option

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LOCK_FILE = "training.lock"


class RunLockedError(UserError):
    """Another process trains in a run's folder."""


class RunLock:
    """The lock of a folder. A process that dies leaves the file but not the lock, so the next one takes it over.

    (A POSIX record lock: workers that a process forks do not inherit it. Windows has none, and keeps others from
    reading what they cannot lock; there a file beside this one is locked, by processes that fork no workers.)
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / LOCK_FILE
        self._file: IO[str] | None = None
        self._beside = FileLock(self.path.with_suffix(".held"))

    def check(self) -> None:
        """Raises RunLockedError if another process holds it. Changes nothing."""
        if self._file is None and self.path.exists():
            with self.path.open("r+", encoding="utf-8") as file:
                self._locked(file)
            self._beside.release()

    def take(self) -> None:
        """Hold it until `release`. Raises RunLockedError, OSError."""
        file = self.path.open("a+", encoding="utf-8")
        try:
            self._locked(file)
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
        except BaseException:
            file.close()
            self._beside.release()
            raise
        self._file = file

    def release(self) -> None:
        """Let it go, and remove its file."""
        if self._file is not None:
            if fcntl is None:  # Windows removes no open file
                self._file.close()
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            self._beside.release()

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
        remedy = f"wait for it, stop it, or give another {option('out')}"
        if elsewhere:
            remedy += f"; if it has ended without removing {self.path}, remove that file"
        raise RunLockedError(
            f"another process (pid {holder.get('pid', 'unknown')}, on {host}) trains in {self.root}", remedy=remedy
        )


def _holder(text: str) -> dict[str, Any]:
    """What the file says of who wrote it; nothing where it was cut short."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
