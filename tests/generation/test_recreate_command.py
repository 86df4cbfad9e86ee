"""`piti translate --like` on the command line: flags that win, mistakes in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from piti.core.images import png_text
from tests.cli.running import code_and_output as run
from tests.cli.running import printed_error as mistake
from tests.generation.recreating import again, with_text
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask


class TestCommandLine:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        tiny_cascade().save_pretrained(tmp_path / "model")
        mask(1, 22, 16).save(tmp_path / "street.png")
        run("translate", tmp_path / "street.png", "--model", tmp_path / "model", "--seed", 7, "--out", tmp_path / "a")
        return tmp_path / "model"

    def test_an_image_alone_is_enough(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "street.png").unlink()
        code, said = run("translate", "--like", tmp_path / "a/street_2.png", "--out", tmp_path / "b")
        assert (code, "1 image made" in said) == (0, True)
        assert (tmp_path / "b/street_2.png").read_bytes() == (tmp_path / "a/street_2.png").read_bytes()

    def test_flags_win(self, model: Path, tmp_path: Path) -> None:
        like = ["translate", "--like", tmp_path / "a/street_2.png"]
        assert run(*like, "--seed", 0, "--steps", 1, "--guidance", 0, "--num", 1, "--out", tmp_path / "b")[0] == 0
        text = png_text(tmp_path / "b/street_0.png")
        assert (text["piti:seed"], text["piti:steps"], text["piti:upsampler_steps"]) == ("0", "1", "2")
        assert json.loads(text["piti:guidance"])["w"] == 0
        assert run(*like, "--base-only", "--out", tmp_path / "small")[0] == 0
        small = tmp_path / "small/street_2.png"
        assert Image.open(small).size == (22, 16)
        assert run("translate", "--like", small, "--no-base-only", "--out", tmp_path / "large")[0] == 0
        assert (tmp_path / "large/street_2.png").read_bytes() == (tmp_path / "a/street_2.png").read_bytes()

    def test_another_condition_is_allowed_and_said(self, model: Path, tmp_path: Path) -> None:
        mask(2).save(tmp_path / "other.png")
        made = tmp_path / "a/street_2.png"
        notes = again(tiny_cascade(), made, tmp_path / "b", [tmp_path / "other.png"])
        assert [note for note in notes if "other.png is another condition than that of" in note]
        assert png_text(tmp_path / "b/other_2.png")["piti:seed"] == "7"
        assert again(tiny_cascade(), made, tmp_path / "c", [tmp_path / "street.png"], base_only=True) == []

    def test_mistakes(self, model: Path, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
        made = tmp_path / "a/street_2.png"

        def wrong(*arguments: object) -> str:
            return mistake(monkeypatch, capfd, "translate", "--like", *arguments)

        assert "no such file" in wrong(tmp_path / "none.png")
        assert "was not made by piti, or its metadata was stripped" in wrong(tmp_path / "street.png")
        Image.open(made).convert("RGB").save(tmp_path / "photo.jpg")
        assert "photo.jpg: is no PNG" in wrong(tmp_path / "photo.jpg")
        assert "a: is a folder; give an image file" in wrong(made.parent)
        assert "sheet.png: is a contact sheet, and no single image" in wrong(made.parent / "sheet.png")
        assert "is an edit of another image" in wrong(with_text(made, tmp_path / "e.png", edited="True"))
        assert "in the place of this one" in wrong(made, "--out", made.parent)
        model.rename(tmp_path / "moved")
        said = wrong(made, "--out", tmp_path / "b")
        assert "was made with" in said
        assert "--model" in said
        assert not (tmp_path / "b").exists()
        assert run("translate", "--like", made, "--model", tmp_path / "moved", "--out", tmp_path / "b")[0] == 0

    def test_another_upsampler(self, model: Path, tmp_path: Path) -> None:
        """A flag that wins: the base's image of then, enlarged by another model."""
        tiny_cascade(upsampler_steps=1).save_pretrained(tmp_path / "other")
        like = ["translate", "--like", tmp_path / "a/street_2.png", "--upsampler", tmp_path / "other"]
        assert run(*like, "--out", tmp_path / "b")[0] == 0
        text = png_text(tmp_path / "b/street_2.png")
        assert text["piti:model"] == f"{model} with the upsampler of {tmp_path / 'other'}"
        assert run("translate", "--like", tmp_path / "b/street_2.png", "--out", tmp_path / "c")[0] == 0
        assert (tmp_path / "c/street_2.png").read_bytes() == (tmp_path / "b/street_2.png").read_bytes()
