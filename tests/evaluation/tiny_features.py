"""Images, and tiny feature networks in files and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from piti.models.perceptual import NETWORKS

CPU = torch.device("cpu")


def picture(width: int = 50, height: int = 36, seed: int = 0) -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(folder: Path, count: int, size: tuple[int, int] = (20, 16)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        picture(*size, seed=k).save(path)
    return paths


def squeezenet_file(path: Path, scale: float = 0.05) -> Path:
    """Random weights."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"features": nn.Sequential(*NETWORKS["squeezenet1_1"].features())})
    save_file({key: value * scale for key, value in layers.state_dict().items()}, path)
    return path


def clip_config(**values: Any) -> dict[str, Any]:
    return {
        "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
        | {"intermediate_size": 8, "max_position_embeddings": 8},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 16, "image_size": 32, "patch_size": 8, "projection_dim": 12}
        | values,
        "projection_dim": 12,
    }


def clip_folder(folder: Path, **values: Any) -> Any:
    """A tiny CLIP, as transformers saves one; the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**clip_config(**values))).eval()
    model.save_pretrained(folder)
    side = model.config.vision_config.image_size
    prepared = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared | {"image_mean": [0.4, 0.5, 0.6]}))
    return model


def dinov2_folder(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=28
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(folder)
    return model
