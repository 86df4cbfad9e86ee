"""The queue: order, positions, cancelling, time limits, failures, previews, and cleanup of finished jobs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import ThreadpoolController

from piti.core.errors import UserError
from piti.studio.service.jobs import (
    Cancelled,
    Job,
    JobFailed,
    Queue,
    QueueFull,
    Snapshot,
    State,
    TimeOver,
    one_thread,
)

X0 = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue(waiting=4, seconds=30)
    yield made
    made.close()


class Gate:
    """Work that is begun, and goes on when it may."""

    def __init__(self) -> None:
        self.begun, self.may = threading.Event(), threading.Event()

    def __call__(self, job: Job[str]) -> str:
        self.begun.set()
        while not self.may.is_set():
            job.stepped(1, 2, X0)
            time.sleep(0.002)
        return "made"


def result(job: Job) -> object:
    return asyncio.run(job.result())


def test_jobs_run_one_at_a_time_in_their_order(queue: Queue) -> None:
    gate, order = Gate(), []
    first = queue.submit(gate)
    others = [queue.submit(lambda job, k=k: order.append((k, threading.current_thread().name)) or k) for k in range(4)]
    gate.begun.wait()
    assert [job.snapshot().before for job in (first, *others)] == [0, 1, 2, 3, 4]
    assert first.snapshot().state is State.RUNNING
    with pytest.raises(QueueFull, match="4 jobs are already waiting"):
        queue.submit(gate)
    gate.may.set()
    assert [result(job) for job in others] == [0, 1, 2, 3]
    assert [k for k, _ in order] == [0, 1, 2, 3]
    assert len({name for _, name in order}) == 1
    assert result(first) == "made"


def test_a_waiting_job_leaves_at_once_and_a_running_one_at_its_next_step(queue: Queue) -> None:
    gate, never = Gate(), []
    running, waiting = queue.submit(gate), queue.submit(lambda job: never.append(1))
    last = queue.submit(lambda job: "last")
    gate.begun.wait()
    waiting.cancel()
    assert waiting.snapshot().state is State.CANCELLED
    assert last.snapshot().before == 1
    with pytest.raises(Cancelled):
        result(waiting)
    running.cancel()
    with pytest.raises(Cancelled):
        result(running)
    assert result(last) == "last"
    assert not never
    last.cancel()
    assert last.snapshot().state is State.DONE


def test_a_job_that_takes_too_long_is_stopped() -> None:
    queue = Queue(seconds=0.05)
    try:
        with pytest.raises(TimeOver, match=r"longer than 0\.05 s"):
            result(queue.submit(Gate()))
        assert result(queue.submit(lambda job: 1)) == 1
    finally:
        queue.close()


def test_failures_do_not_end_the_worker(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    def broken(job: Job) -> None:
        raise RuntimeError("not enough memory\nand more")

    def refused(job: Job) -> None:
        raise UserError("no such class")

    failed, bad = queue.submit(broken), queue.submit(refused)
    with pytest.raises(JobFailed, match=r"the model failed \(not enough memory\)"):
        result(failed)
    with pytest.raises(UserError, match="no such class"):
        result(bad)
    assert bad.snapshot() == Snapshot(State.FAILED, seconds=bad.snapshot().seconds, error="no such class")
    assert "not enough memory" in caplog.text  # the whole of it, for whoever runs the studio
    assert result(queue.submit(lambda job: 2)) == 2


def test_nothing_of_an_ended_job_is_kept(queue: Queue) -> None:
    class Large:
        pass

    def submitted(fails: bool) -> tuple[Job, weakref.ref]:
        held = Large()

        def work(job: Job) -> str:
            kept = held  # noqa: F841
            if fails:
                raise ValueError("with a traceback")
            return "small"

        return queue.submit(work, lambda x0: (b"",)), weakref.ref(held)

    for fails in (False, True):
        job, large = submitted(fails)
        with pytest.raises(JobFailed) if fails else contextlib.nullcontext():
            result(job)
        queue.done(lambda: None)  # the thread has left the job's frames
        gc.collect()
        assert large() is None
    reference = weakref.ref(job)
    del job
    gc.collect()
    assert reference() is None


def test_changes_tell_each_state_once_and_end(queue: Queue) -> None:
    gate = Gate()
    first, second = queue.submit(gate), queue.submit(lambda job: 5)

    async def seen() -> list[State]:
        states = []
        async for snapshot in second.changes(every=0.01):
            states.append((snapshot.state, snapshot.before))
            gate.may.set()
        return states

    gate.begun.wait()
    states = asyncio.run(seen())
    assert states[0] == (State.WAITING, 1)
    assert states[-1] == (State.DONE, 0)
    assert len(states) == len(set(states))
    assert result(first) == "made"


def test_previews_are_drawn_now_and_then(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, clock = [], iter(range(1000))
    monkeypatch.setattr("piti.studio.service.jobs.PREVIEW_EVERY", 3)
    monkeypatch.setattr("piti.studio.service.jobs.time.monotonic", lambda: float(next(clock)))

    def work(job: Job) -> Snapshot:
        for k in range(1, 9):
            job.stepped(k, 9, X0)
        job.stepped(9, 9, X0)
        return job.snapshot()

    last = result(queue.submit(work, lambda x0: (f"{len(drawn)}".encode(), drawn.append(x0) or b"")))
    assert isinstance(last, Snapshot)
    assert 2 <= len(drawn) <= 6
    assert (last.done, last.total) == (9, 9)
    assert last.preview[0] == f"{len(drawn) - 1}".encode()


def test_closing_cancels_what_waits_and_runs() -> None:
    queue, gate = Queue(), Gate()
    jobs = [queue.submit(gate), queue.submit(gate)]
    gate.begun.wait()
    queue.close()
    for job in jobs:
        with pytest.raises(Cancelled):
            result(job)
    with pytest.raises(Cancelled, match="closing"):
        queue.submit(gate)


def test_whoever_stops_waiting_stops_nothing(queue: Queue) -> None:
    gate = Gate()
    job = queue.submit(gate)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job.result(), 0.01)

    asyncio.run(impatient())
    gate.may.set()
    assert result(job) == "made"


def test_what_jobs_hold_is_bounded(queue: Queue) -> None:
    queue.most_bytes = 3 * 2**20
    gate = Gate()
    jobs = [queue.submit(gate, size=9 * 2**20)]  # one alone always may
    gate.begun.wait()
    with pytest.raises(QueueFull, match="hold 9 MiB of images"):
        queue.submit(gate, size=1)
    gate.may.set()
    assert result(jobs[0]) == "made"
    queue.submit(lambda job: None)
    jobs = [queue.submit(Gate(), size=2**20) for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.submit(gate, size=1)
    for job in jobs:
        job.cancel()
    assert result(queue.submit(gate, size=2**20)) == "made"
    while queue.held:
        time.sleep(0.002)


def test_what_another_thread_asks_for_is_done_by_the_queues(queue: Queue) -> None:
    assert queue.done(lambda: threading.current_thread().name) == "piti-studio"
    with pytest.raises(UserError, match="in words"):
        queue.done(lambda: _raised(UserError("said in words")))
    assert queue.done(lambda: 3) == 3


def test_who_waits_for_a_queue_that_is_closed_is_told() -> None:
    """As when Ctrl-C ends the studio; it was waited for ever."""
    queue, gate, told = Queue(), Gate(), []

    def waits() -> None:
        try:
            queue.done(lambda: None)
        except Cancelled as error:
            told.append(error)

    queue.submit(gate)
    gate.begun.wait()
    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    while len(queue) < 2:
        time.sleep(0.002)
    queue.close()
    thread.join(5)
    assert len(told) == 1


def _raised(error: Exception) -> None:
    raise error


def test_beside_the_queue_a_thread_computes_on_one_core_and_the_queues_as_before(queue: Queue) -> None:
    seen: dict[str, int] = {}

    def fresh() -> None:  # a thread whose number torch has not set yet
        with one_thread():
            torch.ones(100_000).sum()
            seen["within"] = torch.get_num_threads()
            seen["of the queue"] = queue.done(torch.get_num_threads)

    many = ThreadpoolController()
    queue.done(lambda: many.limit(limits=2, user_api="openmp"))
    with many.limit(limits=2, user_api="openmp"):
        thread = threading.Thread(target=fresh)
        thread.start()
        thread.join()
        with one_thread():
            seen["of this one"] = torch.get_num_threads()
        seen["after"] = torch.get_num_threads()
    assert seen == {"within": 1, "of the queue": 2, "of this one": 1, "after": 2}
