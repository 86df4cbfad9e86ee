"""Runs `piti` commands in this process."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from piti.cli.app import app, main
from piti.cli.console import with_flags
from piti.core.errors import UserError, text_of


def invoked(*arguments: object) -> Any:
    """What Typer's runner reports."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object) -> str:
    """What a command that succeeds prints, notes included."""
    result = invoked(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def mistake(*arguments: object) -> str:
    """The message of a command that refuses what it is given."""
    result = invoked(*arguments)
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    return with_flags(text_of(result.exception))


def misspelt(*arguments: object) -> str:
    """What is printed where the command line cannot be parsed, on one line and without the frame."""
    result = invoked(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.replace("│", " ").split())


def code_and_output(*arguments: object) -> tuple[int, str]:
    """The exit code, and what a command prints on standard output."""
    result = invoked(*arguments)
    return result.exit_code, result.stdout


def printed_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message that `piti` prints for a user's mistake before it exits with 1, on one line."""
    monkeypatch.setattr("sys.argv", ["piti", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())
