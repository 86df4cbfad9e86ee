"""Distillation to a few steps: training, the resulting model, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.diffusion.guidance import Guidance
from piti.editing.edit import edit
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RecipeError, distillation_recipe, plan, train
from piti.training.build import build_condition, build_translator, network_config
from piti.training.cost import cost_of
from piti.training.distill import teacher_of
from piti.training.init import begin
from tests.conftest import tiny_recipe
from tests.training.runs import a_teacher, short

WANTED = {"steps": 2, "substeps": 2, "guidance": 0.5}
SMALL = short(30)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(its data, a run of it)"""
    return a_teacher(tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="module")
def student(teacher: tuple[Path, Path]) -> Path:
    """A run that distilled it."""
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, SMALL)
    train(recipe, run.parent / "student")
    return run.parent / "student"


def test_it_comes_nearer_to_its_teacher(student: Path) -> None:
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    assert all(row["distillation"] > 0 for row in rows if "loss" in row)


def test_it_is_sampled_in_its_own_steps_and_no_others(
    teacher: tuple[Path, Path], student: Path, tmp_path: Path
) -> None:
    data, folder = teacher
    mask = data / "labels/scene-00.png"
    origin = re.escape(f"the model that it was distilled from, {folder}")
    pipe = PITIPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    steps: list[tuple[int, int]] = []
    first = pipe(mask, generator=torch.Generator().manual_seed(0), on_step=lambda k, n, x0: steps.append((k, n)))
    assert steps == [(1, 2), (2, 2)]
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"steps": 3}, f"distilled to 2 steps.*leave it out, or use {origin}"),
        ({"sampler": "ddpm"}, "distilled for 'ddim'"),
        ({"guidance": 1.0}, "a guidance of 0.5, which is part of its weights"),
        ({"guidance": 0.0}, "a guidance of 0.5, which is part of its weights"),
        (
            {"guidance": Guidance(kind="plain", w=0.5)},
            r"with the guidance normalized, 0 to 1, which .*, got plain, 0 to 1; leave rule and",
        ),
        ({"guidance": Guidance(w=0.5, interval=(0.2, 0.8))}, r"got normalized, 0\.2 to 0\.8"),
    )
    for given, said in refused:
        with pytest.raises(UserError, match=said):
            pipe(mask, **given)
    with pytest.raises(UserError, match=f"edit with {origin}"):
        edit(pipe, first.images[0], to=mask)

    run = CliRunner().invoke
    run(app, ["translate", str(mask), "--model", str(student), "--out", str(tmp_path / "a")], catch_exceptions=False)
    made = tmp_path / "a/scene-00_0.png"
    run(app, ["translate", "--like", str(made), "--out", str(tmp_path / "b")], catch_exceptions=False)
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(tmp_path / "b/scene-00_0.png")))


def test_an_adversary_finishes_a_student(teacher: tuple[Path, Path], student: Path, tmp_path: Path) -> None:
    data, run = teacher
    adversary = [
        f"distillation.student={student}",
        "stages.0.steps=2",
        "stages.0.adversarial={weight: 0.1, kind: hinge, noise: [0.0, 1.0], gradient_penalty: 0, after: 0}",
        "discriminator={channels: [8, 16], norm: spectral, conditional: false}",
    ]
    recipe = distillation_recipe(str(run), WANTED, data, [*SMALL, *adversary, "log_every=1"])
    assert str(student) in plan(recipe, tmp_path / "run")[2]["plan"]
    condition = build_condition(recipe)
    begun, known = build_translator(recipe, condition), PITIPipeline.from_pretrained(student).base
    begin(begun, recipe, condition)
    assert isinstance(known, Translator)
    assert all(torch.equal(one, known.state_dict()[key]) for key, one in begun.state_dict().items())
    assert any(
        not torch.equal(one, known.state_dict()[key]) for key, one in teacher_of(recipe, condition).state_dict().items()
    )
    train(recipe, tmp_path / "run")
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert {"distillation", "adversarial", "discriminator"} <= row.keys()


def test_an_adversary_judges_some_of_the_students_timesteps() -> None:
    adversary = "stages.0.adversarial={weight: 0.1, kind: hinge, gradient_penalty: 0, noise: [0.0, %s]}"
    for steps, high, share in ((4, 0.5, 0.5), (4, 0.1, 0.25), (2, 0.9, 0.5), (2, 1.0, 1.0)):
        recipe = distillation_recipe("street", {"steps": steps}, changes=[adversary % high])
        spec = recipe.stages[0].adversarial
        assert spec is not None
        assert recipe.stages[0].share_of(spec, recipe.schedule.steps, recipe.visited) == share
    said = r"'adversarial.noise' \[0.0, 0.5\] contains none of the samples' timesteps, 995 of 1000; widen it"
    with pytest.raises(SpecError, match=said):
        distillation_recipe("street", {"steps": 1}, changes=[adversary % 0.5])
    alone = distillation_recipe("street", {"steps": None}, changes=[adversary % 0.5])
    assert alone.visited is None


def test_a_discriminators_loss_is_the_mean_of_those_that_it_judges(
    teacher: tuple[Path, Path], student: Path, tmp_path: Path
) -> None:
    data, run = teacher
    adversary = [
        f"distillation.student={student}",
        "stages.0.steps=1",
        "stages.0.adversarial={weight: 0.1, kind: hinge, noise: [0.0, 0.9], gradient_penalty: 0, after: 0}",
        "discriminator={channels: [8, 16], norm: spectral, conditional: false}",
    ]
    recipe = distillation_recipe(str(run), WANTED, data, [*SMALL, *adversary, "log_every=1", "batch=24"])
    train(recipe, tmp_path / "run")
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert row["discriminator"] == pytest.approx(2, abs=0.3)  # a hinge that knows nothing yet; half of the samples


@pytest.mark.parametrize(("model", "folder"), [("street", "labels"), ("sketch", "sketches")])
def test_conditions_lie_in_the_usual_folder_of_their_kind(model: str, folder: str) -> None:
    assert distillation_recipe(model, WANTED).data.conditions == folder


def test_what_cannot_be_distilled(teacher: tuple[Path, Path], student: Path) -> None:
    data, run = teacher
    with pytest.raises(RecipeError, match="is already distilled"):
        distillation_recipe(str(student), WANTED, data)
    with pytest.raises(SpecError, match="guidance"):
        distillation_recipe(str(run), WANTED | {"guidance": -3}, data)
    for change, said in (
        ("stages.0.from_noise=0.5", "remove 'from_noise'"),
        ("condition_dropout=0.1", "set condition_dropout: 0"),
        ("init=null", "set it in 'init'"),
        ("distillation.steps=900", "900 × 2 steps of the teacher .*; set fewer 'steps' or 'substeps'"),
    ):
        with pytest.raises(SpecError, match=said):
            distillation_recipe(str(run), WANTED, data, [change])
    recipe = distillation_recipe(str(run), WANTED, data, [f"distillation.student={run}"])
    with pytest.raises(RecipeError, match=r"distillation.student: .* was not distilled.*made by piti distill"):
        plan(recipe, run.parent / "none")


def test_nothing_else_begins_from_a_student(teacher: tuple[Path, Path], student: Path) -> None:
    recipe = Recipe.parse(tiny_recipe(teacher[0], init=str(student)), "test")
    with pytest.raises(
        RecipeError, match=r"init: .* was distilled, so its UNet cannot serve as a prior; give the model .* init=.*"
    ):
        plan(recipe, student.parent / "none")


def test_the_plan_counts_the_teacher(teacher: tuple[Path, Path]) -> None:
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, SMALL)
    config = network_config(recipe, build_condition(recipe))
    both, alone = (cost_of(one, config) for one in (recipe, recipe.model_copy(update={"distillation": None})))
    assert both.stages[0].flops == alone.stages[0].flops + 2 * 2 * both.forward
    rows = {row["what"]: row["plan"] for row in plan(recipe, run.parent / "other")}
    assert rows["teacher"].startswith("2 steps, each replacing 2 of the teacher's with guidance normalized, w = 0.5")
    assert rows["precision"] == "float32"
