"""DeepSpeed's ZeRO through accelerate: gradients and the optimiser sharded, weights whole (its stages 1 and 2)."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, convert_outputs_to_fp32
from torch import Tensor, nn

from piti.training.recipes import Recipe

STAGES = (1, 2)


def is_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed holds the optimiser."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def why_not_installed() -> str | None:
    """Why there can be no DeepSpeed here."""
    if importlib.util.find_spec("deepspeed") is None:
        return "DeepSpeed is not installed; pip install 'piti[deepspeed]', or take recipes/accelerate/fsdp.yaml"
    return None


def why_not_zero(accelerator: Accelerator, recipe: Recipe) -> str | None:
    """Why DeepSpeed as it is set cannot train this recipe."""
    plugin: Any = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    offloaded = [
        key
        for key in ("offload_optimizer", "offload_param")
        if (config["zero_optimization"].get(key) or {}).get("device") not in (None, "none")
    ]
    if plugin.zero_stage not in STAGES:
        other = "recipes/accelerate/fsdp.yaml shards the weights too" if plugin.zero_stage == 3 else "take ddp.yaml"
        return f"zero_stage: {plugin.zero_stage} of DeepSpeed is not supported; set 1 or 2 ({other})"
    if offloaded:
        return f"DeepSpeed's {offloaded[0]} is not supported; set its device to none"
    if recipe.adversarial:
        return "DeepSpeed holds one network, an adversary is a second; take recipes/accelerate/ddp.yaml"
    halves = [key for key in ("fp16", "bf16") if (config.get(key) or {}).get("enabled") is True]
    if recipe.precision == "fp16" or halves:
        return "half-precision weights are not supported with DeepSpeed; set precision: bf16 in the recipe alone"
    if "optimizer" in config or "scheduler" in config:
        return "the recipe sets optimiser and learning rate; take them out of DeepSpeed's config"
    return None


def settle(accelerator: Accelerator, recipe: Recipe) -> None:
    """Give DeepSpeed the recipe's batch, accumulation and clipping."""
    plugin: Any = accelerator.state.deepspeed_plugin
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "train_batch_size": recipe.batch * recipe.accumulation * accelerator.num_processes,
        "gradient_clipping": recipe.optimizer.clip if math.isfinite(recipe.optimizer.clip) else 0.0,
    }
    accelerator.gradient_accumulation_steps = recipe.accumulation


def prepare_zero(accelerator: Accelerator, recipe: Recipe, network: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """The network's engine and its optimiser, whose step is taken in the last backward pass of a step. Weights are
    float32; in precision bf16 the forward pass is under autocast, as accelerate has it without DeepSpeed."""
    if recipe.precision == "bf16":
        _under_autocast(network, accelerator.device.type)
    engine, optimizer = accelerator.prepare(network, optimizer)
    accelerator.deepspeed_engine_wrapped = Engine(engine)  # type: ignore[assignment]
    return engine, optimizer


class Engine:
    """What accelerate's `backward`, `clip_grad_norm_` and `free_memory` ask, in place of its own
    `DeepSpeedEngineWrapper`: with accumulation as the loop has it, and a norm that tells an overflow."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.waiting = False
        """Whether more backward passes of the same step follow."""

    def backward(self, loss: Tensor, sync_gradients: bool = True) -> None:
        """Add the gradients of a loss that is divided by the passes of the step; in the last pass clip, and step
        unless a gradient is not finite."""
        self.engine.set_gradient_accumulation_boundary(not self.waiting)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self.waiting:
            self.engine.step()

    def get_global_grad_norm(self) -> float:
        """Norm of the last step's gradient before clipping; NaN or infinite where it was not finite."""
        norm = float(self.engine.get_global_grad_norm())
        return norm if norm >= 0 else math.nan  # -1 stands for both


@contextlib.contextmanager
def waiting(accelerator: Accelerator) -> Iterator[None]:
    """For the backward passes that are not the last of a step."""
    handle: Any = accelerator.deepspeed_engine_wrapped
    handle.waiting = True
    try:
        yield
    finally:
        handle.waiting = False


def unhook(engine: Any) -> None:
    """Take an engine's hooks from the network, which would keep the optimiser in memory beside the next stage's."""
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        hook = getattr(engine, name, None)
        if hook is not None:
            hook.remove()


def _under_autocast(network: nn.Module, device: str) -> None:
    """Products in bfloat16, outputs in float32; `unwrap_model(keep_fp32_wrapper=False)` undoes it."""
    plain = network.forward
    network.__dict__["_original_forward"] = plain
    cast = torch.autocast(device, dtype=torch.bfloat16)(getattr(plain, "__func__", plain))
    wrapped = MethodType(cast, network)
    network.forward = MethodType(convert_outputs_to_fp32(wrapped.__func__), network)
