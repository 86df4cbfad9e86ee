"""`piti edit`: files in, files out, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from piti.cli import app
from piti.cli_edit import _given
from piti.errors import UserError
from piti.images import png_text
from tests.test_cascade import tiny_cascade
from tests.test_editing import photograph, two_masks
from tests.test_given import several_pipeline
from tests.test_translation import text_pipeline

FAST = ["--steps", "2", "--upsampler-steps", "2"]


def run(*arguments: str) -> str:
    """What is printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def mistake(*arguments: str) -> str:
    """What is said of a command that fails."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_cascade().save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    before, after = two_masks()
    pictures = {"image": photograph(), "before": before, "after": after}
    paths = {name: tmp_path / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        shown = picture if isinstance(picture, Image.Image) else Image.fromarray(picture[0].numpy())
        shown.save(paths[name])
    return paths


def command(model: Path, files: dict[str, Path], out: Path, *more: str) -> list[str]:
    given = ["edit", str(files["image"]), "--from", str(files["before"]), "--to", str(files["after"])]
    return [*given, "--model", str(model), "--out", str(out), *FAST, *more]


def test_into_a_file(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "made/edited.png"
    said = run(*command(model, files, out, "--keep", "exact", "--guidance", "1.5", "--seed", "3"))
    assert "1 images made" in said
    for word in ("of the image repainted", "inversion and return", "outside the region exact", str(out)):
        assert word in said
    made, image = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (out, files["image"]))
    assert made.shape == image.shape
    kept = (made == image).all(axis=-1)
    assert 0.5 < kept.mean() < 1
    assert list(out.parent.iterdir()) == [out]
    text = png_text(out)
    assert (text["piti:edited"], text["piti:edit_to"], text["piti:edit_from"]) == (
        "image.png",
        "after.png",
        "before.png",
    )
    settings = json.loads(text["piti:edit"])
    assert settings["keep_exact"] is True
    assert (settings["steps"], settings["upsampler_steps"], settings["guidance"]["w"]) == (2, 2, 1.5)
    assert (text["piti:model"], text["piti:seed"], text["piti:number"]) == (str(model), "3", "0")
    again = run(*command(model, files, out, "--keep", "exact", "--guidance", "1.5", "--seed", "3", "--overwrite"))
    assert again == said
    assert np.array_equal(np.asarray(Image.open(out)), made)


def test_into_a_folder(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert "sheet.png" in run(*command(model, files, out, "--num", "2", "--variety", "1"))
    assert sorted(path.name for path in out.iterdir()) == ["image_0.png", "image_1.png", "sheet.png"]
    assert {Image.open(out / f"image_{k}.png").size for k in (0, 1)} == {(32, 32)}
    assert (out / "image_0.png").read_bytes() != (out / "image_1.png").read_bytes()


def test_an_edited_image_says_what_it_shows(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """So that it is edited again without --from; an image that does not say is repainted as a whole."""
    share = re.search(r"[\d.]+% of the image", run(*command(model, files, tmp_path / "one.png")))
    given = ["--to", str(files["before"]), "--model", str(model), *FAST]
    again = run("edit", str(tmp_path / "one.png"), *given, "--out", str(tmp_path / "two.png"))
    assert share is not None
    assert share[0] in again
    assert not share[0].startswith("100")
    assert png_text(tmp_path / "two.png")["piti:edit_from"] == "the image's own"
    Image.open(tmp_path / "one.png").convert("RGB").save(tmp_path / "bare.jpg")
    bare = run("edit", str(tmp_path / "bare.jpg"), *given, "--out", str(tmp_path / "three.png"))
    assert "100.0% of the image repainted" in bare


def test_nothing_is_lost(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    assert "is there already" in mistake(*command(model, files, tmp_path / "old.png"))
    assert (tmp_path / "old.png").read_bytes() == b"old"
    before = files["image"].read_bytes()
    assert "is an input" in mistake(*command(model, files, files["image"], "--overwrite"))
    assert files["image"].read_bytes() == before
    assert "give a folder" in mistake(*command(model, files, tmp_path / "two.png", "--num", "2"))
    assert "end the name in .png" in mistake(*command(model, files, tmp_path / "two.jpg"))
    same = files | {"after": files["before"]}
    assert "nothing would change" in mistake(*command(model, same, tmp_path / "new/same.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(files["image"].read_bytes()[:200])
    assert "broken.png" in mistake(*command(model, files | {"image": broken}, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert "Give --to FILE" in mistake("edit", str(files["image"]), "--model", str(model))


def test_texts_and_parts(files: dict[str, Path], tmp_path: Path) -> None:
    for name, pipeline in (("text", text_pipeline()), ("several", several_pipeline())):
        pipeline.save_pretrained(tmp_path / name)
    image, steps = str(files["image"]), ["--steps", "2"]
    text = ["edit", image, "--model", str(tmp_path / "text"), *steps, "--out"]
    run(*text, str(tmp_path / "a.png"), "--text", "the sea", "--from-text", "a wood")
    assert png_text(tmp_path / "a.png")["piti:edit_to"] == "the sea"
    several = ["edit", image, "--model", str(tmp_path / "several"), *steps, "--out"]
    parts = ["--from", f"mask={files['before']}", "--to", f"mask={files['after']}"]
    assert "repainted" in run(*several, str(tmp_path / "b.png"), *parts)
    assert "--to mask=FILE" in mistake(*several, str(tmp_path / "c.png"), "--to", str(files["after"]))
    assert "of which part is it" in mistake(*several, str(tmp_path / "c.png"), "--text", "the sea")
    picture = mistake(*text, str(tmp_path / "c.png"), "--to", str(files["after"]))
    assert "is a picture, and this model reads text" in picture
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [(["a.png"], "sea", "twice"), (["a.png", "b.png"], None, "one file"), (["mask=a.png", "b.png"], None, "one file")],
)
def test_what_is_given_twice(values: list[str], text: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _given("to", values, "text", text)


def test_what_is_given() -> None:
    assert _given("to", None, "text", None) is None
    both: Any = {"mask": Path("a.png"), "sketch": Path("b.png")}
    assert _given("to", ["mask=a.png", "sketch=b.png"], "text", None) == both
