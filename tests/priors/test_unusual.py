"""Folders of diffusers that are real and yet not as most are: averages, variants alone, quantised weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from piti.checkpoints.prior_folders import recognised
from piti.checkpoints.priors import import_prior
from piti.core.errors import UserError
from piti.models.foreign import foreign_network
from tests.priors import tiny
from tests.priors.test_import import changed

pytest.importorskip("transformers")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(stable: tiny.Imported, tmp_path: Path) -> Path:
    return shutil.copytree(stable.folder, tmp_path / "diffusers")


def renamed(path: Path, name: str, dtype: torch.dtype) -> None:
    """Write weights in another type, under another name."""
    tensors = {key: tensor.to(dtype) if tensor.ndim > 1 else tensor for key, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path.with_name(name), {"format": "pt"})


def test_the_average_of_a_training_by_diffusers_is_imported(copied: Path, tmp_path: Path) -> None:
    """Its `EMAModel` writes what it is itself into the network's configuration."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    unet = UNet2DConditionModel.from_pretrained(copied / "unet")
    average: Any = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    average.save_pretrained(copied / "unet")
    assert "optimization_step" in json.loads((copied / "unet/config.json").read_text(encoding="utf-8"))
    import_prior(copied, tmp_path / "model")
    written = json.loads((tmp_path / "model/base/config.json").read_text(encoding="utf-8"))
    assert "optimization_step" not in written["unet_config"]


def test_switches_that_this_diffusers_does_not_know_are_left_out_where_they_are_off(copied: Path) -> None:
    changed(copied / "unet/config.json", later=None, later_too=False)
    foreign_network(recognised(copied).unet)
    changed(copied / "unet/config.json", later="on")
    with pytest.raises(UserError, match=r"unet/config\.json: 'later' is 'on', which UNet2DConditionModel .*; install"):
        recognised(copied).network()
