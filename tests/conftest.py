"""Shared fixtures: recorded tensors and real photographs if present, and small synthetic data."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

CHECKED = ["piti.conditions", "piti.data", "piti.models", "piti.diffusion", "piti.checkpoints", "piti.prepare.layouts"]
"""Packages whose signatures are checked at every call, shapes and types, where PITI_CHECK_SHAPES is set (`make
shapes`): it takes half of the time of these packages' tests."""
if os.environ.get("PITI_CHECK_SHAPES"):
    install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ["PITI_ENGINE"] = "torch"  # commands compile no networks, but for the tests of engines


def pytest_collection_finish() -> None:
    """What the imports made stays to the end, and every run's end collects garbage twice: it need not look there."""
    gc.collect()
    gc.freeze()


ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PITI_SHARED", ROOT.parent / "shared"))

TINY_CLASSES = {
    "classes": [
        {"id": 0, "name": "sky", "color": [128, 128, 128]},
        {"id": 1, "name": "road", "color": [128, 64, 128]},
        {"id": 2, "name": "car", "color": [64, 0, 128]},
    ],
    "ignore": 255,
}
TINY_MODEL = {
    "image_size": 16,
    "patch_size": 2,
    "encoder": {
        "size": 16,
        "channels": [8, 16, 16],
        "width": 16,
        "layers": 1,
        "heads": 2,
        "norm_groups": 4,
        "residuals": True,
    },
    "unet": {
        "channels": [16, 32],
        "layers": 1,
        "attention": [False, True],
        "head_dim": 8,
        "token_width": 16,
        "norm_groups": 8,
    },
}  # fmt: skip


BRIEF: dict[str, object] = {
    "preview": {"every": 99, "count": 1, "judged": 1, "steps": 1},
    "checkpoint": {"every": 99, "keep": 1},
}
"""Of a run that is looked at and saved at its end alone."""


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"{name}: not present at {folder} (set PITI_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded tensors of the released code."""
    return _shared("golden")


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Real street photographs with masks."""
    return _shared("data/camvid")


@pytest.fixture(scope="session")
def kitchen() -> Path:
    """Real RGB-D frames: photographs, 16-bit depth in millimetres, intrinsics."""
    return _shared("data/kitchen_rgbd")


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Archives of small photographs with soft edge maps and captions."""
    return _shared("data/scenes")


@pytest.fixture(scope="session")
def referee() -> Path:
    """The script that judges generated street scenes."""
    return _shared("tools/referee.py")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small inputs on which the package went wrong."""
    return _shared("cases")


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """See `make_tiny_data`."""
    return make_tiny_data(tmp_path)


def make_tiny_data(folder: Path) -> Path:
    """Twelve pairs in `folder/data`, 40 × 32: a road below a sky of a random height, with a car;
    photographs in flat colours.
    """
    rng = np.random.default_rng(0)
    root = folder / "data"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.json").write_text(json.dumps(TINY_CLASSES))
    colours = np.array([[120, 170, 230], [90, 90, 95], [200, 30, 40]], np.uint8)
    keys = [f"scene-{k:02d}" for k in range(12)]
    for key in keys:
        label = np.zeros((32, 40), np.uint8)
        label[rng.integers(10, 22) :] = 1
        left = rng.integers(0, 30)
        label[18:26, left : left + 8] = 2
        Image.fromarray(label).save(root / "labels" / f"{key}.png")
        Image.fromarray(colours[label]).save(root / "images" / f"{key}.png")
    (root / "splits.json").write_text(json.dumps({"train": keys[:9], "val": keys[9:]}))
    return root


def tiny_recipe(root: Path, **changes: object) -> dict[str, object]:
    """A recipe that trains in less than a second: of its time most goes into what is saved and shown."""
    values: dict[str, object] = {
        "name": "tiny",
        "model": TINY_MODEL,
        "data": {"root": str(root), "size": 16},
        "stages": [{"name": "joint", "steps": 4, "lr": 1e-3}],
        "batch": 4,
        "precision": "no",
        "workers": 0,
        "log_every": 2,
        **BRIEF,
    }
    return values | changes
