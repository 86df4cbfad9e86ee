"""The job queue: one worker thread owns the networks; jobs can be cancelled at any time."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from piti.core.errors import UserError, spelled

T = TypeVar("T")

Draw = Callable[[Tensor], tuple[bytes, ...]]
"""x̂₀ [B, 3, H, W] in [-1, 1] to a small JPEG per image."""

PREVIEW_EVERY = 0.25
"""Smallest interval between previews in seconds."""
_JOIN = 5.0  # seconds that closing waits for the current step

log = logging.getLogger(__name__)


class Cancelled(UserError):
    """The job was cancelled."""


class TimeOver(UserError):
    """The job exceeded its time limit."""


class QueueFull(UserError):
    """The queue is full, by number or size of jobs."""


class JobFailed(UserError):
    """A job failed for an internal reason."""


class State(Enum):
    """State of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether this state is final."""
        return self not in (State.WAITING, State.RUNNING)


@dataclass(frozen=True)
class Snapshot:
    """Progress of a job."""

    state: State
    before: int = 0
    """Jobs before it, including the running one."""
    done: int = 0
    """Denoising steps."""
    total: int = 0
    seconds: float = 0.0
    """Seconds since it started to run."""
    preview: tuple[bytes, ...] = ()
    """A small JPEG preview of each image."""
    error: str = ""
    """Why it failed, in words."""

    def same(self, other: Snapshot | None) -> bool:
        """Whether only the time differs."""
        if other is None:
            return False
        ours, theirs = ((s.state, s.before, s.done, s.total, s.preview, s.error) for s in (self, other))
        return ours == theirs


class Job(Generic[T]):
    """Work that waits in a queue, runs, and ends. Its methods may be called from any thread."""

    def __init__(self, queue: Queue, work: Callable[[Job[T]], T], draw: Draw | None, size: int = 0) -> None:
        self.id = secrets.token_urlsafe(16)
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()  # so that waiting callers cannot cancel it by mistake
        self.size = size
        """Its size in bytes."""
        self._queue, self._work, self._draw = queue, work, draw
        self._state, self._error = State.WAITING, ""
        self._done = self._total = 0
        self._preview: tuple[bytes, ...] = ()
        self._began = self._ended = self._drawn = 0.0
        self._stop = threading.Event()

    # From outside

    def cancel(self) -> None:
        """Remove it from the queue if it is waiting; else it stops after the current step. Ended jobs are unchanged."""
        self._stop.set()
        if self._queue.forget(self):
            self._end(State.CANCELLED, Cancelled("the job was cancelled while waiting"))

    def snapshot(self) -> Snapshot:
        """Its current progress."""
        before = self._queue.before(self)  # first: if it starts meanwhile, it does not count as waiting for itself
        state = self._state
        ran = (self._ended or time.monotonic()) - self._began if self._began else 0.0
        before = before if state is State.WAITING else 0
        return Snapshot(state, before, self._done, self._total, ran, self._preview, self._error)

    async def changes(self, every: float = 0.25) -> AsyncIterator[Snapshot]:
        """The current snapshot, then each change, polled at this interval in seconds; the last when it has ended."""
        ended = asyncio.wrap_future(self.future)
        ended.add_done_callback(_seen)
        told: Snapshot | None = None
        while True:
            now = self.snapshot()
            if not now.same(told):
                yield now
                told = now
            if now.state.ended:
                return
            await asyncio.wait([ended], timeout=every)

    async def result(self) -> T:
        """The work's result, when it has ended. Raises its error, a UserError."""
        ended = asyncio.wrap_future(self.future)
        ended.add_done_callback(_seen)
        return await asyncio.shield(ended)  # a caller that stops waiting affects nothing else

    # From the work

    def stepped(self, done: int, total: int, x0: Tensor) -> None:
        """Record a denoising step, and previews at intervals; `on_step` for pipelines.

        x0: x̂₀ [B, 3, H, W] in [-1, 1]. Raises Cancelled or TimeOver if the work must stop.
        """
        self.check()
        self._done, self._total = done, total
        now = time.monotonic()
        if self._draw is not None and now - self._drawn >= PREVIEW_EVERY and done < total:
            self._preview, self._drawn = self._draw(x0), now

    def check(self) -> None:
        """Raises Cancelled or TimeOver if the work must stop."""
        if self._stop.is_set():
            raise Cancelled("the job was cancelled")
        most = self._queue.seconds
        if time.monotonic() - self._began > most:
            raise TimeOver(f"the job took longer than {most:g} s; use fewer images, fewer steps, or a smaller size")

    def run(self) -> None:
        """Do the work, in the queue's thread. Never raises."""
        self._began, self._state = time.monotonic(), State.RUNNING
        try:
            self.check()
            result = self._work(self)
        except Cancelled as error:
            self._end(State.CANCELLED, _bare(error))
        except UserError as error:
            self._end(State.FAILED, _bare(error))
        except Exception as error:  # noqa: BLE001  # whatever the networks raise, the next job is to run
            log.error("a job failed\n%s", traceback.format_exc())  # as text: a record would keep tensors alive
            what = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            self._end(State.FAILED, JobFailed(f"the model failed ({what}); try other settings, or a smaller size"))
        else:
            self._end(State.DONE, None, result)

    def _end(self, state: State, error: UserError | None, result: Any = None) -> None:
        """End the job, and release everything but the result."""
        self._ended = time.monotonic()
        self._error = "" if error is None else spelled(error.text(local=False))
        self._work, self._draw, self.size = _nothing, None, 0
        if error is not None:
            self._preview = ()
        self._state = state
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def _nothing(job: Job[Any]) -> Any:
    raise AssertionError("the job has ended")


def _bare(error: UserError) -> UserError:
    """The error without its traceback, whose frames hold tensors."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _seen(future: asyncio.Future[Any]) -> None:
    """Prevent asyncio's warning about an error that was never retrieved."""
    if not future.cancelled():
        future.exception()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context or decorated function, the calling thread computes on one core; others are unaffected.

    For all computations outside the queue's thread. With two threads that each use all cores, OpenMP has more threads
    than cores and stops busy waiting, so that each takes a quarter longer.
    """
    torch.get_num_threads()  # else the first operation of a thread would reset its number
    with _pools().limit(limits=1, user_api="openmp"):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


class Queue:
    """A worker thread that runs jobs in order of submission.

    waiting: largest number of waiting jobs; seconds: time limit of a job; most_bytes: largest total size, except for a
    single job.
    """

    def __init__(self, waiting: int = 32, seconds: float = 120.0, most_bytes: int | None = None) -> None:
        self.waiting, self.seconds, self.most_bytes = waiting, seconds, most_bytes
        self._jobs: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="piti-studio", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job[T]], T], draw: Draw | None = None, size: int = 0) -> Job[T]:
        """Append a job. work: called with it; passes its `stepped` to a pipeline. draw: creates previews.

        size: bytes held until it ends.

        Raises QueueFull.
        """
        job = Job(self, work, draw, size)
        with self._changed:
            if self._closed:
                raise Cancelled("the studio is closing; start it again")
            if len(self._jobs) + (self._running is not None) > self.waiting:
                raise QueueFull(f"{len(self._jobs)} jobs are already waiting, the most allowed; try again in a minute")
            held = self._held()
            if self.most_bytes is not None and held and held + size > self.most_bytes:
                raise QueueFull(f"waiting jobs already hold {held // 2**20} MiB of images; try again in a minute")
            self._jobs.append(job)
            self._changed.notify()
        return job

    def done(self, work: Callable[[], T]) -> T:
        """Call a function in the worker thread with this thread's context, and wait for its result or error.

        Raises QueueFull, and Cancelled if the queue is closed before its turn.
        """
        told: Future[T] = Future()
        context = copy_context()  # which determines the spelling of options in errors

        def run(_: Job[None]) -> None:
            try:
                told.set_result(context.run(work))
            except BaseException as error:  # noqa: BLE001 (raised again by whoever waits)
                told.set_exception(error)

        self.submit(run).future.result()
        return told.result()

    def __len__(self) -> int:
        """Number of waiting and running jobs."""
        with self._changed:
            return len(self._jobs) + (self._running is not None)

    @property
    def held(self) -> int:
        """Total size of waiting and running jobs in bytes."""
        with self._changed:
            return self._held()

    def _held(self) -> int:
        running = [self._running] if self._running is not None else []
        return sum(job.size for job in (*self._jobs, *running))

    def before(self, job: Job[Any]) -> int:
        """Number of jobs before this one; 0 if it is not waiting."""
        with self._changed:
            place = next((k for k, other in enumerate(self._jobs) if other is job), None)
            return 0 if place is None else place + (self._running is not None)

    def forget(self, job: Job[Any]) -> bool:
        """Remove a waiting job; returns whether it was waiting."""
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def close(self, wait: bool = True) -> None:
        """Cancel all jobs, and accept no more. wait: for the current step, a few seconds at most."""
        with self._changed:
            self._closed = True
            every = [*self._jobs, *([self._running] if self._running is not None else [])]
            self._changed.notify()
        for job in every:
            job.cancel()
        if wait and self._thread is not threading.current_thread():
            self._thread.join(_JOIN)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                job = self._running = self._jobs.popleft()
            job.run()
            del job  # do not keep an ended job until the next one
