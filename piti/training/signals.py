"""Asking a run to stop, politely."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console


class StopRequest:
    """Whether somebody asked this process to stop, by Ctrl-C or SIGTERM."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """A first signal asks for a stop after the step in hand; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        owner = os.getpid()

        def ask(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a worker of the loader, which ends when its owner does
                return
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            self.console.log("stopping after this step; once more to stop at once without saving")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
