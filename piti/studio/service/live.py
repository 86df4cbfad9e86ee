"""Live previews: one quick image of a drawing, for only the newest request of each visitor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from piti.core.seeding import draws_on, generator_for
from piti.models import Translator
from piti.pipelines.cascade import Batch, Prepared
from piti.pipelines.options import NetworkOptions, SamplingOptions
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.service.jobs import Cancelled, Job

T = TypeVar("T")

STEPS = 8
"""Largest number of steps of a live preview; distilled models use their own."""
PAUSE = 0.08
"""Seconds without a new stroke before a preview starts."""


@dataclass(frozen=True)
class LivePreview:
    """A quick image."""

    jpeg: bytes
    steps: int
    """Steps of both networks."""
    seconds: float


def live_sampling(pipeline: PITIPipeline, guidance: float | None = None) -> SamplingOptions:
    """Sampling options of a preview: few steps, with a one-step upsampler only. guidance: w; None: the model's."""
    base, upsampler = pipeline.base, pipeline.upsampler
    rough = upsampler is not None and not upsampler.one_step
    if not isinstance(base, Translator):
        return SamplingOptions(base_only=rough)
    usual = SamplingOptions().resolve(pipeline).base
    few = pipeline.base_network().steps(usual) <= STEPS  # type: ignore[arg-type]
    own = base.student is not None and base.student.timesteps is not None
    fewer = {} if few or own else {"steps": STEPS, "sampler": "dpm++"}
    rule = None if guidance is None else usual.guidance.of_strength(guidance)
    return SamplingOptions(base=NetworkOptions(guidance=rule, **fewer), base_only=rough)


def live_batch(pipeline: PITIPipeline, prepared: Prepared, seed: int) -> Batch:
    """A batch of one image with fixed noise, so that unchanged parts of the drawing change little."""
    generator = generator_for(seed, "live", device=draws_on(pipeline.device))
    return Batch([prepared], [0], [generator])


@dataclass
class Turn:
    """A visitor's request, usable from any thread."""

    outdated: bool = False
    """Whether it was replaced by a newer one or abandoned."""
    job: Job[Any] | None = None

    def holds(self, job: Job[T]) -> Job[T]:
        """Attach a job, which is cancelled when the turn ends. Raises Cancelled if it has ended."""
        self.job = job
        if self.outdated:
            job.cancel()
        self.check()
        return job

    def check(self) -> None:
        """Raises Cancelled if the turn has ended."""
        if self.outdated:
            raise Cancelled("there is a newer drawing")

    def end(self) -> None:
        """Cancel its job, also one that another thread attaches later; ended jobs are unchanged."""
        self.outdated = True
        if self.job is not None:
            self.job.cancel()


@dataclass
class Newest:
    """The newest request of every visitor. Thread-safe."""

    _turns: dict[str, Turn] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def turn(self, visitor: str) -> Iterator[Turn]:
        """Context of a visitor's newest request; the previous one is outdated, and its job cancelled."""
        turn = Turn()
        with self._lock:
            before, self._turns[visitor] = self._turns.get(visitor), turn
        if before is not None:
            before.end()
        try:
            yield turn
        finally:
            turn.end()
            with self._lock:
                if self._turns.get(visitor) is turn:
                    del self._turns[visitor]
