"""Shared fixtures of evaluation: the referee's functions, real weights if present, small folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.core.images import save_png
from piti.evaluation import evaluate, judges
from tests.conftest import SHARED
from tests.evaluation.seen import Colours, NearestColour
from tests.pipelines.test_pipeline import tiny_pipeline


@pytest.fixture
def judge(referee: Path) -> ModuleType:
    """The referee's functions."""
    spec = importlib.util.spec_from_file_location("referee", referee)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def squeezenet() -> Path:
    """SqueezeNet 1.1 trained on ImageNet."""
    path = SHARED / "weights" / "squeezenet1_1_features.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name}: not present at {path} (set PITI_SHARED)")
    return path


@pytest.fixture
def colour_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for, networks that see colours."""
    monkeypatch.setattr(evaluate, "open_features", lambda name, device: Colours(name))
    monkeypatch.setattr(judges, "open_segmenter", lambda source, device: NearestColour())


@pytest.fixture
def condition(tiny_data: Path) -> MaskCondition:
    return MaskCondition(ClassTable.read(tiny_data / "classes.json"))


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"automobile": "car"}))
    return path


@pytest.fixture
def noisy(tiny_data: Path, tmp_path: Path) -> Path:
    """Two samples of every photograph, with noise."""
    folder, rng = tmp_path / "noisy", np.random.default_rng(1)
    for path in sorted((tiny_data / "images").iterdir()):
        pixels = np.asarray(Image.open(path), np.int64)
        for k in range(2):
            noise = rng.integers(-60, 120, pixels.shape)
            save_png(Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)), folder / f"{path.stem}_{k}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"
