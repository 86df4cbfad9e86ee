"""Descriptions of the served models."""

from __future__ import annotations

from typing import Any

import pytest

from piti.diffusion.distillation import StudentSpec
from piti.diffusion.guidance import Guidance
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.service.models import described
from piti.studio.service.schema import Limits
from tests.evaluation.seen import NOISELESS, baseline_pipeline
from tests.pipelines.test_pipeline import tiny_pipeline


def told(pipeline: Any) -> tuple[int, list[str], bool]:
    info = described("any", pipeline, Limits())
    return len(info.samplers), info.fixed, info.edits


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (None, (5, [], True)),
        (StudentSpec(timesteps=(1, 5), guidance=Guidance(w=2.0)), (1, ["guidance", "steps", "sampler"], False)),
        (StudentSpec(timesteps=None, guidance=Guidance(w=2.0)), (5, ["guidance"], False)),
    ],
)
def test_what_a_student_does_not_take_is_not_offered(student: StudentSpec | None, said: tuple[Any, ...]) -> None:
    pipeline: Any = tiny_pipeline()
    pipeline.base.student = student
    assert told(pipeline) == said


def test_a_prior_edits_nothing_here() -> None:
    """An edit is asked for with a picture of what is to be shown, which a prior does not read."""
    assert told(PITIPipeline.from_pretrained("scenes-prior"))[-1] is False


def test_a_baseline_takes_no_settings_and_edits_nothing() -> None:
    assert told(baseline_pipeline(NOISELESS)) == (0, ["guidance", "steps", "sampler"], False)
