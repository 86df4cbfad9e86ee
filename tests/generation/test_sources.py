"""Inputs of translations: conditions of packed shards, by their manifest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from piti.conditions import Condition, GeometryCondition, TextCondition
from piti.generation.sources import TranslationFiles, sources_of
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from tests.shards import mask, png

FOLDERS = ("labels", "depth", "captions")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three photographs, each with a mask, depth and a caption."""
    for folder in ("images", *FOLDERS):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for k in range(3):
        (tmp_path / f"data/images/{k}.png").write_bytes(png(k))
        (tmp_path / f"data/labels/{k}.png").write_bytes(mask(k))
        np.savez(tmp_path / f"data/depth/{k}.npz", depth=np.full((10, 12), 1 + k, np.float32))
        (tmp_path / f"data/captions/{k}.txt").write_text(f"caption {k}")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("condition", "folder", "ending"),
    [(TextCondition(), "captions", "txt"), (GeometryCondition(), "depth", "depth.npz")],
    ids=["text", "depth"],
)
def test_conditions_of_shards_alone_and_beside_others(
    root: Path, tmp_path: Path, condition: Condition, folder: str, ending: str
) -> None:
    pipeline: Any = SimpleNamespace(condition=condition)
    for folders in ((folder,), FOLDERS):
        shards = tmp_path / "-".join(folders)
        pack_shards(PackJob(root, shards, conditions=folders))
        found, _ = sources_of(pipeline, TranslationFiles([shards], tmp_path / "out"))
        assert {stem: str(source).rpartition(":")[2] for stem, source in found.items()} == {
            f"{k}": f"{k}.{ending}" for k in range(3)
        }
        assert all(condition.take(source).numel() for source in found.values())
