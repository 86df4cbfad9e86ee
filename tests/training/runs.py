"""Recipes of small runs, and the weights of what they made."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from piti.training import Recipe
from tests.conftest import TINY_MODEL, tiny_recipe

WEIGHTS = "model/base/diffusion_pytorch_model.safetensors"
STAGES = [{"name": "adapt", "trains": ["encoder"], "steps": 3}, {"name": "joint", "steps": 5, "lr": 1e-3, "decay": 0.5}]


def recipe_of(root: Path, **changes: object) -> Recipe:
    return Recipe.parse(tiny_recipe(root, **changes), "test")


def shallow(**unet: object) -> dict[str, object]:
    """A network of one level."""
    return TINY_MODEL | {"unet": TINY_MODEL["unet"] | {"channels": [16], "attention": [True]} | unet}  # type: ignore[operator]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / WEIGHTS)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
