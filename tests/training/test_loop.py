"""The training loop: frozen stages, divergence, and errors before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from piti.core.spec import SpecError
from piti.data import DataError
from piti.models import Translator
from piti.training import RunFolder, TrainingDiverged, TrainingInterrupted, train
from piti.training.build import build_condition, build_translator
from piti.training.loop import Trainer
from piti.training.monitor import Meter
from tests.training.runs import STAGES, recipe_of, shallow, weights


def test_a_run_leaves_a_model_metrics_and_previews(tiny_data: Path, tmp_path: Path) -> None:
    often = {"preview": {"every": 4, "count": 2, "steps": 2}, "checkpoint": {"every": 3, "keep": 2}}
    stages = [{"name": "joint", "steps": 8}]
    model = train(recipe_of(tiny_data, stages=stages, **often), tmp_path / "run")
    assert (model / "model_index.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8]
    assert rows[-1]["validation_loss"] > 0
    assert rows[0]["images_seen"] == 8
    assert {p.name for p in (tmp_path / "run/previews").iterdir()} == {"step-00000004.png", "step-00000008.png"}
    newest = RunFolder(tmp_path / "run").newest()
    assert newest is not None
    assert newest.name == "step-00000008"
    assert json.loads((newest / "run.json").read_text())["images_seen"] == 32
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2
    assert len({path.stat().st_mode for path in newest.iterdir()}) == 1  # safetensors' own are their owner's alone


def test_it_learns(tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "joint", "steps": 40, "lr": 1e-2}]
    train(recipe_of(tiny_data, stages=stages, log_every=8, model=shallow(), ema=0.0), tmp_path / "run")
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.8 * losses[0]


def test_adapting_leaves_the_unet_bit_identical_and_without_gradients(tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_data, stages=[{"name": "adapt", "trains": ["encoder"], "steps": 4, "lr": 1e-2}])
    before = build_translator(recipe, build_condition(recipe)).state_dict()
    seen = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: object) -> object:
        result = step(self, *args)  # type: ignore[arg-type]
        unet = self.translator.get_submodule("unet")
        seen.append([p.grad is None and not p.requires_grad for p in unet.parameters()])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        train(recipe, tmp_path / "run")
    assert len(seen) == 4
    assert all(all(row) for row in seen)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("unet."))
    assert not torch.equal(before["encoder.stem.out.weight"], after["encoder.stem.out.weight"])


def test_then_the_joint_stage_moves_the_unet(tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "adapt", "trains": ["encoder"], "steps": 2}, {"name": "joint", "steps": 2, "lr": 1e-2}]
    recipe = recipe_of(tiny_data, stages=stages)
    before = build_translator(recipe, build_condition(recipe)).state_dict()
    train(recipe, tmp_path / "run")
    assert not torch.equal(before["unet.conv_in.weight"], weights(tmp_path / "run")["unet.conv_in.weight"])


def test_frozen_networks_still_pass_gradients_on(tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_data, stages=[{"name": "adapt", "trains": ["encoder"], "steps": 4, "lr": 1e-2}], ema=0.0)
    train(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    norms = [row["grad_norm"] for row in rows if "loss" in row]
    assert len(norms) == 2
    assert min(norms) > 0


def test_mixed_precision_survives_saving_and_the_next_stage(tiny_data: Path, tmp_path: Path) -> None:
    """Matrix products run in bf16 at every step: after a checkpoint, and after the change of stage."""
    seen = []
    forward = Translator.forward

    def watched(self: Translator, *args: object) -> object:
        if self.training:
            seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Translator, "forward", watched)
        train(recipe_of(tiny_data, stages=STAGES, precision="bf16"), tmp_path / "run")
    assert len(seen) == 8
    assert all(seen)


def test_not_a_number_stops_the_run_and_names_step_and_files(tiny_data: Path, tmp_path: Path) -> None:
    real = Trainer.losses

    def poisoned(self: Trainer, *args: object) -> object:
        critique = real(self, *args)  # type: ignore[arg-type]
        return replace(critique, total=critique.total * float("nan")) if self.state.step == 4 else critique

    stages = [{"name": "joint", "steps": 5}]
    recipe = recipe_of(tiny_data, stages=stages, model=shallow(), checkpoint={"every": 3, "keep": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "losses", poisoned)
        with pytest.raises(
            TrainingDiverged,
            match=r"(?s)step 5: loss nan.*step-00000003.*images/scene-\d\d\.png, .*labels/scene-\d\d\.png",
        ):
            train(recipe, tmp_path / "run")
    checkpoint = load_file(RunFolder(tmp_path / "run").newest() / "model.safetensors")  # type: ignore[operator]
    assert all(torch.isfinite(value).all() for value in checkpoint.values())
    train(recipe, tmp_path / "run", resume=True)


def test_a_run_shorter_than_the_log_s_cadence_logs_its_last_step(tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_data, stages=[{"name": "joint", "steps": 1}], log_every=50, model=shallow())
    train(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1]


def test_saves_and_previews_take_no_time_of_steps(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("piti.training.monitor.time.perf_counter", lambda: now[0])
    meter = Meter(Console(quiet=True), recipe_of(tiny_data), None)  # of 4 images a step
    for seconds, between in ((2.0, 7.0), (2.0, 0.0)):
        now[0] += seconds
        total = meter.tick()
        with meter.aside():
            now[0] += between
    assert total == 9.0  # of training, as it is summed up
    assert meter.rate == 2.0


def test_a_stop_asked_for_before_the_last_step(tiny_data: Path, tmp_path: Path) -> None:
    real = Trainer.train_step

    def asks(self: Trainer, *args: object) -> object:
        self.stop.asked = self.state.step == 2
        return real(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", asks)
        with pytest.raises(TrainingInterrupted, match="saved at step 3"):
            train(recipe_of(tiny_data), tmp_path / "run")
    assert RunFolder(tmp_path / "run").newest().name == "step-00000003"  # type: ignore[union-attr]


def test_a_killed_loader_ends_the_run_in_words(tiny_data: Path, tmp_path: Path) -> None:
    """As the system kills one where memory is short."""
    real = Trainer.train_step

    def killing(self: Trainer, *args: Any) -> None:
        for worker in args[3]._loaded._workers:
            worker.kill()
        real(self, *args)

    recipe = recipe_of(tiny_data, model=shallow(), workers=1, stages=[{"name": "joint", "steps": 50}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", killing)
        with pytest.raises(DataError, match=r"has ended: DataLoader worker .*; use fewer if memory is short"):
            train(recipe, tmp_path / "run")


def test_bad_data_stops_before_anything_is_written(tiny_data: Path, tmp_path: Path) -> None:
    """Training and validation pairs are judged together."""
    Image.fromarray(np.full((32, 40), 77, np.uint8)).save(tiny_data / "labels/scene-11.png")
    (tiny_data / "images/scene-05.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"(?s)scene-11.*scene-05|scene-05.*scene-11"):
        train(recipe_of(tiny_data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_machine_that_went_down_left_in_the_metrics_is_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 1})
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 2, "lo\x00\x00\xff\xfe')
    folder.forget_after(2)
    assert folder.metrics.read_text() == '{"step": 1}\n'


def test_half_precision_needs_a_gpu(tiny_data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SpecError, match="fp16 needs a GPU"):
        train(recipe_of(tiny_data, precision="fp16"), tmp_path / "run")
