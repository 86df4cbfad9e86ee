"""A run's progress: a bar on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from piti.core.system import ending_signals
from piti.training.recipe import Recipe
from piti.training.run_state import RunState


class Meter:
    """Times the steps, averages the loss, and shows both."""

    def __init__(self, console: Console, recipe: Recipe, bar: Progress | None) -> None:
        self.console, self.recipe, self.bar = console, recipe, bar
        self.images = recipe.batch * recipe.accumulation
        self.times: deque[float] = deque(maxlen=50)
        self.waits: deque[float] = deque(maxlen=50)
        self.losses: deque[float] = deque(maxlen=recipe.log_every)
        self.task = bar.add_task("", total=recipe.steps, loss="", rate="") if bar else None
        self.last = time.perf_counter()
        self.between = 0.0

    def stage(self, name: str) -> None:
        """Start a stage; the time until now is not counted as a step."""
        self.last, self.between = time.perf_counter(), 0.0
        if self.bar and self.task is not None:
            self.bar.update(self.task, description=name)

    def tick(self) -> float:
        """Seconds since the last step."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.times.append(seconds - self.between)
        self.between = 0.0
        return seconds

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time within the block counts as training, but not to a step, as for saves and previews."""
        began = time.perf_counter()
        yield
        self.between += time.perf_counter() - began

    def wait(self, seconds: float) -> None:
        """Record the time of the last step that was spent waiting for data."""
        self.waits.append(seconds)

    @property
    def waiting(self) -> float:
        """Share of the last steps' time spent waiting for data."""
        return sum(self.waits) / sum(self.times) if self.waits else 0.0

    @property
    def rate(self) -> float:
        """Images per second of this process over the last steps, without saves and previews."""
        return self.images * len(self.times) / sum(self.times) if self.times else 0.0

    def mean_loss(self) -> float:
        """Mean loss of the last `log_every` steps."""
        return sum(self.losses) / max(1, len(self.losses))

    def show(self, losses: Sequence[float], state: RunState) -> None:
        """Update the bar. losses: of the steps not shown yet, as far as known."""
        self.losses += losses
        if self.bar and self.task is not None:
            shown, speed = f"loss {self.mean_loss():.4f}", f"{self.rate:.1f} images/s, {self.waiting:.1%} waiting"
            self.bar.update(self.task, completed=state.step, loss=shown, rate=speed)

    def line(self, row: dict[str, Any]) -> None:
        """Without a terminal, print a line in the log."""
        if self.bar is None:
            left = (self.recipe.steps - row["step"]) * self.images / max(self.rate, 1e-9)
            self.console.log(
                f"{row['stage']} {row['step']}/{self.recipe.steps}  loss {row['loss']:.4f}  "
                f"{row['images_per_second']:.1f} images/s, {self.waiting:.1%} waiting  {left / 60:.0f} min left"
            )


@contextlib.contextmanager
def training_bar(console: Console, recipe: Recipe, state: RunState) -> Iterator[Meter]:
    """A meter, with a live bar if the console is a terminal."""
    if not console.is_terminal:
        yield Meter(console, recipe, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        meter = Meter(console, recipe, bar)
        if meter.task is not None:
            bar.update(meter.task, completed=state.step)
        yield meter


class StopRequest:
    """Whether this process was asked to stop, by Ctrl-C, SIGTERM or a closed terminal."""

    def __init__(self, console: Console, alone: bool = True) -> None:
        """alone: whether the process runs without a launcher, which would forward signals and kill processes."""
        self.console, self.alone = console, alone
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The first signal requests a stop after the current step, and a second Ctrl-C stops at once.

        A second SIGTERM does not, nor anything with several processes: a request can arrive repeatedly if a scheduler
        signals all processes and torchrun, or `timeout` forwards its own.
        """
        if threading.current_thread() is not threading.main_thread():  # only it may handle signals
            yield
            return
        owner = os.getpid()

        def ask(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a data loading worker, which ends with its owner
                return
            if not self.asked:
                self.asked = True
                hurry = "; press Ctrl-C again to stop at once without saving" if self.alone else ""
                self.console.log(f"stopping after this step{hurry}")
            elif self.alone and number == signal.SIGINT:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *ending_signals())}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
