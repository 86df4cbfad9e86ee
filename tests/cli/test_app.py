"""The command line as a whole: its version, completion, launchers, and errors as a single message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main

from piti import __version__
from piti.cli.app import app
from tests.cli.running import invoked, misspelt, printed_error, run
from tests.pipelines.test_pipeline import tiny_pipeline


def test_mistakes(recipe: Path, tiny_data: Path, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    def said(*arguments: object) -> str:
        return printed_error(monkeypatch, capfd, *arguments)

    assert "there is no model 'nothing'" in said("translate", "no.png", "--model", "nothing")
    assert "add --data FOLDER" in said("train", recipe)
    assert "[odd].yaml: there is no such file or recipe" in said("train", tmp_path / "[odd].yaml")
    assert "did you mean 'batch'" in said("train", recipe, "--data", tiny_data, "--set", "bach=2")
    (tmp_path / "file").write_text("")
    assert "file" in said("train", recipe, "--data", tiny_data, "--out", tmp_path / "file")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    assert "--device nonsense" in said("translate", "no.png", "--model", tmp_path / "model", "--device", "nonsense")
    assert "no.png" in said("translate", "no.png", "--model", tmp_path / "model", "--out", tmp_path / "out")
    (tmp_path / "model/base/config.json").unlink()
    assert "model" in said("translate", "no.png", "--model", tmp_path / "model")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_is_one_message(error: Exception, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("piti.pipelines.pipeline.list_models", fails)
    said = printed_error(monkeypatch, capfd, "models")
    assert said.startswith("error: out of memory: ")
    assert "use smaller batches or images" in said
    monkeypatch.setattr("piti.pipelines.pipeline.list_models", lambda: [][0])
    with pytest.raises(IndexError):  # a bug has its traceback
        printed_error(monkeypatch, capfd, "models")


def test_the_nearest_flag_and_command_are_named() -> None:
    assert "No such option: --skp-bad (Possible options: --skip-bad)" in misspelt("translate", "m.png", "--skp-bad")
    assert "Did you mean 'translate'?" in misspelt("trnslate")
    assert "Did you mean 'make'?" in misspelt("study", "mak")


def test_the_list_of_commands_has_a_sentence_for_each() -> None:
    """One line of source: a second one begins a new line in the midst of the sentence there."""
    waiting = [typer.main.get_command(app)]
    for command in waiting:
        waiting += getattr(command, "commands", {}).values()
        assert "\n" not in (command.help or "").split("\n\n")[0], command.name


def test_version_and_completion() -> None:
    assert run("--version") == f"{__version__}\n"
    said = run("--help")
    for flag in ("--version", "--install-completion", "--show-completion"):
        assert flag in said


def test_as_a_module() -> None:
    """As torchrun starts it, and without loading what only commands need."""
    code = "import sys, runpy; sys.argv = ['piti', '--version']; runpy.run_module('piti', run_name='__main__')"
    heavy = "print([name for name in ('torch', 'kornia', 'PIL') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit, sys; atexit.register(lambda: {heavy}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [__version__, "[]"]


@pytest.mark.parametrize(
    "command",
    ["train", "translate", "edit", "reproduce", "studio", "models", "import", "export", "evaluate", "study", "prepare"],
)
def test_every_command_has_help(command: str) -> None:
    assert invoked(command, "--help").exit_code == 0
