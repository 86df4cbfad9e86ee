"""Bundled models by name, and their upsamplers; folders with damaged configurations."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from piti.checkpoints.folder import ModelError, bundled_models
from piti.core.errors import UserError
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_pipeline import tiny_pipeline


def test_the_upsampler_of_street_takes_one_step_and_no_other() -> None:
    pipeline = PITIPipeline.from_pretrained("street")
    pipeline.set_progress_bar_config(disable=True)
    mask = bundled_models()["street"] / "examples" / "high_street.png"
    generator = torch.Generator().manual_seed(0)
    image = pipeline(mask, steps=1, size=64, generator=generator).images[0]
    assert min(image.size) == 64
    with pytest.raises(UserError, match="trained for one step from noise"):
        pipeline(mask, steps=1, size=64, upsampler_steps=4)


def test_an_upsampler_that_sees_masks_is_refused_for_sketches() -> None:
    with pytest.raises(ModelError, match="its upsampler reads another condition than the base"):
        PITIPipeline.from_pretrained("sketch", upsampler="street")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_allows(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        tiny_pipeline().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


DAMAGED: list[tuple[str, tuple[str, ...], Any]] = [
    ("base/config.json", ("image_size",), "x"),
    ("base/config.json", ("image_size",), None),
    ("base/config.json", ("encoder_spec",), [1] * 50),
    ("base/config.json", ("encoder_spec", "layers"), 10**30),
    ("base/config.json", ("encoder_spec", "channels"), "x"),
    ("base/config.json", ("unet_spec", "channels"), [10**30, 10**30]),
    ("base/config.json", ("unet_spec", "layers"), 10**6),
    ("base/config.json", ("patch_size",), {}),
    ("scheduler/scheduler_config.json", ("num_train_timesteps",), 10**12),
    ("scheduler/scheduler_config.json", ("prediction_type",), None),
    ("scheduler/scheduler_config.json", ("num_train_timesteps",), "x"),
    ("scheduler/scheduler_config.json", ("_class_name",), "Evil"),
    ("condition.json", ("kind",), ["mask"]),
    ("condition.json", ("classes",), [1] * 50),
    ("model_index.json", ("defaults",), "x"),
    ("model_index.json", ("defaults",), {"steps": [1]}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "keys", "value"), DAMAGED)
def test_a_damaged_configuration_is_an_error_that_names_file(
    whole: Path, name: str, keys: tuple[str, ...], value: Any
) -> None:
    path = whole / name
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        with pytest.raises(UserError) as caught:
            PITIPipeline.from_pretrained(whole)
    finally:
        path.write_text(before, encoding="utf-8")
    said = str(caught.value)
    assert path.name in said or str(path.parent) in said or "defaults" in said or "Evil" in said
    if name == "base/config.json" and value != [10**30, 10**30]:
        assert keys[-1] in said


def test_a_configuration_of_fewer_weights_than_there_are_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    path = folder / "base/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["encoder_spec"]["layers"] += 1
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"weights of .* are not those of this configuration: 'encoder.blocks"):
        PITIPipeline.from_pretrained(folder)
