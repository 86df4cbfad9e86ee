"""Live previews: their sampling, their noise, and precedence of the newest request."""

from __future__ import annotations

import asyncio
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.pipelines.options import OWN_SAMPLING
from piti.studio.service.jobs import Cancelled
from piti.studio.service.live import STEPS, Newest, live_batch, live_sampling
from piti.studio.service.service import Studio
from tests.engine.test_engine import one_step_cascade
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask
from tests.studio.tiny import ids, painted


def test_few_steps_enlarged_where_one_step_does_it() -> None:
    slow = one_step_cascade()
    thirty = OWN_SAMPLING.from_flat({"steps": 30, "guidance": 2.0, "sampler": "ddim"})
    slow.defaults = thirty.networks_over(slow.defaults)
    sampling = live_sampling(slow, 0.5).resolve(slow)
    assert (sampling.base.steps, sampling.base.sampler, sampling.base.guidance.w) == (STEPS, "dpm++", 0.5)
    assert sampling.steps == STEPS + 1
    assert live_sampling(slow).resolve(slow).base.guidance.w == 2.0
    fast = tiny_cascade()  # of two steps, and several of its upsampler
    sampling = live_sampling(fast).resolve(fast)
    assert sampling.base == OWN_SAMPLING.resolve(fast).base
    assert sampling.upsampler is None


def test_a_student_takes_its_own_steps() -> None:
    student: Any = SimpleNamespace(base=object(), upsampler=None)  # as any base whose steps nobody chooses
    assert live_sampling(student, 3.0) == OWN_SAMPLING


def test_the_noise_is_the_same_for_every_drawing() -> None:
    pipeline = tiny_cascade()
    states = [live_batch(pipeline, pipeline.prepare(mask(k)), 7).generators[0].get_state() for k in (1, 2)]
    assert states[0].equal(states[1])


def test_a_preview(studio: Studio) -> None:
    raw = studio.read_condition("mask", painted(ids()), "drawing")

    async def made() -> list[Any]:
        return [await studio.live("mask", raw, seed).result() for seed in (0, 0, 1)]

    first, same, other = asyncio.run(made())
    assert first.jpeg == same.jpeg != other.jpeg
    assert np.asarray(Image.open(BytesIO(first.jpeg))).shape == (16, 21, 3)
    assert 0 < first.steps <= STEPS


def test_the_newest_request_wins() -> None:
    newest, cancelled = Newest(), list[str]()
    job: Any = SimpleNamespace(cancel=lambda: cancelled.append("first"))
    with newest.turn("one") as first:
        assert first.holds(job) is job
        with newest.turn("two"):
            first.check()  # another visitor's
        with newest.turn("one") as second:
            assert cancelled == ["first"]
            with pytest.raises(Cancelled):
                first.check()
            second.check()
        late: Any = SimpleNamespace(cancel=lambda: cancelled.append("late"))
        with pytest.raises(Cancelled):
            first.holds(late)
        assert cancelled == ["first", "late"]
    assert newest._turns == {}


def test_a_job_that_is_handed_in_when_nobody_waits_any_more_ends_at_once() -> None:
    """As when photographs are asked for while a thread prepares a preview."""
    cancelled = list[str]()
    job: Any = SimpleNamespace(cancel=lambda: cancelled.append("late"))
    with Newest().turn("one") as turn:
        pass
    with pytest.raises(Cancelled):
        turn.holds(job)
    assert cancelled == ["late"]
