"""Several processes at one task, as torchrun starts them."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from piti.core.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the others. One that dies ends the wait at once."""


class FailedElsewhere(UserError):
    """Another process failed and says why; this one has nothing to add."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a task."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.rank == 0

    def own(self, jobs: Sequence[T]) -> list[T]:
        """Every `world`-th job, from the one of this process's number on."""
        return list(jobs[self.rank :: self.world])

    def told(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def started() -> Ranks:
    """Which of how many processes this is, as its starter says in RANK and WORLD_SIZE. Raises UserError."""
    try:
        ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        ranks = Ranks(-1, 0)
    if not 0 <= ranks.rank < ranks.world or (ranks.world > 1 and "RANK" not in os.environ):
        raise UserError(
            f"RANK={os.environ.get('RANK')} and WORLD_SIZE={os.environ.get('WORLD_SIZE')} in the environment are no "
            "process of a group; start with torchrun, or unset both"
        )
    return ranks


def joined() -> Ranks:
    """Join the processes that torchrun started, each with a GPU of its own where there are any; alone, do nothing.

    Raises UserError where they do not find each other.
    """
    ranks = started()
    if ranks.world == 1:
        return ranks
    import torch
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # as torch reports an address that is missing or in use
        raise UserError(f"the {ranks.world} processes do not find each other ({error}); start with torchrun") from None
    leave_at_exit()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return ranks


def leave_at_exit() -> None:
    """Part from the other processes when this one ends, else its end may abort. A group cannot be joined twice."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    crashed = hasattr(sys, "last_value")  # then it does not wait for the others; torchrun ends them
    if dist.is_available() and dist.is_initialized() and not crashed:
        dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all, so that none waits for ever; every process must come here.

    The first of those that failed raises its own error, the others FailedElsewhere. Only mistakes and failures of
    the system are agreed upon: a bug ends its process, and torchrun the others.
    """
    import torch.distributed as dist

    error: Exception | None = None
    try:
        yield
    except (UserError, OSError) as caught:
        error = caught
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        if error is not None:
            raise error
        return
    failed: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(failed, error is not None)
    if not any(failed):
        return
    first = failed.index(True)
    if error is not None and first == dist.get_rank():
        raise error
    raise FailedElsewhere(f"process {first} failed") from None
