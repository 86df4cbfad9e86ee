"""Processes forked from one that has imported the package, for a fast start."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def forked_context() -> Any:
    """The context of such processes, to give to what starts some of its own; the process that forks them runs already,
    which one that is started while signals are blocked would not hear for ever after."""
    forkserver.ensure_running()
    return _CONTEXT


class Forked:
    """Calls a function in a process and a session of its own.

    folder: takes what it writes to standard output and error; environment: variables beside the test's own.
    """

    def __init__(
        self, work: Callable[..., object], *arguments: Any, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._files = folder / "stdout", folder / "stderr"
        values = (work, arguments, self._files, os.environ | environment)
        self._process = _CONTEXT.Process(target=_begin, args=values)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; below 0 the signal that ended it."""
        return self._process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; what it wrote."""
        self._process.join(timeout)
        out, err = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self._files)
        assert self.returncode is not None, (out, err)
        return out, err


def piti(*arguments: str) -> None:
    """The command line, as the work of a process."""
    from piti.cli import app

    sys.argv = ["piti", *arguments]
    app.main()


def _begin(
    work: Callable[..., object], arguments: tuple[Any, ...], files: tuple[Path, Path], environment: Mapping[str, str]
) -> None:
    multiprocessing.set_start_method(None, force=True)  # a loader's workers are forked as elsewhere
    os.setsid()
    os.chdir(ROOT)
    for number, path in zip((1, 2), files, strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(*arguments)
