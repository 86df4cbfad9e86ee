"""A workspace for tables, and weights of a feature network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.reproduction import rows
from piti.reproduction.runs import Judges, Workspace
from tests.conftest import tiny_recipe


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a judge."""
    torch.manual_seed(0)
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1"))
    path = tmp_path_factory.mktemp("judge") / "squeezenet.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


@pytest.fixture
def workspace(tiny_data: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A place to work, with one tiny recipe, and its judge's weights."""
    recipes = tmp_path / "recipes"
    (recipes / "small").mkdir(parents=True)
    recipe = tiny_recipe(tiny_data, checkpoint={"every": 3, "keep": 2})
    (recipes / "small/tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(rows, "FOLDER", recipes)
    return Workspace(
        tmp_path / "out", {"camvid": tiny_data}, Judges((str(weights),), bootstrap=0), seeds=1, device="cpu"
    )
