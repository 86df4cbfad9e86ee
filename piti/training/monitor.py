"""A run's progress for a person: a bar on a terminal, lines in a log."""

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
        """Say which stage begins; the time until now is not a step's."""
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
        """The time within the block counts as training, but to no step: saves and previews come once in a while."""
        began = time.perf_counter()
        yield
        self.between += time.perf_counter() - began

    def wait(self, seconds: float) -> None:
        """How much of the last step went by waiting for data."""
        self.waits.append(seconds)

    @property
    def waiting(self) -> float:
        """The share of the last steps' time that went by waiting for data."""
        return sum(self.waits) / sum(self.times) if self.waits else 0.0

    @property
    def rate(self) -> float:
        """Images a second of this process, over the last steps, saves and previews left out."""
        return self.images * len(self.times) / sum(self.times) if self.times else 0.0

    def mean_loss(self) -> float:
        """Mean loss of the last `log_every` steps."""
        return sum(self.losses) / max(1, len(self.losses))

    def show(self, losses: Sequence[float], state: RunState) -> None:
        """Bring the bar up to date. losses: of the steps that were not shown yet, where they are known."""
        self.losses += losses
        if self.bar and self.task is not None:
            shown, speed = f"loss {self.mean_loss():.4f}", f"{self.rate:.1f} images/s, {self.waiting:.1%} waiting"
            self.bar.update(self.task, completed=state.step, loss=shown, rate=speed)

    def line(self, row: dict[str, Any]) -> None:
        """Where there is no terminal, one line in the log."""
        if self.bar is None:
            left = (self.recipe.steps - row["step"]) * self.images / max(self.rate, 1e-9)
            self.console.log(
                f"{row['stage']} {row['step']}/{self.recipe.steps}  loss {row['loss']:.4f}  "
                f"{row['images_per_second']:.1f} images/s, {self.waiting:.1%} waiting  {left / 60:.0f} min left"
            )


@contextlib.contextmanager
def training_bar(console: Console, recipe: Recipe, state: RunState) -> Iterator[Meter]:
    """A meter, with a live bar where the console is a terminal."""
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
    """Whether somebody asked this process to stop, by Ctrl-C, SIGTERM or a terminal that closes."""

    def __init__(self, console: Console, alone: bool = True) -> None:
        """alone: whether no launcher's agent, which hands signals on and kills who does not end, is above it."""
        self.console, self.alone = console, alone
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """A first signal asks for a stop after the step in hand, and a second Ctrl-C stops at once.

        A second SIGTERM does not, nor anything among several processes: one request comes more than once where a
        scheduler sends it to all processes and torchrun, or `timeout`, hands its own on.
        """
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        owner = os.getpid()

        def ask(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a worker of the loader, which ends when its owner does
                return
            if not self.asked:
                self.asked = True
                hurry = "; Ctrl-C once more to stop at once without saving" if self.alone else ""
                self.console.log(f"stopping after this step{hurry}")
            elif self.alone and number == signal.SIGINT:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *ending_signals())}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
