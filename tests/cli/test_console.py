"""Console output: brackets are printed as text, and resumable commands say so."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest
import typer

from piti.cli.console import begins_with, log, print_notes, print_rows, progress, resumable


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"name": "[bold]Eve[/]", "pairs": "3"}])
    assert "[bold]Eve[/]" in capsys.readouterr().out
    print_rows([])
    assert capsys.readouterr().out == "none\n"
    print_notes(["[red]one[/]", "two"])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["note: [red]one[/]", "note: two"]


def test_no_value_of_a_table_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"folder": "f" * 300, "weights": "w" * 300}
    print_rows([values])
    assert capsys.readouterr().out.splitlines()[1].split() == list(values.values())


def test_work_outlives_who_reads_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the `tee` of a pipe before what it reads from; a terminal that was closed says "I/O error"."""
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (writing, os.open("/dev/full", os.O_WRONLY)):
        with os.fdopen(descriptor, "w") as gone, monkeypatch.context() as patch:
            patch.setattr(log, "quiet", False)
            patch.setattr(sys, "stderr", gone)
            log.log("one")
            assert log.quiet
            log.log("two")
            patch.setattr(log, "quiet", False)
            with progress("drawing") as on_step:
                log.print("three")
                on_step(1, 2)


def test_progress_of_other_processes_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("judging", shown=False) as on_step:
        on_step(1, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_is_stopped_can_be_resumed(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "quiet", False)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has ignored
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
    with pytest.raises(typer.Exit) as stop, resumable():
        os.kill(os.getpid(), number)
    assert stop.value.exit_code == code
    assert "the same command to continue" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_begins_with_its_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is collected while they run; then all is as before, and a second time it begins at once."""
    came: list[str] = []

    def importing(name: str) -> None:
        came.append(f"{name} {gc.isenabled()}")
        if name == "broken":
            raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", importing)
    monkeypatch.setattr(gc, "freeze", lambda: came.append("frozen"))
    command = begins_with("a", "b")(lambda *, word: came.append(word))
    command(word="done")
    assert came == ["a False", "b False", "frozen", "done"]
    assert gc.isenabled()
    for name in ("a", "b"):
        monkeypatch.setitem(sys.modules, name, None)
    command(word="again")
    assert came[4:] == ["again"]
    with pytest.raises(ImportError):
        begins_with("broken")(lambda: None)()
    assert gc.isenabled()
