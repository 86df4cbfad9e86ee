"""Recipes of small upsamplers, and their runs' logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from piti.training import Recipe
from tests.conftest import tiny_recipe

MODEL = {
    "image_size": 32,
    "low_res": 16,
    "patch_size": 2,
    "encoder": None,
    "unet": {"channels": [16, 32], "attention": [False, False], "layers": 1, "token_width": None, "norm_groups": 8},
}
LOSSES = {"perceptual": {"weight": 0.01, "after": 0}, "adversarial": {"weight": 0.1, "after": 2, "noise": [0.0, 0.75]}}
STAGE = {"name": "upsample", "trains": ["unet"], "steps": 6, "lr": 1e-3, **LOSSES}
PLAIN = {"name": "diffusion", "trains": ["unet"], "steps": 3}
WEIGHTS = "model/upsampler/diffusion_pytorch_model.safetensors"


def upsampler_recipe(root: Path, features: dict[str, Any], **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": MODEL,
        "condition": {"kind": "none"},
        "data": {"root": str(root), "size": 32, "crop_scale": [1.0, 1.0]},
        "perceptual": features,
        "discriminator": {"channels": [4, 8]},
        "stages": [STAGE],
        "condition_dropout": 0.0,
    }
    return Recipe.parse(tiny_recipe(root, **(values | changes)), "test")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
