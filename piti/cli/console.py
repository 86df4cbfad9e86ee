"""What the commands print: results on standard output; notes, progress and errors on standard error."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piti.core.log import LogConsole
from piti.core.system import ending_signals

if TYPE_CHECKING:
    from piti.pipelines.pipeline import PITIPipeline

log = LogConsole()


_TWO_WORDS = {"keep_exact": "--keep exact"}
"""Keywords that the command line has as an option and its value."""


def flag(name: str) -> str:
    """What is typed for an option, from its keyword."""
    from piti.core import errors

    return _TWO_WORDS.get(name) or errors.flag(name)


def with_flags(text: str) -> str:
    """A text of the library, the options that it mentions written as flags."""
    from piti.core.errors import spelled, text_of

    return spelled(text_of(text), flag)


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table on standard output; its columns are as wide as they need to be where that is not a terminal.

    rows: all with the same keys, which head the columns. Brackets in the values are text, not markup.
    """
    if not rows:
        typer.echo("none")
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(with_flags(value)) for value in row.values()))
    console.print(table)


def print_notes(notes: Iterable[str]) -> None:
    """One line each."""
    for note in notes:
        _labelled("note", "bold yellow", note)


def images_made(count: int) -> str:
    """Such as "1 image made"."""
    return f"{count} image{'' if count == 1 else 's'} made"


def print_wait(pipeline: PITIPipeline, compiled: bool) -> None:
    """One line where the first images take longer than others: the engine converts, or blocks are compiled."""
    if not pipeline.engine_ready():
        log.print(f"converting the networks for {pipeline.engine.name}, once …")
    if compiled:
        log.print("compiling the networks' blocks at the first image of each size, which takes minutes …")


def print_warning(warning: str) -> None:
    """One line."""
    _labelled("warning", "bold yellow", warning)


def print_error(error: Exception) -> None:
    """The message alone, without a traceback."""
    from piti.core.errors import text_of

    _labelled("error", "bold red", text_of(error))


def _labelled(label: str, style: str, text: str) -> None:
    log.print(Text.assemble((f"{label}: ", style), with_flags(text)), soft_wrap=True)


def progress(what: str, shown: bool = True) -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar to which (steps done, steps in all) is reported. shown: False in all processes but the first."""
    from piti.core.progress import steps_bar

    return steps_bar(log if shown else Console(quiet=True), what)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; like KeyboardInterrupt, it lets every process and file be closed."""


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that closes end the block once the files being written are complete, and say that
    it can be resumed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {number: signal.signal(number, terminate) for number in ending_signals()}
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        log.print("stopped; the same command goes on where it was", soft_wrap=True)
        raise typer.Exit(128 + (stop.args[0] if isinstance(stop, _Terminated) else signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begins_with(*modules: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first act is to import modules, by `quick_imports`."""

    def beginning(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def begun(*given: Any, **named: Any) -> None:
            if not sys.modules.keys() >= set(modules):
                with quick_imports():
                    for module in modules:
                        importlib.import_module(module)
            command(*given, **named)

        return begun

    return beginning


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within the block nothing is collected, and nothing that is there at its end is looked through later.

    torch and diffusers make half a million objects that all stay; to go through them again and again takes a fifth of
    the time of importing, and as long once more when the process ends.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
