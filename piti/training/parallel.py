"""Several processes at one run, through accelerate: what is taken, and what is refused."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor

from piti.ranks import FailedElsewhere, leave_at_exit, started
from piti.training.recipes import Recipe, RecipeError

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
    accelerator = Accelerator(mixed_precision=recipe.precision, kwargs_handlers=[patience])
    leave_at_exit()
    reason = _why_not(accelerator, recipe, ranks.world)
    if reason is not None:
        if not ranks.main:
            raise FailedElsewhere(reason)
        raise RecipeError(reason)
    if is_sharded(accelerator):
        # as with whole weights: float32, and products in half precision by autocast
        cast(Any, accelerator.state.fsdp_plugin).mixed_precision_policy = None
    return accelerator


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
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "DeepSpeed holds weights in a form that this loop cannot average; take recipes/accelerate/fsdp.yaml"
    return None


def _why_not_sharded(accelerator: Accelerator, recipe: Recipe) -> str | None:
    if not accelerator.is_fsdp2:
        return "fsdp_version 1 is not supported; set fsdp_version: 2, as recipes/accelerate/fsdp.yaml has it"
    if any(stage.adversarial for stage in recipe.stages):
        return "FSDP shards one network, an adversarial stage has two; take recipes/accelerate/ddp.yaml"
    if recipe.precision == "fp16":
        return "precision: fp16 is not supported with FSDP; take bf16"
    return None


def _wants(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


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
