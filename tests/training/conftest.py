"""Shared fixtures for training upsamplers: a perceptual network, a base, and images of that base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, train
from tests.conftest import make_tiny_data, tiny_recipe


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A perceptual network of two small layers with random weights, in a file."""
    folder = tmp_path_factory.mktemp("features")
    spec = {"network": "squeezenet1_1", "layers": [1, 3]}
    torch.manual_seed(0)
    network = PerceptualNetwork(PerceptualSpec.parse(spec, "test"))
    save_file(network.state_dict(), folder / "features.safetensors")
    return spec | {"weights": str(folder / "features.safetensors")}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a base for masks, on data beside it."""
    folder = tmp_path_factory.mktemp("base")
    recipe = tiny_recipe(make_tiny_data(folder), stages=[{"name": "joint", "steps": 1}])
    train(Recipe.parse(recipe, "test"), folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def generated(base: Path) -> Path:
    """What a base made of the training masks."""
    pipeline = PITIPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    translate_files(
        pipeline,
        TranslationFiles([base.parent / "data/labels"], base.parent / "generated"),
        GenerationOptions.from_flat(steps=2, base_only=True),
        "base",
    )
    return base.parent / "generated"
