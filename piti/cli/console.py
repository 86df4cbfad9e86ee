"""Output of the commands: results on standard output; notes, progress and errors on standard error."""

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

_UNBOUNDED = 100_000  # columns of a table that is not printed on a terminal

_TWO_WORDS = {"keep_exact": "--keep exact"}
"""Keywords that are an option with a value on the command line."""


def flag(name: str) -> str:
    """The command-line spelling of an option, from its keyword."""
    from piti.core import errors

    return _TWO_WORDS.get(name) or errors.flag(name)


def with_flags(text: str) -> str:
    """A library message, with the options that it mentions written as flags."""
    from piti.core.errors import spelled, text_of

    return spelled(text_of(text), flag)


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table on standard output: wrapped at a terminal's width, elsewhere each row on one line.

    rows: all with the same keys, which are the column headers. Brackets in the values are text, not markup.
    """
    if not rows:
        typer.echo("none")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(Text(with_flags(value)) for value in row.values()))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_UNBOUNDED)
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_notes(notes: Iterable[str]) -> None:
    """Print each note on one line of standard error."""
    for note in notes:
        _labelled("note", "bold yellow", note)


def images_made(made: int, kept: int = 0) -> str:
    """The numbers of images as text, such as "1 image made, 3 kept"."""
    more = f", {kept} kept (--overwrite replaces them)" if kept else ""
    return f"{made} image{'' if made == 1 else 's'} made{more}"


def print_wait(pipeline: PITIPipeline, compiled: bool) -> None:
    """Announce that the first images take longer, because networks are converted or compiled."""
    if not pipeline.engine_ready():
        log.print(f"converting the networks for {pipeline.engine.name}, once …")
    if compiled:
        log.print("compiling the networks' blocks at the first image of each size, which takes minutes …")


def print_warning(warning: str) -> None:
    """Print a warning on standard error."""
    _labelled("warning", "bold yellow", warning)


def print_error(error: Exception) -> None:
    """Print the message, without a traceback."""
    from piti.core.errors import text_of

    _labelled("error", "bold red", text_of(error))


def _labelled(label: str, style: str, text: str) -> None:
    log.print(Text.assemble((f"{label}: ", style), with_flags(text)), soft_wrap=True)


def progress(what: str, shown: bool = True) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar, updated by calls with (steps done, total steps). shown: False in all processes but the first."""
    from piti.core.progress import steps_bar

    return steps_bar(log if shown else Console(quiet=True), what)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; raised like KeyboardInterrupt, so that processes and files are closed."""


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, SIGTERM or a closed terminal, end the block cleanly and print that the command can be resumed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {number: signal.signal(number, terminate) for number in ending_signals()}
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        log.print("stopped; run the same command to continue", soft_wrap=True)
        raise typer.Exit(128 + (stop.args[0] if isinstance(stop, _Terminated) else signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begins_with(*modules: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command to first import modules within `quick_imports`."""

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
    """Disable garbage collection within the block, and exempt the objects that exist at its end from later collections.

    torch and diffusers create half a million permanent objects. Scanning them repeatedly takes a fifth of the import
    time, and as long again when the process ends.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
