"""FLOPs and activation memory of networks on a GPU, counted on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class PassCost:
    """Cost of a forward and backward pass of one image."""

    forward: int
    """FLOPs of the forward pass."""
    flops: int
    """FLOPs of both passes."""
    activations: int
    """Bytes saved for the backward pass."""
    learning: int = 0
    """Parameters that get gradients."""
    weights: int = 0
    """Parameters of networks other than the translator."""


class Checkpoints:
    """Replacement of torch's checkpointing in a network whose cost is counted.

    A checkpointed block saves only its inputs; its own activations exist during its backward pass, for which its
    forward pass is repeated.
    """

    def __init__(self) -> None:
        self.counted: Callable[[], int] = lambda: 0
        """FLOPs so far."""
        self.begin()

    def begin(self) -> None:
        """Reset the counts."""
        self.inputs: set[torch.UntypedStorage] = set()
        self.blocks: list[int] = []
        self.flops = 0

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Called by diffusers' networks for a checkpointed block."""
        own: set[torch.UntypedStorage] = set()
        given = {x.untyped_storage() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        before = self.counted()

        def pack(x: Tensor) -> Tensor:
            own.add(x.untyped_storage())
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            made = block(*args, **kwargs)
        self.inputs |= given
        self.flops += self.counted() - before
        self.blocks.append(_bytes(own - given))
        return made


def count_pass(
    run: Callable[[int], Tensor], low: torch.dtype | None, checkpoints: Checkpoints | None = None
) -> PassCost:
    """Count the forward and backward pass of `run`, a function of the batch that returns a sum, on meta tensors.

    FLOPs are those of matrix products and convolutions, not of elementwise operations. Activations are the bytes that a
    third image adds to the tensors saved for the backward pass, storages counted once (a single image shares storages
    that more do not); temporary tensors are not counted. low: autocast's dtype, if any; checkpoints: the network's
    replacement of torch's checkpointing.
    """
    kept: list[set[torch.UntypedStorage]] = []
    checkpoints = Checkpoints() if checkpoints is None else checkpoints

    def pack(x: Tensor) -> Tensor:
        kept[-1].add(x.untyped_storage())
        return x

    def forward(batch: int) -> Tensor:
        kept.append(set())
        checkpoints.begin()
        with _AsOnGPU(low), saved_tensors_hooks(pack, lambda x: x):
            total = run(batch)
        kept[-1] |= checkpoints.inputs
        return total

    with FlopCounterMode(display=False) as counter:
        checkpoints.counted = counter.get_total_flops
        total = forward(2)
        there, again, before = counter.get_total_flops(), checkpoints.flops, checkpoints.blocks
        total.backward()
    checkpoints.counted = lambda: 0
    forward(3)
    two, three = map(_bytes, kept)
    largest = max((more - less for less, more in zip(before, checkpoints.blocks, strict=True)), default=0)
    return PassCost(there // 2, (counter.get_total_flops() + again) // 2, three - two + largest)


def most_held(run: Callable[[], object]) -> int:
    """Peak bytes of tensors in `run` on the meta device, without gradients, including its inputs."""
    with torch.no_grad(), _Live() as live, _FusedAttention():
        run()
    return live.most


def _bytes(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)


class _AsOnGPU(TorchFunctionMode):
    """Casts and saves on the meta device as autocast and fused attention do on a GPU.

    From autocast's lists (torch's "CUDA Op-Specific Behavior"), the operators of these networks: convolutions and
    products in half precision; normalisation and interpolation in float32, so that their inputs are saved in float32.
    """

    HALF = (F.conv2d, F.linear)
    FULL = (F.group_norm, F.layer_norm, F.rms_norm, F.interpolate)

    def __init__(self, low: torch.dtype | None) -> None:
        """low: half precision; None: no autocast."""
        super().__init__()
        self.low = low

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*(self.cast(x, self.low) for x in _query_key_value(args, kwargs)))
        if func in self.HALF:
            args = tuple(self.cast(x, self.low) for x in args)
        elif func in self.FULL:
            args = tuple(self.cast(x, torch.float32) for x in args)
        if func is F.group_norm:
            return _GroupNorm.apply(*args[:4])
        return func(*args, **(kwargs or {}))

    def cast(self, x: Any, dtype: torch.dtype | None) -> Any:
        """Cast x, if autocast is on and x is a floating-point tensor."""
        if self.low is None or dtype is None or not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.to(dtype)


def _query_key_value(args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any, Any]:
    """Of a call of attention, by position or by name, as diffusers' newer classes do."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
    return given["query"], given["key"], given["value"]


class _Attention(torch.autograd.Function):
    """Attention like in fused kernels: of the weights, only the logarithms of their sums are saved (Dao et al. 2022,
    arXiv 2205.14135). Their recomputation in the backward pass is not counted."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = (q @ k.transpose(-1, -2)) @ v  # [B, heads, S, D/heads]
        out = out.transpose(1, 2).contiguous().transpose(1, 2)  # laid out by tokens: heads are joined without a copy
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors[:3]
        (grad,) = grads
        weights = q.new_empty(*q.shape[:-1], k.shape[-2])  # [B, heads, S, S']
        grad_v = weights.transpose(-1, -2) @ grad
        grad_weights = grad @ v.transpose(-1, -2)
        return grad_weights @ k, grad_weights.transpose(-1, -2) @ q, grad_v


class _GroupNorm(torch.autograd.Function):
    """Shapes and saved tensors of a group norm; torch would derive both from a dozen operators, which takes most of the
    counting time. Its FLOPs are not counted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        mean, scale = (x.new_empty(len(x), groups) for _ in range(2))
        ctx.save_for_backward(x, weight, mean, scale)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors[:2]
        of_weight = None if weight is None else torch.empty_like(weight)
        return torch.empty_like(x), None, of_weight, of_weight


class _FusedAttention(TorchFunctionMode):
    """Attention without its weights, as fused kernels compute it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, _, v = _query_key_value(args, kwargs)
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that were created by operators and still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self.known.setdefault(storage, True)  # such as a weight, of which a view is no new storage
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage not in self.known:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        self.known[storage] = True
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [one.untyped_storage() for one in tree_leaves(values) if isinstance(one, Tensor)]
