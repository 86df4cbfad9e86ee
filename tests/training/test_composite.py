"""Training on several conditions at once, from a recipe to a model that reads either part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.checkpoints.export import export_release
from piti.checkpoints.folder import ModelFolder
from piti.checkpoints.release import ExchangeError
from piti.conditions import Condition, ConditionError, SeveralCondition
from piti.data.problems import DataError
from piti.models import ConditionEncoder
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RunError, plan, read_recipe, train
from piti.training.build import build_condition, build_translator, known_condition
from tests.conftest import ROOT, tiny_recipe

PARTS = {"mask": {"kind": "mask"}, "sketch": {"kind": "sketch", "clip": 32}}


@pytest.fixture
def root(tiny_data: Path) -> Path:
    """The tiny pairs with the sketches of their cars; the last two have none."""
    (tiny_data / "sketches").mkdir()
    for path in sorted((tiny_data / "labels").iterdir())[:-2]:
        car = np.asarray(Image.open(path)) == 2
        Image.fromarray(255 * (car ^ np.roll(car, 1, 1)).astype(np.uint8)).save(tiny_data / "sketches" / path.name)
    return tiny_data


def recipe_of(root: Path, **changes: object) -> Recipe:
    data = {"root": str(root), "size": 16, "partial": True, "conditions": {"mask": "labels", "sketch": "sketches"}}
    condition = {"kind": "several", "parts": PARTS}
    return Recipe.parse(tiny_recipe(root, **{"condition": condition, "data": data, **changes}), "test")


def steps(count: int) -> list[dict[str, object]]:
    return [{"name": "joint", "steps": count, "lr": 1e-3}]


def test_classes_of_a_part_come_with_the_data(root: Path) -> None:
    recipe = recipe_of(root)
    assert known_condition(recipe) is None
    condition = build_condition(recipe)
    assert isinstance(condition, SeveralCondition)
    assert condition.channels == 4
    (root / "classes.json").unlink()
    with pytest.raises(ConditionError, match=r"classes\.json: cannot read"):
        build_condition(recipe)


def test_a_run_and_what_its_model_reads(root: Path, tmp_path: Path) -> None:
    model = train(recipe_of(root), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    condition = ModelFolder.open(model).condition
    assert condition.reads_like(build_condition(recipe_of(root)))
    pipeline = PITIPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    given = {"mask": root / "labels/scene-00.png", "sketch": root / "sketches/scene-00.png"}
    images = [
        pipeline(item, steps=2, guidance=2.0, generator=torch.Generator().manual_seed(0)).images[0]
        for item in (given, {"mask": given["mask"]}, {"sketch": given["sketch"]})
    ]
    assert len({image.tobytes() for image in images}) == 3
    with pytest.raises(ExchangeError, match=r"reads mask, sketch at once; .*only models of one can be exported"):
        export_release(model, tmp_path / "base.pt")
    assert not (tmp_path / "base.pt").exists()


def test_parts_are_dropped_in_training_by_the_conditions_rule(root: Path, tmp_path: Path) -> None:
    """What the loop hands to `dropped` over a run: a row of numbers a sample, each in [0, 1), all different."""
    seen: list[torch.Tensor] = []
    real = SeveralCondition.dropped

    def watched(self: Condition, encoded: torch.Tensor, uniform: torch.Tensor, p: float) -> torch.Tensor:
        assert p == 0.3
        seen.append(uniform)
        return real(self, encoded, uniform, p)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeveralCondition, "dropped", watched)
        train(recipe_of(root, stages=steps(5), condition_dropout=0.3), tmp_path / "run")
    numbers = torch.cat(seen)
    assert numbers.shape == (5 * 4, 3)
    assert len(numbers.unique()) == numbers.numel()
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_going_on_with_the_parts_in_another_order_is_refused(root: Path, tmp_path: Path) -> None:
    """The recipes differ in nothing but the order of keys; the network's channels would be exchanged."""
    train(recipe_of(root, stages=steps(3)), tmp_path / "run")
    turned = {"kind": "several", "parts": dict(reversed(PARTS.items()))}
    with pytest.raises(
        RunError, match="was trained with the parts mask, sketch, in this order, now they are sketch, mask"
    ):
        train(recipe_of(root, stages=steps(4), condition=turned), tmp_path / "run", resume=True)


def test_data_that_lacks_a_part(root: Path, tmp_path: Path) -> None:
    recipe = recipe_of(root)
    whole = recipe.model_copy(update={"data": recipe.data.model_copy(update={"partial": False})})
    with pytest.raises(DataError, match="2 images without a condition in sketches/"):
        train(whole, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_planned(root: Path, tmp_path: Path) -> None:
    """Without data, then with a data set in its layout; its encoder reads both parts."""
    recipe = read_recipe(ROOT / "recipes/street-several.yaml")
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run")}
    assert rows["condition"].startswith("several, ")
    small = {"data.size": 16, "model.image_size": 16, "model.encoder.size": 16, "data.partial": "true"}
    changes = [f"{name}={value}" for name, value in small.items()]
    recipe = read_recipe(ROOT / "recipes/street-several.yaml", [*changes, "prior=null", f"data.root={root}"])
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run")}
    assert rows["condition"] == "several, 4 channels"
    assert rows["data"] == "9 training and 3 validation pairs"
    encoder = build_translator(recipe, build_condition(recipe)).encoder
    assert isinstance(encoder, ConditionEncoder)
    assert encoder.spec.in_channels == 4
