"""A network trained as a rectified flow: training, saving, sampling, editing, distillation, incompatible models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from piti.core.errors import UserError
from piti.diffusion.schedulers import spec_of
from piti.editing.edit import edit
from piti.editing.options import EditSettings
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, distillation_recipe, train
from tests.conftest import TINY_MODEL, tiny_recipe
from tests.training.runs import short

FLOW = {"betas": "flow", "prediction": "flow_prediction", "shift": 3.0}


@pytest.fixture
def flow_run(tiny_data: Path, tmp_path: Path) -> Path:
    """A run of two steps."""
    stages = [{"name": "joint", "steps": 2, "lr": 1e-3}]
    model = TINY_MODEL | {"learned_variance": False}
    recipe = Recipe.parse(tiny_recipe(tiny_data, model=model, schedule=FLOW, stages=stages), "test")
    train(recipe, tmp_path / "run")
    return tmp_path / "run"


def test_it_is_saved_with_its_flow_and_sampled(flow_run: Path, tiny_data: Path) -> None:
    config = json.loads((flow_run / "model/base/config.json").read_text(encoding="utf-8"))
    assert (config["flow_shift"], config["steps"]) == (3.0, 1000)
    pipe = PITIPipeline.from_pretrained(flow_run)
    pipe.set_progress_bar_config(disable=True)
    label = sorted((tiny_data / "labels").glob("*.png"))[0]
    images = [pipe(label, steps=2, sampler=name, size=16).images[0] for name in ("dpm++", "ddim", "ddpm")]
    assert len({image.tobytes() for image in images}) == 3
    (points,) = pipe(label, steps=2, size=16, output_type="pt").images
    assert (points.min() >= 0, points.max() <= 1) == (True, True)  # though x̂₀ has no bounds on the way


def test_another_schedule_is_refused(flow_run: Path) -> None:
    pipe: Any = PITIPipeline.from_pretrained(flow_run)
    with pytest.raises(UserError, match="differs from the noise schedule that the network was trained with"):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)
    with pytest.raises(UserError, match="differs from the noise schedule"):
        pipe.scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    other = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    with pytest.raises(UserError, match="the base learned a flow of 1000 steps, shift 3, and its scheduler is of no"):
        PITIPipeline(pipe.base, other, pipe.condition)
    assert spec_of(cast(Any, pipe.scheduler)).shift == 3.0
    euler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)  # of the same flow, which its settings say otherwise
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler: unsupported scheduler"):
        pipe.scheduler = euler
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler: unsupported scheduler"):
        PITIPipeline.from_pretrained(flow_run, scheduler=euler)


def test_it_is_distilled_and_edited(flow_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    pipe = PITIPipeline.from_pretrained(flow_run)
    pipe.set_progress_bar_config(disable=True)
    (first, second), photograph = sorted((tiny_data / "labels").glob("*.png"))[:2], Image.new("RGB", (40, 32), "gray")
    made = edit(pipe, photograph, second, first, settings=EditSettings.from_flat(steps=4)).images[0]
    assert made.size == (20, 16)
    assert np.asarray(made).std() > 0
    recipe = distillation_recipe(str(flow_run), {"steps": 2, "substeps": 2, "guidance": 0.5}, tiny_data, short(2))
    train(recipe, tmp_path / "student")
    student = PITIPipeline.from_pretrained(tmp_path / "student")
    student.set_progress_bar_config(disable=True)
    assert student.base.config["flow_shift"] == 3.0
    assert student(first, square=True).images[0].size == (16, 16)
