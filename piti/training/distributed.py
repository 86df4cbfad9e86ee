"""Training with several processes through accelerate, and the checks of unsupported configurations."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from types import MethodType
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, convert_outputs_to_fp32, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from piti.core.devices import allow_tf32, check_compiles, fast_in_bfloat16, fastest_kind, laid_out
from piti.core.distributed import FailedElsewhere, leave_at_exit, started
from piti.core.errors import option
from piti.models.foreign import is_transformer, transformer_blocks
from piti.training.recipe import Recipe, RecipeError

FEW_PLACES = 256
"""Number of positions from which fused attention is as fast on a CPU."""
STAGES = (1, 2)


def is_zero(accelerator: Accelerator) -> bool:
    """Whether the optimiser is DeepSpeed's."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def why_not_installed() -> str | None:
    """Why DeepSpeed is unavailable; None if it is available."""
    if importlib.util.find_spec("deepspeed") is None:
        return "DeepSpeed is not installed; pip install 'piti[deepspeed]', or use recipes/accelerate/fsdp.yaml"
    return None


def why_not_zero(accelerator: Accelerator, recipe: Recipe) -> str | None:
    """Why DeepSpeed's configuration cannot train this recipe; None if it can."""
    plugin: Any = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    offloaded = [
        key
        for key in ("offload_optimizer", "offload_param")
        if (config["zero_optimization"].get(key) or {}).get("device") not in (None, "none")
    ]
    if plugin.zero_stage not in STAGES:
        other = "recipes/accelerate/fsdp.yaml shards the weights too" if plugin.zero_stage == 3 else "use ddp.yaml"
        return f"zero_stage: {plugin.zero_stage} of DeepSpeed is not supported; set 1 or 2 ({other})"
    if offloaded:
        return f"DeepSpeed's {offloaded[0]} is not supported; set its device to none"
    if recipe.adversarial:
        return "DeepSpeed supports one network, and an adversary is a second; use recipes/accelerate/ddp.yaml"
    halves = [key for key in ("fp16", "bf16") if (config.get(key) or {}).get("enabled") is True]
    if recipe.precision == "fp16" or halves:
        return "half-precision weights are not supported with DeepSpeed; set precision: bf16 only in the recipe"
    if "optimizer" in config or "scheduler" in config:
        return "the recipe sets optimiser and learning rate; remove them from DeepSpeed's config"
    return None


def settle(accelerator: Accelerator, recipe: Recipe) -> None:
    """Set DeepSpeed's batch, accumulation and clipping from the recipe."""
    plugin: Any = accelerator.state.deepspeed_plugin
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "train_batch_size": recipe.batch * recipe.accumulation * accelerator.num_processes,
        "gradient_clipping": recipe.optimizer.clip if math.isfinite(recipe.optimizer.clip) else 0.0,
    }
    accelerator.gradient_accumulation_steps = recipe.accumulation


def prepare_zero(accelerator: Accelerator, recipe: Recipe, network: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """The network's engine and its optimiser, which steps in the last backward pass of a step. Weights are float32; in
    precision bf16 the forward pass uses autocast, as with accelerate without DeepSpeed."""
    if settled_precision(recipe, accelerator.device) == "bf16":
        _under_autocast(network, accelerator.device.type)
    engine, optimizer = accelerator.prepare(network, optimizer)
    accelerator.deepspeed_engine_wrapped = Engine(engine)  # type: ignore[assignment]
    return engine, optimizer


class Engine:
    """Replaces accelerate's `DeepSpeedEngineWrapper` for `backward`, `clip_grad_norm_` and `free_memory`: with the
    loop's accumulation, and a norm that reports overflows."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.waiting = False
        """Whether more backward passes of the same step follow."""

    def backward(self, loss: Tensor, sync_gradients: bool = True) -> None:
        """Add the gradients of a loss divided by the passes of the step; in the last pass, clip, and step unless a
        gradient is not finite."""
        self.engine.set_gradient_accumulation_boundary(not self.waiting)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self.waiting:
            self.engine.step()

    def get_global_grad_norm(self) -> float:
        """Norm of the last step's gradient before clipping; NaN or infinite if it was not finite."""
        norm = float(self.engine.get_global_grad_norm())
        return norm if norm >= 0 else math.nan  # -1 stands for both


@contextlib.contextmanager
def waiting(accelerator: Accelerator) -> Iterator[None]:
    """Context for backward passes other than the last of a step."""
    handle: Any = accelerator.deepspeed_engine_wrapped
    handle.waiting = True
    try:
        yield
    finally:
        handle.waiting = False


def unhook(engine: Any) -> None:
    """Remove an engine's hooks from the network, which would keep its optimiser in memory during the next stage."""
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


PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other before the run fails: longer than rank 0 takes for a preview."""


def build_accelerator(recipe: Recipe) -> Accelerator:
    """An accelerator with the recipe's precision, even if the process had one with another.

    Raises RecipeError if the processes do not form one run, or if their parallelism does not support the recipe; only
    in the main process, the others raise FailedElsewhere.
    """
    ranks = started()
    AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    zero = _wants("DEEPSPEED")
    _unless(why_not_installed() if zero else None, ranks.main)
    # DeepSpeed's own halves the weights too
    precision = "no" if zero else settled_precision(recipe, _expected_device())
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    accelerator.gradient_accumulation_steps = 1  # whatever the environment says: the loop divides its losses itself
    leave_at_exit()
    allow_tf32(accelerator.device)
    _unless(_why_not(accelerator, recipe, ranks.world), ranks.main)
    if recipe.compile:
        check_compiles(accelerator.device)
    if is_zero(accelerator):
        settle(accelerator, recipe)
    if is_sharded(accelerator):
        # as for unsharded weights: float32, and products in half precision by autocast
        cast(Any, accelerator.state.fsdp_plugin).mixed_precision_policy = None
    return accelerator


def settled_precision(recipe: Recipe, device: torch.device) -> str:
    """The recipe's precision on a device, with `auto` resolved."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if fast_in_bfloat16(device) else "no"


def auto_in_words(recipe: Recipe, device: torch.device) -> str:
    """Describe the precision that `auto` selects on a device."""
    if settled_precision(recipe, device) == "bf16":
        return "products in bf16, the rest in float32"
    return f"float32, in which the device {device} is no slower than in bf16"


def _expected_device() -> torch.device:
    """The device type that accelerate will use."""
    return torch.device("cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else fastest_kind())


def _unless(reason: str | None, main: bool) -> None:
    """Raises RecipeError with a reason in the main process, and FailedElsewhere in the others."""
    if reason is not None:
        raise RecipeError(reason) if main else FailedElsewhere(reason)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process has only a part of the weights (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def _why_not(accelerator: Accelerator, recipe: Recipe, world: int) -> str | None:
    """Why these processes cannot train this recipe; None if they can."""
    if world != accelerator.num_processes:
        return (
            f"{world} processes were started, but each sees {accelerator.num_processes}; without a GPU, "
            "set ACCELERATE_USE_CPU=1 before torchrun"
        )
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        return f"precision: fp16 needs a GPU; use bf16 or no ({option('dtype')} bf16 or fp32)"
    if _wants("FSDP") and not is_sharded(accelerator):
        return (
            f"FSDP shards over two or more processes with a GPU each (processes here: {world}, GPUs: "
            f"{torch.cuda.device_count()}); start one per GPU by accelerate launch, or omit its config file"
        )
    if recipe.optimizer.kind == "adamw8bit" and (is_sharded(accelerator) or is_zero(accelerator)):
        return "optimizer.kind: adamw8bit cannot shard its moments; with FSDP or DeepSpeed use adamw"
    if is_sharded(accelerator):
        return _why_not_sharded(accelerator, recipe)
    if _wants("DEEPSPEED") and not is_zero(accelerator):
        return "DeepSpeed shards over GPUs, but none is available; omit its config file"
    return why_not_zero(accelerator, recipe) if is_zero(accelerator) else None


def _why_not_sharded(accelerator: Accelerator, recipe: Recipe) -> str | None:
    if not accelerator.is_fsdp2:
        return "fsdp_version 1 is not supported; set fsdp_version: 2, as in recipes/accelerate/fsdp.yaml"
    if recipe.adversarial:
        return "FSDP supports one network, and an adversary is a second; use recipes/accelerate/ddp.yaml"
    if recipe.precision == "fp16":
        return "precision: fp16 is not supported with FSDP; use bf16"
    wrapped = getattr(accelerator.state.fsdp_plugin, "transformer_cls_names_to_wrap", None) or []
    config = recipe.model.unet_config or {}
    blocks = transformer_blocks(config) if is_transformer(config) else ()
    if not set(blocks) <= set(wrapped):
        named = " and ".join(blocks)
        return (
            f"FSDP shards {', '.join(wrapped) or 'no blocks'}, but this transformer consists of {named}; "
            f"set fsdp_transformer_layer_cls_to_wrap: {','.join(blocks)} in accelerate's config"
        )
    return None


def frozen_type(accelerator: Accelerator, recipe: Recipe) -> torch.dtype | None:
    """The half precision for frozen weights under adapters; None to leave them unchanged: without autocast, and with
    sharded weights, which need one dtype."""
    if is_sharded(accelerator) or is_zero(accelerator):
        return None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def _wants(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def prepared(accelerator: Accelerator, recipe: Recipe, network: nn.Module, optimizer: Any) -> tuple[Any, Any]:
    """A stage's network and optimiser, prepared by accelerate or DeepSpeed."""
    if is_zero(accelerator):
        return prepare_zero(accelerator, recipe, network, optimizer)
    return accelerator.prepare(network, optimizer)


def lay_out(accelerator: Accelerator, network: nn.Module, also_on: str = "cuda") -> None:
    """`laid_out` in place, except for sharded networks, which are unchanged.

    On a CPU only for networks without group normalisation, whose gradient is slow in this layout there.
    """
    if not (is_sharded(accelerator) or is_zero(accelerator)):
        laid_out(network, accelerator.device, also_on)


def quick_attention(accelerator: Accelerator, places: int) -> contextlib.AbstractContextManager[Any]:
    """Use the attention kernel with the faster gradient: on a CPU in bfloat16 with few positions, fused attention is
    several times slower than matrix products, which need more memory for many positions."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and places < FEW_PLACES:
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


@contextlib.contextmanager
def unsynced(accelerator: Accelerator, *models: Any) -> Iterator[None]:
    """Do not synchronise gradients before the last backward pass of a step."""
    with contextlib.ExitStack() as stack:
        if is_zero(accelerator):
            stack.enter_context(waiting(accelerator))
        else:
            for model in models:
                stack.enter_context(accelerator.no_sync(model))
        yield


def release(accelerator: Accelerator, *models: Any) -> None:
    """Undo `prepared`, including autocast, so that the next stage can prepare the networks again."""
    for model in models:
        if is_zero(accelerator):
            unhook(model)
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)
    accelerator.free_memory()
