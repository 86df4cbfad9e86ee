"""Training on shards: as with a folder, counted, resumed bit-identically."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from piti.data.problems import DataError
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from piti.training import Recipe, TrainingInterrupted, train
from piti.training.loop import Trainer
from piti.training.plan import plan
from piti.training.recipe import RecipeError
from tests.conftest import tiny_recipe

WEIGHTS = "model/base/diffusion_pytorch_model.safetensors"


@pytest.fixture
def packed(tiny_data, tmp_path) -> Path:
    pack_shards(PackJob(tiny_data, tmp_path / "packed", samples=2))
    return tmp_path / "packed"


def recipe_of(*shards: object, data: dict | None = None, **changes: object) -> Recipe:
    values = tiny_recipe(Path(), **changes)
    root = Path(str(shards[0])).parent
    given = {"size": 16, "shards": list(map(str, shards)), "shard_cache": str(root / "cache"), "shuffle_shards": 2}
    return Recipe.parse(values | {"data": given | (data or {})}, "test")


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_shards_with_classes_of_their_manifest(packed, tmp_path) -> None:
    recipe = recipe_of(packed)
    assert "9 training and 3 validation pairs" in str(plan(recipe, tmp_path / "run"))
    model = train(recipe, tmp_path / "run")
    assert (model / "model_index.json").is_file()
    rows = [row for row in rows_of(tmp_path / "run") if "loss" in row]
    assert rows
    assert all(0 <= row["waiting"] <= 1 for row in rows)
    assert not any("skipped" in row for row in rows)
    assert not (tmp_path / "run" / "skipped.txt").exists()


def test_a_root_beside_shards_is_said_to_give_its_classes_alone(packed, tiny_data, tmp_path) -> None:
    both = recipe_of(packed, data={"root": str(tiny_data)})
    said = {row["what"]: row["plan"] for row in plan(both, tmp_path / "run")}["shows"]
    assert f"data.root {tiny_data}: only its classes are used, since the pairs come from data.shards" in said


def test_interrupted_and_resumed_is_as_if_never_stopped(packed, tmp_path, monkeypatch) -> None:
    stages = [{"name": "joint", "steps": 5, "lr": 1e-3}]
    recipe = recipe_of(packed, stages=stages)
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        report = Trainer.report

        def stop(self, *args) -> None:
            report(self, *args)
            self.stop.asked = self.state.step == 3

        patch.setattr(Trainer, "report", stop)
        with pytest.raises(TrainingInterrupted):
            train(recipe, tmp_path / "run")
    moved = packed.rename(packed.with_name("moved"))
    train(recipe_of(moved, stages=stages, workers=1), tmp_path / "run", resume=True)
    one, other = (load_file(tmp_path / run / WEIGHTS) for run in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("manifest", [True, False])
def test_shards_that_were_packed_anew_are_noted(packed, tiny_data, tmp_path, manifest) -> None:
    def resumed(folder: Path, steps: int) -> str:
        given = [folder] if manifest else sorted(folder.glob("*.tar"))
        condition = {"kind": "mask", "classes": str(tiny_data / "classes.json")}
        recipe = recipe_of(*given, stages=[{"name": "joint", "steps": steps}], condition=condition)
        planned, said = str(plan(recipe, tmp_path / "run")), io.StringIO()
        train(recipe, tmp_path / "run", resume=True, console=Console(file=said, width=200))
        assert (told in planned) == (told in said.getvalue())
        return said.getvalue()

    told = "the contents of training pairs, validation pairs have changed since step 1"
    resumed(packed, 1)
    assert "have changed" not in resumed(packed, 1)
    for split in ("train", "val"):
        keys = json.loads((tiny_data / "splits.json").read_text())[split]
        Image.open(path := tiny_data / f"images/{keys[0]}.png").rotate(180).save(path, compress_level=1)
    pack_shards(PackJob(tiny_data, packed, samples=2, overwrite=True))
    assert told in resumed(packed, 2)
    assert "have changed" not in resumed(packed, 3)


def test_bad_samples_are_counted_and_named(packed, tmp_path) -> None:
    tar = next(packed.glob("*train-000001.tar"))
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"IDAT", b"XXXX", 1))
    train(recipe_of(packed, workers=1, stages=[{"name": "joint", "steps": 8}]), tmp_path / "run")
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(lines) == 1
    assert f"{tar.name}: scene-02: " in lines[0]
    assert max(row.get("skipped", 0) for row in rows_of(tmp_path / "run")) >= 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(packed, tmp_path, workers) -> None:
    for tar in packed.glob("*train*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"XXXX", 1))
    with pytest.raises(DataError, match=r"(?s)samples cannot be used, more than data.max_bad = 0.01"):
        train(recipe_of(packed, workers=workers), tmp_path / "run")


def test_classes_have_to_be_somewhere(packed, tiny_data, tmp_path) -> None:
    tars = sorted(packed.glob("*train*.tar"))
    with pytest.raises(RecipeError, match=r"condition.classes: the shards have no manifest"):
        train(recipe_of(*tars), tmp_path / "run")
    with pytest.raises(DataError, match=r"^pipe:false: cannot be downloaded .*exit code 1"):
        train(recipe_of("pipe:false", data={"shard_cache": str(tmp_path / "cache")}), tmp_path / "run")
    with pytest.raises(DataError, match=r"^pipe:echo hello: not a tar archive"):
        train(recipe_of("pipe:echo hello", data={"shard_cache": str(tmp_path / "cache")}), tmp_path / "run")
    named = {"kind": "mask", "classes": str(tiny_data / "classes.json")}
    rows = plan(recipe_of(*tars, condition=named), tmp_path / "run")
    assert any("8 training and 1 validation" in row["plan"] for row in rows)
