"""Differences between Linux, macOS and Windows."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from pathlib import Path

WINDOWS = os.name == "nt"


def cores() -> int:
    """The number of cores that this process may use; on systems without this information, such as macOS and Windows,
    all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ending_signals() -> list[signal.Signals]:
    """The signals other than Ctrl-C that ask a process to end: SIGTERM, and SIGHUP of a closed terminal, unless it is
    ignored, as under `nohup`. Windows has only the first."""
    hangs_up = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def link(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to a file. On Windows, where links need a privilege, it may be a copy.

    Raises OSError.
    """
    try:
        target.symlink_to(source)
    except OSError:
        if not WINDOWS:
            raise
        shutil.copyfile(source, target)


def write_all_letters() -> None:
    """Make all messages printable. On Windows, whose encodings lack characters, in UTF-8; elsewhere in the configured
    encoding, with escapes for missing characters, such as `\\xd7`, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8" if WINDOWS else None, errors="backslashreplace")
