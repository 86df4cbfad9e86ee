"""What differs between Linux, macOS and Windows, where Python does not hide it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from pathlib import Path

WINDOWS = os.name == "nt"


def cores() -> int:
    """The processor's cores that this process may use; where systems do not say that, as macOS and Windows, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ending_signals() -> list[signal.Signals]:
    """By which a process is asked to end, Ctrl-C aside: SIGTERM, and SIGHUP of a terminal that closes, unless this
    process is to outlive it, as under `nohup`. Windows has the first alone."""
    hangs_up = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def link(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to a file. On Windows, where links ask for a privilege, it may be a copy.

    Raises OSError.
    """
    try:
        target.symlink_to(source)
    except OSError:
        if not WINDOWS:
            raise
        shutil.copyfile(source, target)


def write_all_letters() -> None:
    """Let every message be written. On Windows, whose own encodings lack letters of messages, in UTF-8; elsewhere in
    what was chosen, and what that lacks is written out, such as `\\xd7`, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8" if WINDOWS else None, errors="backslashreplace")
