"""Tasks with several processes, started by torchrun."""

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
"""How long a finished process waits for the others. If one dies, waiting ends at once."""


class FailedElsewhere(UserError):
    """Another process failed and reports the reason."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, and number of processes."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether it is the main process."""
        return self.rank == 0

    def own(self, jobs: Sequence[T]) -> list[T]:
        """This process's share: every `world`-th job, starting at its rank."""
        return list(jobs[self.rank :: self.world])

    def told(self, value: T) -> T:
        """Broadcast the main process's value."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def started() -> Ranks:
    """The ranks from RANK and WORLD_SIZE in the environment. Raises UserError."""
    try:
        ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        ranks = Ranks(-1, 0)
    if not 0 <= ranks.rank < ranks.world or (ranks.world > 1 and "RANK" not in os.environ):
        raise UserError(
            f"RANK={os.environ.get('RANK')} and WORLD_SIZE={os.environ.get('WORLD_SIZE')} in the environment do "
            "not describe a process of a group; start with torchrun, or unset both"
        )
    return ranks


def joined() -> Ranks:
    """Join the processes started by torchrun, each with its own GPU if available; do nothing for a single process.

    Raises UserError if they cannot connect.
    """
    ranks = started()
    if ranks.world == 1:
        return ranks
    import torch
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # raised by torch for missing or used addresses
        raise UserError(f"the {ranks.world} processes cannot connect ({error}); start them with torchrun") from None
    leave_at_exit()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return ranks


def leave_at_exit() -> None:
    """Leave the process group at exit, which may abort otherwise. A group cannot be joined twice."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    crashed = hasattr(sys, "last_value")  # after a failure, do not wait for the others; torchrun ends them
    if dist.is_available() and dist.is_initialized() and not crashed:
        dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise errors of any process in all, so that none waits forever; a collective operation.

    The first failed process raises its own error, the others FailedElsewhere. This covers only user errors and system
    failures: a bug ends its process, and torchrun ends the others.
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
