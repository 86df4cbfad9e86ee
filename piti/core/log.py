"""A log on standard error that tolerates a closed reader."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from rich.console import Console


class LogConsole(Console):
    """Standard error; if its reader is gone, such as `tee` after Ctrl-C or a closed terminal, output is discarded
    without an error."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def _check_buffer(self) -> None:
        """Called by rich for all output; of errors it handles only a broken pipe."""
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())  # discards buffered output
