"""`piti translate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from piti.pipelines.pipeline import PITIPipeline
from tests.cli.running import invoked, run
from tests.pipelines.test_pipeline import mask, tiny_pipeline


def test_translate(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "masks").mkdir()
    for k in range(3):
        mask(k).save(tmp_path / f"masks/m{k}.png")
    arguments = ["translate", tmp_path / "masks", "--model", tmp_path / "model", "--num", 1, "--steps", 2]
    arguments += ["--guidance", 0, "--sampler", "ddim"]
    said = run(*arguments, "--out", tmp_path / "out")
    assert "3 images made" in said
    assert (tmp_path / "out/sheet.png").is_file()
    assert "0 images made, 3 kept" in run(*arguments, "--out", tmp_path / "out")


def test_impossible_options_are_refused_before_networks_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(PITIPipeline, "engine_ready", lambda self: False)
    mask(1).save(tmp_path / "mask.png")
    result = invoked("translate", tmp_path / "mask.png", "--model", tmp_path / "model", "--steps", 5000)
    assert "5000" in str(result.exception)
    assert "converting" not in result.output


def test_stopped_it_says_that_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless that would make everything anew."""

    def stopped(self: PITIPipeline, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PITIPipeline, "generate", stopped)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    mask(1).save(tmp_path / "mask.png")
    arguments = ["translate", tmp_path / "mask.png", "--model", tmp_path / "model", "--out", tmp_path / "out"]
    for overwrite in ([], ["--overwrite"]):
        result = invoked(*arguments, *overwrite)
        assert result.exit_code == 130
        assert ("stopped; run the same command to continue" in result.output) == (not overwrite)
