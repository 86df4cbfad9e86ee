"""Conditions of released files: one-hot masks, geometry, the release's two images, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from piti.checkpoints.convert import SCHEDULES, ImportSettings, import_release
from piti.checkpoints.export import export_release
from piti.checkpoints.release import ExchangeError
from piti.checkpoints.released_conditions import RELEASED_GEOMETRY, Reading, condition_of, lost_in_release
from piti.checkpoints.writing import write_model_folder
from piti.cli.app import app
from piti.conditions import (
    ClassTable,
    Condition,
    ConditionError,
    GeometryCondition,
    MaskCondition,
    PaletteCondition,
    PictureCondition,
    SeveralCondition,
    SketchCondition,
    TextCondition,
    bit_colours,
    coco_stuff,
)
from piti.core.errors import Message
from piti.diffusion.schedulers import scheduler_of
from piti.models import EncoderSpec, Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.released import TINY

BASE = Path("base.pt")


def table(count: int) -> ClassTable:
    return ClassTable(names=tuple(f"c{k}" for k in range(count)), ids=tuple(range(count)), colours=bit_colours(count))


def classes_file(folder: Path, count: int) -> Path:
    path = folder / f"classes{count}.json"
    path.write_text(json.dumps(table(count).to_file()))
    return path


def trained(folder: Path, condition: Condition) -> Path:
    """A base and upsampler of ours that have a released layout."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    for network, name in (("base", "piti"), ("upsampler", "piti_up")):
        encoder = TINY[name]["encoder_spec"] | {"in_channels": condition.channels}
        parts[network] = Translator(**TINY[name] | {"encoder_spec": encoder})
        scheduler = "scheduler" if network == "base" else "upsampler_scheduler"
        parts[scheduler] = scheduler_of(SCHEDULES[network])
    write_model_folder(folder / "trained", parts, condition.to_config(), {})
    return folder / "trained"


def exchanged(folder: Path, condition: Condition, **settings: Any) -> PITIPipeline:
    """A model that was exported and imported again, with the weights that it had."""
    model = trained(folder, condition)
    export_release(model, folder / "out")
    import_release(folder / "out/base.pt", folder / "model", folder / "out/upsampler.pt", ImportSettings(**settings))
    for network in ("base", "upsampler"):
        name = f"{network}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(model / name), load_file(folder / "model" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    pipeline = PITIPipeline.from_pretrained(folder / "model")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_one_hot_mask_model_comes_back(tmp_path: Path) -> None:
    condition = MaskCondition(table(4))
    assert exchanged(tmp_path, condition, classes=classes_file(tmp_path, 4)).condition == condition


def test_the_release_s_pictures_come_back_and_are_translated(tmp_path: Path) -> None:
    pipeline = exchanged(tmp_path, RELEASED_GEOMETRY)
    assert pipeline.condition == RELEASED_GEOMETRY
    assert torch.equal(pipeline.condition.null(1, 4, 4), torch.ones(1, 6, 4, 4))
    pictures = {"normal": Image.new("RGB", (16, 16), "blue"), "depth": Image.new("RGB", (16, 16), "grey")}
    images = pipeline(pictures, steps=1, base_only=True, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (16, 16)
    with pytest.raises(ConditionError, match="depth alone: this model reads normal and depth together; give normal"):
        pipeline({"depth": pictures["depth"]}, steps=1, base_only=True)


@pytest.mark.parametrize(
    ("channels", "count", "masks", "kind"),
    [
        (1, None, None, SketchCondition),
        (1, 1, None, MaskCondition),
        (3, None, None, PaletteCondition),
        (3, None, "colours", PaletteCondition),
        (3, 4, None, PaletteCondition),
        (3, 3, "colours", PaletteCondition),
        (3, 3, "one-hot", MaskCondition),
        (4, 4, None, MaskCondition),
        (5, None, None, GeometryCondition),
        (5, 5, None, MaskCondition),
        (6, None, None, SeveralCondition),
        (6, 6, None, MaskCondition),
    ],
)
def test_channels_and_classes_tell_the_kind(
    tmp_path: Path, channels: int, count: int | None, masks: Any, kind: type[Condition]
) -> None:
    classes = None if count is None else classes_file(tmp_path, count)
    condition, assumed = condition_of(EncoderSpec(in_channels=channels), BASE, Reading(classes, None, masks))
    assert type(condition) is kind
    assert condition.channels == channels
    assert bool(assumed) == (kind is MaskCondition or (channels > 1 and count is None and masks is None))
    if isinstance(condition, MaskCondition):
        assert condition.classes == (coco_stuff() if count is None else table(count))


@pytest.mark.parametrize(
    ("channels", "count", "masks", "message"),
    [
        (1, 4, None, r"base.pt: its encoder reads 1 channels, but .*classes4.json has 4 classes"),
        (4, 5, None, r"base.pt: its encoder reads 4 channels, but .*classes5.json has 5 classes"),
        (5, 4, None, r"reads 5 channels, but .*classes4.json has 4 classes"),
        (3, 3, None, r"a mask in colours, or one-hot masks of the 3 classes of .*masks colours or masks one-hot"),
        (3, 4, "one-hot", r"reads 3 channels, but .*classes4.json has 4 classes"),
        (4, 4, "colours", r"reads 4 channels, but .*masks in colours have 3"),
        (4, None, None, r"base.pt: its encoder reads 4 channels, and PITI's read .*classes FILE"),
        (4, None, "one-hot", r"masks one-hot: the file does not contain the classes.*classes FILE"),
        (6, None, "colours", r"reads 6 channels, but COCO-Stuff has 182 classes"),
    ],
)
def test_what_does_not_agree_is_refused(
    tmp_path: Path, channels: int, count: int | None, masks: Any, message: str
) -> None:
    classes = None if count is None else classes_file(tmp_path, count)
    with pytest.raises(ExchangeError, match=message):
        condition_of(EncoderSpec(in_channels=channels), BASE, Reading(classes, None, masks))


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (PaletteCondition(coco_stuff()), []),
        (SketchCondition(threshold=0.6), []),
        (RELEASED_GEOMETRY, []),
        (TextCondition(6), []),
        (PaletteCondition(table(3)), ["the file cannot store its classes: .* with --classes FILE"]),
        (SketchCondition(threshold=0.6, clip=32), [r".*cannot store clip = 32 \(an import has 255\)"]),
        (
            MaskCondition(table(3)),
            ["the release's code has no one-hot masks, .* 3 classes: it reads a mask in colours"],
        ),
        (MaskCondition(table(4), 1.0), [".*each of 4 classes", r".*null_value = 1.0 \(an import has 0.0\)"]),
        (GeometryCondition(near=1, far=9), [".*holes in 5 channels", r".*near = 1.0 \(.* None\), far = 9.0"]),
        (PictureCondition(), [".*no 'picture'.*takes 3 channels for another kind"]),
    ],
)
def test_an_export_says_what_the_layout_loses(condition: Condition, wanted: list[str]) -> None:
    notes = list(map(Message, lost_in_release(condition)))
    assert len(notes) == len(wanted)
    assert all(map(re.match, wanted, notes)), notes


def test_the_command_line_tells_it(tmp_path: Path) -> None:
    run, out = CliRunner().invoke, tmp_path / "out"
    exported = run(app, ["export", str(trained(tmp_path, MaskCondition(table(3)))), "--out", str(out)])
    assert exported.exit_code == 0, exported.output
    assert exported.stderr.count("note: ") == 1
    assert "note: PITI base: the release's code has no one-hot masks" in exported.stderr
    assert "piti import reads it with --classes FILE" in exported.stderr
    flags = ["--classes", str(classes_file(tmp_path, 3)), "--masks", "one-hot"]
    done = run(app, ["import", str(out / "base.pt"), "--out", str(tmp_path / "model"), *flags])
    assert done.exit_code == 0, done.output
    assert "note: PITI base is assumed to read one-hot masks" in done.stderr
