"""`piti translate`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.running import run
from tests.pipelines.test_pipeline import mask, tiny_pipeline


def test_translate(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "masks").mkdir()
    for k in range(3):
        mask(k).save(tmp_path / f"masks/m{k}.png")
    arguments = ["translate", tmp_path / "masks", "--model", tmp_path / "model", "--num", 1, "--steps", 2]
    said = run(*arguments, "--guidance", 0, "--sampler", "ddim", "--out", tmp_path / "out")
    assert "3 images made" in said
    assert (tmp_path / "out/sheet.png").is_file()
    assert "0 images made, 3 kept" in run(*arguments, "--out", tmp_path / "out")
