"""Recipes of small runs, and their weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from piti.training import Recipe, train
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


def a_teacher(folder: Path, steps: int = 20) -> tuple[Path, Path]:
    """(its data, a run of it): what is distilled."""
    import tests.conftest as shared

    data = shared.tiny_data.__wrapped__(folder)  # type: ignore[attr-defined]
    recipe = tiny_recipe(data, stages=[{"name": "joint", "steps": steps, "lr": 1e-3}], ema=0.5)
    train(Recipe.parse(recipe, "teacher"), folder / "teacher")
    return data, folder / "teacher"


def short(steps: int, lr: float = 1e-3, every: int = 10) -> list[str]:
    """What makes of a distillation one of a few small steps."""
    return [f"stages.0.steps={steps}", f"stages.0.lr={lr}", "stages.0.warmup=0", "batch=4", "precision=no", "workers=0",
            "ema=0.5", f"preview.every={every}", "preview.count=1", "checkpoint.every=99"]  # fmt: skip
