"""Live previews: one quick picture of a drawing on its way, and of every visitor the newest request alone."""

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
"""Of a live preview, at most; a model that was distilled takes its own."""
PAUSE = 0.08
"""Seconds without a further stroke before a preview begins."""


@dataclass(frozen=True)
class LivePreview:
    """A quick picture."""

    jpeg: bytes
    steps: int
    """Of both networks."""
    seconds: float


def live_sampling(pipeline: PITIPipeline, guidance: float | None = None) -> SamplingOptions:
    """How a preview is sampled: in few steps, and enlarged where one step does that. guidance: w, none: the model's."""
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
    """One picture whose noise follows from the seed alone: what is not repainted changes little."""
    generator = generator_for(seed, "live", device=draws_on(pipeline.device))
    return Batch([prepared], [0], [generator])


@dataclass
class Turn:
    """A visitor's request, from any thread."""

    outdated: bool = False
    """Whether the visitor has made a newer one, or waits for this one no longer."""
    job: Job[Any] | None = None

    def holds(self, job: Job[T]) -> Job[T]:
        """The same job, which is cancelled when the turn ends. Raises Cancelled where it has ended."""
        self.job = job
        if self.outdated:
            job.cancel()
        self.check()
        return job

    def check(self) -> None:
        """Raises Cancelled where the turn has ended."""
        if self.outdated:
            raise Cancelled("there is a newer drawing")

    def end(self) -> None:
        """Cancel its job, also one that another thread hands in only now; an ended job stays as it is."""
        self.outdated = True
        if self.job is not None:
            self.job.cancel()


@dataclass
class Newest:
    """The newest request of every visitor. May be used from any thread."""

    _turns: dict[str, Turn] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def turn(self, visitor: str) -> Iterator[Turn]:
        """A visitor's newest request, while it is worked on; the one before it is outdated, and its job cancelled."""
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
