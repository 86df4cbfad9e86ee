"""Several processes at one run, through accelerate: what is taken, and what is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from piti.ranks import FailedElsewhere, leave_at_exit, started
from piti.training.recipes import Recipe, RecipeError
from piti.training.zero import is_zero, prepare_zero, settle, unhook, waiting, why_not_installed, why_not_zero

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another before the run is given up: longer than rank 0 takes for a preview."""


def build_accelerator(recipe: Recipe) -> Accelerator:
    """An accelerator of the recipe's precision, also where the process had one of another.

    Raises RecipeError where the processes that were started do not become one run, or where their way of sharing it
    cannot do what the recipe asks for; in the first process alone, the others raise FailedElsewhere.
    """
    ranks = started()
    AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    zero = _wants("DEEPSPEED")
    _unless(why_not_installed() if zero else None, ranks.main)
    precision = "no" if zero else recipe.precision  # DeepSpeed's own halves the weights too
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    leave_at_exit()
    _unless(_why_not(accelerator, recipe, ranks.world), ranks.main)
    if is_zero(accelerator):
        settle(accelerator, recipe)
    if is_sharded(accelerator):
        # as with whole weights: float32, and products in half precision by autocast
        cast(Any, accelerator.state.fsdp_plugin).mixed_precision_policy = None
    return accelerator


def _unless(reason: str | None, main: bool) -> None:
    """Raises RecipeError for a reason in the main process, in the others FailedElsewhere."""
    if reason is not None:
        raise RecipeError(reason) if main else FailedElsewhere(reason)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights alone (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def _why_not(accelerator: Accelerator, recipe: Recipe, world: int) -> str | None:
    """Why these processes cannot train this recipe."""
    if world != accelerator.num_processes:
        return (
            f"{world} processes were started, but each sees {accelerator.num_processes}; where there is no GPU, "
            "set ACCELERATE_USE_CPU=1 before torchrun"
        )
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        return "precision: fp16 needs a GPU; take bf16 or no"
    if _wants("FSDP") and not is_sharded(accelerator):
        return "FSDP shards over two or more GPUs, and here are not; leave its config file out"
    if is_sharded(accelerator):
        return _why_not_sharded(accelerator, recipe)
    if _wants("DEEPSPEED") and not is_zero(accelerator):
        return "DeepSpeed shards over GPUs, and here are none; leave its config file out"
    return why_not_zero(accelerator, recipe) if is_zero(accelerator) else None


def _why_not_sharded(accelerator: Accelerator, recipe: Recipe) -> str | None:
    if not accelerator.is_fsdp2:
        return "fsdp_version 1 is not supported; set fsdp_version: 2, as recipes/accelerate/fsdp.yaml has it"
    if recipe.adversarial:
        return "FSDP shards one network, an adversary is a second; take recipes/accelerate/ddp.yaml"
    if recipe.precision == "fp16":
        return "precision: fp16 is not supported with FSDP; take bf16"
    return None


def _wants(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def prepared(accelerator: Accelerator, recipe: Recipe, network: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """A stage's network and optimiser as accelerate or DeepSpeed trains them."""
    if is_zero(accelerator):
        return prepare_zero(accelerator, recipe, network, optimizer)
    return accelerator.prepare(network, optimizer)


@contextlib.contextmanager
def unsynced(accelerator: Accelerator, *models: Any) -> Iterator[None]:
    """Gradients stay in this process until the last backward pass of a step."""
    with contextlib.ExitStack() as stack:
        if is_zero(accelerator):
            stack.enter_context(waiting(accelerator))
        else:
            for model in models:
                stack.enter_context(accelerator.no_sync(model))
        yield


def release(accelerator: Accelerator, *models: Any) -> None:
    """Undo `prepared`, so that the next stage can prepare the networks anew, autocast included."""
    for model in models:
        if is_zero(accelerator):
            unhook(model)
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)
    accelerator.free_memory()


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over a step's backward passes."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def mean_over_processes(accelerator: Accelerator, numbers: dict[str, float]) -> dict[str, float]:
    """Means over all processes, which have the same keys."""
    if accelerator.num_processes == 1:
        return numbers
    values = torch.tensor(list(numbers.values()), device=accelerator.device)  # [K]
    means = cast(Tensor, accelerator.reduce(values, "mean"))
    return dict(zip(numbers, means.tolist(), strict=True))
