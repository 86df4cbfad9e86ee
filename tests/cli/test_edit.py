"""`piti edit`: files in, files out, and errors before anything is written."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from piti.cli.app import app
from piti.cli.console import with_flags
from piti.cli.edit import edit_condition
from piti.core.errors import UserError, text_of
from piti.core.images import png_text, save_png
from piti.editing.trajectory import Inverted
from piti.generation.metadata_schema import RemakeError, carried_condition, own_condition
from piti.pipelines.pipeline import PITIPipeline
from tests.editing.edits import photograph, two_masks
from tests.generation.test_inputs import several_pipeline
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_cascade import tiny_cascade

FAST = ["--steps", "2", "--upsampler-steps", "2"]


def run(*arguments: str) -> str:
    """What is printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def said_in_all(*arguments: str) -> str:
    """The same, notes included."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def mistake(*arguments: str) -> str:
    """What is said of a command that fails."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, UserError), result.output
    return with_flags(text_of(result.exception))


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


def test_a_result_that_is_smaller_than_the_image_is_told(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    note = "note: edited at 32 x 32, but the image has 40 x 40: --keep exact restores its size, --size edits"
    assert note in said_in_all(*command(model, files, tmp_path / "small.png"))
    assert "edited at" not in said_in_all(*command(model, files, tmp_path / "own.png", "--keep", "exact"))


def test_into_a_file(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "made/edited.png"
    exact = ["--keep", "exact", "--guidance", "1.5", "--seed", "3", "--measure"]
    said = run(*command(model, files, out, *exact))
    assert "1 image made" in said
    for word in ("of the image was repainted", "by inversion", "the rest is unchanged", str(out)):
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
    assert (settings["variety"], settings["size"]) == (0.7, 32)  # as they came out, not as they were left out
    upsampler = [settings[f"upsampler_{key}"] for key in ("noise", "truncates")]
    assert upsampler == [1.0, False]  # the noise is the image's own
    assert settings["upsampler_guidance"]["w"] == 0.0
    assert (text["piti:model"], text["piti:seed"], text["piti:number"]) == (str(model), "3", "0")
    again = run(*command(model, files, out, *exact, "--overwrite"))
    assert again == said
    assert np.array_equal(np.asarray(Image.open(out)), made)


def test_into_a_folder(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "made"
    said = run(*command(model, files, out, "--num", "2", "--variety", "1"))
    assert "sheet.png" in said
    assert "by inversion" not in said  # which takes half as long again, and is measured when asked for
    assert sorted(path.name for path in out.iterdir()) == ["image_0.png", "image_1.png", "sheet.png"]
    assert {Image.open(out / f"image_{k}.png").size for k in (0, 1)} == {(32, 32)}
    assert (out / "image_0.png").read_bytes() != (out / "image_1.png").read_bytes()
    before = (out / "sheet.png").read_bytes()
    said = mistake(*command(model, files, out))
    assert "image_0.png: already exists, generated with variety = 1.0, but 0.7 is requested; add --overwrite" in said
    assert (out / "sheet.png").read_bytes() == before
    files["image"].rename(files["image"].with_name("another.png"))
    run(*command(model, files | {"image": files["image"].with_name("another.png")}, out))
    assert {path.name for path in out.glob("another_*.png")} == {"another_0.png"}
    assert (out / "sheet.png").read_bytes() != before


def test_an_interrupted_edit_keeps_its_images_and_continues(
    model: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = ["--num", "3", "--batch", "1", "--measure"]
    whole = run(*command(model, files, tmp_path / "whole", *several))
    out, sample = tmp_path / "out", Inverted.sample
    calls: list[int] = []

    def interrupted(self: Inverted, *given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:  # the third image's base, after both networks of two
            raise KeyboardInterrupt
        return sample(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Inverted, "sample", interrupted)
        result = CliRunner().invoke(app, command(model, files, out, *several))
    assert result.exit_code == 130
    assert "stopped; run the same command to continue" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["image_0.png", "image_1.png"]
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    said = run(*command(model, files, out, *several))
    assert said == whole.replace("3 images made", "1 image made, 2 kept (--overwrite replaces them)").replace(
        str(tmp_path / "whole"), str(out)
    )
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for name in ("image_0.png", "image_1.png", "image_2.png", "sheet.png"):
        assert np.array_equal(np.asarray(Image.open(out / name)), np.asarray(Image.open(tmp_path / "whole" / name)))
    assert "0 images made, 3 kept" in run(*command(model, files, out, "--num", "3"))


def test_edits_of_other_inputs_are_not_kept(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Although the files have the same names."""
    out = tmp_path / "made.png"
    run(*command(model, files, out))
    files["image"].rename(tmp_path / "renamed.png")
    assert "0 images made, 1 kept" in run(*command(model, files | {"image": tmp_path / "renamed.png"}, out))
    photograph(seed=1).save(files["image"])
    said = mistake(*command(model, files, out))
    assert "made.png: already exists, generated from another image, condition or region; add --overwrite" in said
    (tmp_path / "renamed.png").rename(files["image"])
    for flag, value, word in (("--seed", "1", "seed = 0"), ("--guidance", "3", "guidance = {")):
        assert f"already exists, generated with {word}" in mistake(*command(model, files, out, flag, value))
    assert "1 image made" in run(*command(model, files, out, "--seed", "1", "--overwrite"))


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
    bare = ["edit", str(tmp_path / "bare.jpg"), *given, "--num", "2", "--out", str(tmp_path / "three")]
    said = said_in_all(*bare)
    assert "100.0% of the image was repainted" in said
    assert (
        "bare.jpg: has no record of its condition: all of it is repainted; give its current condition with --from"
        in said
    )
    assert "no new noise was drawn (variety 0), so all images are the same" in said
    nothing = mistake(*bare[:-2], "--keep", "exact", "--out", str(tmp_path / "four"))
    assert "--keep exact is to keep a part of it" in nothing
    assert not (tmp_path / "four").exists()


def test_a_region(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """What was repainted of a region shows the change inside it; of an image that is not known, nobody can say."""
    region = Image.new("L", (40, 40))
    region.paste(255, (0, 0, 8, 40))  # half of the car
    region.save(tmp_path / "region.png")
    more, first, second = (
        ["--region", str(tmp_path / "region.png"), "--size", "40"],
        tmp_path / "1.png",
        tmp_path / "2.png",
    )
    run(*command(model, files, first, *more))
    assert Image.open(first).size == (40, 40)
    assert png_text(first)["piti:edit_region"] == "region.png"
    before, after = two_masks()
    shows = carried_condition(first, PITIPipeline.from_pretrained(model).condition)
    assert shows is not None
    assert torch.equal(shows[..., :8], after[..., :8])
    assert torch.equal(shows[..., 8:], before[..., 8:])
    unknown = [word for word in command(model, files, second, *more) if word not in ("--from", str(files["before"]))]
    assert "has no record of its condition: it is inverted without a condition" in said_in_all(*unknown)
    assert not {"piti:raw", "piti:condition_sha256"} & png_text(second).keys()
    with pytest.raises(RemakeError, match=r"2\.png: is an edit of a region, and the condition of the rest"):
        own_condition(second, PITIPipeline.from_pretrained(model).condition)
    assert "sheet.png: already exists" in mistake(*command(model, files, sheet_in(tmp_path / "old")))


def sheet_in(folder: Path) -> Path:
    folder.mkdir()
    (folder / "sheet.png").write_bytes(b"old")
    return folder


def test_why_it_is_not_known_what_an_image_shows(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    run(*command(model, files, tmp_path / "one.png"))
    text = png_text(tmp_path / "one.png")
    form = json.loads(text["piti:raw_form"]) | {"reads": "0123"}
    condition = PITIPipeline.from_pretrained(model).condition
    for changes, why in (
        ({"piti:raw_form": json.dumps(form)}, "contains the condition of another model"),
        ({"piti:raw": "%%\x1b[31m%%"}, "cannot be decompressed"),
        ({"piti:raw_form": "{" + "\x1b[2J" * 900}, "is not JSON"),
        ({"piti:\x1b[2J": "1"}, r"unknown key piti:.x1b\[2J"),
    ):
        save_png(Image.open(tmp_path / "one.png"), tmp_path / "bad.png", text | changes)
        with pytest.raises(RemakeError, match=rf"bad\.png: .*{why}") as error:
            own_condition(tmp_path / "bad.png", condition)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 900
        assert carried_condition(tmp_path / "bad.png", condition) is None


def test_nothing_is_lost(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    assert "already exists, but is truncated" in mistake(*command(model, files, tmp_path / "old.png"))
    assert (tmp_path / "old.png").read_bytes() == b"old"
    before = files["image"].read_bytes()
    assert "is an input" in mistake(*command(model, files, files["image"], "--overwrite"))
    assert files["image"].read_bytes() == before
    assert "give a folder" in mistake(*command(model, files, tmp_path / "two.png", "--num", "2"))
    assert "use a name that ends in .png" in mistake(*command(model, files, tmp_path / "two.jpg"))
    same = files | {"after": files["before"]}
    assert "nothing would change" in mistake(*command(model, same, tmp_path / "new/same.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(files["image"].read_bytes()[:200])
    assert "broken.png" in mistake(*command(model, files | {"image": broken}, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert "the new condition is missing; give --to FILE" in mistake("edit", str(files["image"]), "--model", str(model))
    assert "is a folder; give an image file" in mistake(*command(model, files | {"image": tmp_path}, tmp_path / "new"))
    (tmp_path / "taken").write_bytes(b"old")
    for inside in ("taken/deep/a.png", "taken/deep"):
        assert "taken is a file, not a folder; give another --out" in mistake(*command(model, files, tmp_path / inside))


def test_values_out_of_range(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    for flag, value, message in (
        ("--dilate", "1.5", r"--dilate 1.5: is out of range"),
        ("--feather", "-0.1", r"--feather -0.1: is out of range"),
        ("--size", "5000", "--size 5000: "),
        ("--from-text", "a wood", "--from and --from-text are both given; remove"),
    ):
        assert message in mistake(*command(model, files, tmp_path / "a.png", flag, value))
    region = ["--region", str(files["after"]), "--dilate", "0.1"]
    assert "--dilate has no effect with --region" in mistake(*command(model, files, tmp_path / "a.png", *region))
    words = [word for word in command(model, files, tmp_path / "a.png") if word not in ("--from", str(files["before"]))]
    assert "--from-text: this model reads a mask; give --from FILE" in mistake(*words, "--from-text", "a wood")
    deep = tmp_path / "deep.png"
    deep.write_bytes(png_of_16_bits(40, 40))
    lost = mistake(*command(model, files | {"image": deep}, tmp_path / "a.png", "--keep", "exact"))
    assert "deep.png: images are written as 8-bit RGB, which would lose its precision beyond 8 bits" in lost
    assert not (tmp_path / "a.png").exists()


def png_of_16_bits(width: int, height: int) -> bytes:
    """Grey, RGB, 16 bits a channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 3 * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_texts_and_parts(files: dict[str, Path], tmp_path: Path) -> None:
    for name, pipeline in (("text", text_pipeline()), ("several", several_pipeline())):
        pipeline.save_pretrained(tmp_path / name)
    image, steps = str(files["image"]), ["--steps", "2"]
    text = ["edit", image, "--model", str(tmp_path / "text"), *steps, "--out"]
    said = said_in_all(*text, str(tmp_path / "a.png"), "--text", "the sea", "--from-text", "a wood, and more of it")
    assert "note: --from-text: " in said
    assert "note: --text: " not in said
    assert png_text(tmp_path / "a.png")["piti:edit_to"] == "the sea"
    several = ["edit", image, "--model", str(tmp_path / "several"), *steps, "--out"]
    parts = ["--from", f"mask={files['before']}", "--to", f"mask={files['after']}"]
    assert "repainted" in run(*several, str(tmp_path / "b.png"), *parts)
    assert "--to mask=FILE" in mistake(*several, str(tmp_path / "c.png"), "--to", str(files["after"]))
    assert "the part is not named" in mistake(*several, str(tmp_path / "c.png"), "--text", "the sea")
    picture = mistake(*text, str(tmp_path / "c.png"), "--to", str(files["after"]))
    assert "is an image, but this model reads text" in picture
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (["a.png"], "sea", "both given"),
        (["a.png", "b.png"], None, "one file"),
        (["mask=a.png", "b.png"], None, "one file"),
    ],
)
def test_what_is_given_twice(values: list[str], text: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit_condition("to", values, "text", text)


def test_what_is_given() -> None:
    assert edit_condition("to", None, "text", None) is None
    both: Any = {"mask": Path("a.png"), "sketch": Path("b.png")}
    assert edit_condition("to", ["mask=a.png", "sketch=b.png"], "text", None) == both
