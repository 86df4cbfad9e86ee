"""Progress callbacks, and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


@contextlib.contextmanager
def steps_bar(console: Console, what: str) -> Iterator[OnProgress]:
    """A bar updated by calls with (done, total); it appears at the first call."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task(what, total=None)

    def on_step(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield on_step
    finally:
        if bar.live.is_started:
            bar.stop()
