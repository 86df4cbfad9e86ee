"""Distillation of guidance alone: the student supports any steps and samplers, with one pass per step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.diffusion.distillation import StudentGrid, StudentSpec
from piti.diffusion.guidance import Guidance, conditioned, guided
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.editing.edit import edit
from piti.models import Translator
from piti.pipelines.options import OWN_SAMPLING, NetworkOptions
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.service.live import STEPS, live_sampling
from piti.training import Recipe, RecipeError, distillation_recipe, plan, train
from piti.training.build import build_condition, network_config, open_data
from piti.training.cost import cost_of
from piti.training.distill import DistillationObjective, teacher_of
from piti.training.preview import Validation
from tests.training.runs import a_teacher, short

WANTED = {"steps": None, "guidance": 3.0}
SMALL = short(40, every=20)
SAMPLING = {"sampler": "dpm++", "steps": 5, "guidance": 1.5}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(its data, a model of it with a sampling of its own)"""
    data, run = a_teacher(tmp_path_factory.mktemp("guided"))
    index = run / "model/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"defaults": SAMPLING}))
    return data, run


@pytest.fixture(scope="module")
def student(teacher: tuple[Path, Path]) -> Path:
    """A run that distilled its guidance."""
    data, run = teacher
    train(distillation_recipe(str(run), WANTED, data, SMALL), run.parent / "student")
    return run.parent / "student"


def judge_of(recipe: Recipe) -> tuple[Validation, Translator]:
    """How a distillation is judged on the way, and its teacher."""
    condition = build_condition(recipe)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    network = teacher_of(recipe, condition)
    validation = open_data(recipe, condition)[1]
    assert validation is not None
    judge = DistillationObjective(recipe, condition, None, accelerator, None, teacher=network).validator(validation)
    return judge, network


def test_its_target_is_the_guided_teacher(teacher: tuple[Path, Path]) -> None:
    """The x̂₀ of one guided prediction, as sampling computes it, at whatever timestep; and the teacher's variance."""
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, SMALL)
    condition = build_condition(recipe)
    network = teacher_of(recipe, condition)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    objective = DistillationObjective(recipe, condition, None, accelerator, None, teacher=network)
    side = network.image_size
    given = condition.encode(torch.zeros(3, 1, side, side, dtype=torch.uint8))
    x_t, k = torch.randn(3, 3, side, side), torch.tensor([0, 400, 999])
    target, told = objective.taught(given, x_t, k)
    assert torch.equal(target, objective.grid.target(objective.guess(objective.seen(given)), x_t, k))

    assert recipe.distillation is not None
    schedule, guidance = objective.schedule, recipe.distillation.guidance
    for row in range(3):  # as sampling goes: one timestep at a time
        tokens, t, x = network.encode(given[[row]]), k[[row]], x_t[[row]]
        both = tokens.joined(network.encode(condition.null(1, side, side)))
        eps = guided(conditioned(network, tokens, both, schedule), guidance, schedule)(x, t).eps
        expected = schedule.bounded(schedule.predict_x0(x, t, eps))
        torch.testing.assert_close(target[[row]], expected.to(target), rtol=0, atol=1e-5)
    torch.testing.assert_close(told, network(x_t, k, network.encode(given)).variance)


def test_it_learns_the_guidance(teacher: tuple[Path, Path], student: Path) -> None:
    """By the validation loss, which before the first step is the distance that guidance makes."""
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, SMALL)
    judge, network = judge_of(recipe)
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    losses = [judge.loss(network), *(row["validation_loss"] for row in rows if "validation_loss" in row)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.92 * losses[0]
    config = json.loads((student / "model/base/config.json").read_text())
    knows = StudentSpec.parse(config["student_spec"], "spec")
    assert knows == StudentSpec(timesteps=None, guidance=Guidance(w=3.0), teacher=str(run))


def test_it_is_sampled_as_its_teacher_in_half_the_passes(
    teacher: tuple[Path, Path], student: Path, tmp_path: Path
) -> None:
    mask = teacher[0] / "labels/scene-00.png"
    pipe = PITIPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    passes: list[int] = []
    assert isinstance(pipe.base, Translator)
    pipe.base.unet.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))
    pipe(mask)
    assert passes == [1] * SAMPLING["steps"]  # type: ignore[operator]
    own = OWN_SAMPLING.resolve(pipe).base
    assert (own.sampler, own.steps, own.guidance.w) == ("dpm++", 5, 3.0)
    passes.clear()
    pipe(mask, steps=3, sampler="ddpm")
    assert passes == [1] * 3
    passes.clear()
    pipe(mask, guidance=3.0)  # what it has in its weights
    assert passes == [1] * SAMPLING["steps"]  # type: ignore[operator]
    for other in (0.0, 1.0):
        with pytest.raises(UserError, match="a guidance of 3, which is part of its weights"):
            pipe(mask, guidance=other)
        with pytest.raises(UserError, match="a guidance of 3, which is part of its weights"):
            live_sampling(pipe, other).resolve(pipe)
    image = pipe(mask).images[0]
    with pytest.raises(UserError, match="edit with the model that it was distilled from"):
        edit(pipe, image, to=mask)
    assert live_sampling(pipe).base == NetworkOptions()  # its five steps are few enough
    pipe.defaults = pipe.defaults.model_copy(update={"base": pipe.defaults.base.model_copy(update={"steps": 20})})
    assert live_sampling(pipe).base == NetworkOptions(steps=STEPS, sampler="dpm++")

    run = CliRunner().invoke
    run(app, ["translate", str(mask), "--model", str(student), "--out", str(tmp_path / "a")], catch_exceptions=False)
    made = tmp_path / "a/scene-00_0.png"
    run(app, ["translate", "--like", str(made), "--out", str(tmp_path / "b")], catch_exceptions=False)
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(tmp_path / "b/scene-00_0.png")))


def test_the_plan_counts_two_passes_of_the_teacher(teacher: tuple[Path, Path]) -> None:
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, SMALL)
    assert recipe.name == "teacher-guided"
    config = network_config(recipe, build_condition(recipe))
    both, alone = (cost_of(one, config) for one in (recipe, recipe.model_copy(update={"distillation": None})))
    assert both.stages[0].flops == alone.stages[0].flops + 2 * both.forward
    rows = {row["what"]: row["plan"] for row in plan(recipe, run.parent / "other")}
    assert rows["teacher"].startswith("one evaluation per timestep, replacing the teacher's two")


def test_what_has_no_meaning_without_steps(teacher: tuple[Path, Path], student: Path) -> None:
    data, run = teacher
    with pytest.raises(SpecError, match="distils only the guidance, and its w is 0"):
        distillation_recipe(str(run), WANTED | {"guidance": 0.0}, data)
    with pytest.raises(SpecError, match=r"'distillation\.substeps' has no effect if 'steps' is 0"):
        distillation_recipe(str(run), WANTED | {"substeps": 2}, data)
    few = {"steps": 2, "substeps": 2, "guidance": 3.0}
    train(distillation_recipe(str(run), few, data, [*SMALL, "stages.0.steps=1"]), run.parent / "few")
    with pytest.raises(RecipeError, match="was distilled to a few steps, but this student needs all"):
        plan(distillation_recipe(str(run), WANTED, data, [f"distillation.student={run.parent / 'few'}"]), run / "none")
    after = distillation_recipe(str(run), few, data, [f"distillation.student={student}"])  # guidance first, then steps
    assert str(student) in plan(after, run / "none")[2]["plan"]


def test_a_grid_of_every_timestep() -> None:
    schedule = NoiseSchedule(ScheduleSpec(steps=20))
    grid = StudentGrid.of(schedule, None, 6)
    assert grid.timesteps == tuple(range(20))
    x, k = torch.randn(20, 1, 2, 2), torch.arange(20)
    assert torch.equal(grid.target(lambda x_t, t: x_t * t.view(-1, 1, 1, 1), x, k), x * k.view(-1, 1, 1, 1))
    assert StudentSpec.parse({"timesteps": None, "w": 1.0}, "spec").timesteps is None
    with pytest.raises(UserError):
        StudentSpec.parse({"timesteps": [], "w": 1.0}, "spec")


def test_one_substep_is_the_teachers_own_prediction() -> None:
    """What `target` leaves out for one step of the teacher: moving there, and what leads back."""
    schedule = NoiseSchedule(ScheduleSpec(steps=20))
    grid = StudentGrid.of(schedule, 5, 1)
    x, guess, k = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.arange(5)
    t, s = grid.walks[k, 0], grid.ends(k)
    around = grid.x0_of_step(grid.ddim_step(x, guess, t, s), x, t, s)
    torch.testing.assert_close(grid.target(lambda x_t, t: guess, x, k), around, rtol=1e-4, atol=1e-5)


def test_a_rule_that_remembers_begins_anew_at_every_level(teacher: tuple[Path, Path]) -> None:
    """Each step's target in the validation loss is that of a walk of its own (apg has a momentum)."""
    data, run = teacher
    few = {"steps": 2, "substeps": 2, "guidance": 3.0}
    recipe = distillation_recipe(str(run), few, data, [*SMALL, "distillation.guidance.kind=apg"])
    judge, network = judge_of(recipe)
    both = judge.loss(network)
    judge.levels = judge.levels[::-1]
    assert judge.loss(network) == pytest.approx(both, rel=1e-5)
