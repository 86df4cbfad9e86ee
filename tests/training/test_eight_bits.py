"""8-bit AdamW: with bitsandbytes if it is installed, otherwise a clear error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from piti.core.errors import UserError
from piti.training import train
from piti.training.recipe import Recipe
from piti.training.stages import OptimizerSpec, Stage, build_optimizer
from tests.conftest import tiny_recipe

SPEC = OptimizerSpec(kind="adamw8bit", weight_decay=0.1)


def test_without_bitsandbytes_nothing_begins(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    recipe = Recipe.parse(tiny_recipe(tiny_data, optimizer={"kind": "adamw8bit"}), "test")
    with pytest.raises(UserError, match=r"adamw8bit needs bitsandbytes, which is not installed; pip install 'piti\["):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_is_asked_for_with_the_settings_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    module, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = lambda parameters, **settings: asked.update(settings)  # type: ignore[attr-defined]
    module.optim = optim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    build_optimizer([torch.nn.Parameter(torch.zeros(2))], Stage(lr=1e-3), SPEC)
    assert asked == {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.1}


def test_a_run_goes_on_where_it_was(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    values = tiny_recipe(tiny_data, optimizer={"kind": "adamw8bit"}, checkpoint={"every": 1, "keep": 3})
    values["stages"] = [{"name": "joint", "steps": 1, "lr": 1e-3}]
    train(Recipe.parse(values, "test"), tmp_path / "cut")
    values["stages"] = [{"name": "joint", "steps": 2, "lr": 1e-3}]
    train(Recipe.parse(values, "test"), tmp_path / "cut", resume=True)
    train(Recipe.parse(values, "test"), tmp_path / "whole")
    name = "model/base/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
