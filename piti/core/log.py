"""A log on standard error that work outlives."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from rich.console import Console


class LogConsole(Console):
    """Standard error; where its reader is gone, as `tee` is after Ctrl-C and a terminal after its user has logged out,
    nothing more is written and nothing raised."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def _check_buffer(self) -> None:
        """By which rich writes whatever there is, bars included; of errors it answers a broken pipe alone."""
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())  # takes what is still buffered
