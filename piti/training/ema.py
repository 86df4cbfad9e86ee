"""A translator's trained weights and their running average, whole or sharded over the processes (FSDP)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from piti.baselines import ImageNetwork


class Weights:
    """The weights that a run trains and their exponential moving average.

    With sharded weights, a stage trains a sharded copy, and `whole` is an unsharded one that is updated only on
    request; gathering is a collective operation of all processes.
    """

    def __init__(self, translator: ImageNetwork, decay: float, sharded: bool) -> None:
        """translator: at the start of the run, on its device; parameters that no stage trains do not require gradients,
        and are their own average. decay: of the average."""
        self.whole, self.sharded = translator, sharded
        self.trained = translator
        parameters = list(translator.parameters())
        self.fixed = [not (sharded or parameter.requires_grad) for parameter in parameters]
        self.ema = EMAModel([], decay=decay, foreach=True)
        pairs = zip(parameters, self.fixed, strict=True)
        self.ema.shadow_params = [one.detach() if fixed else one.detach().clone() for one, fixed in pairs]

    def begin_stage(self) -> ImageNetwork:
        """The translator for the next stage to freeze, prepare and train."""
        self.trained = copy.deepcopy(self.whole) if self.sharded else self.whole
        return self.trained

    def prepared(self, device: torch.device) -> None:
        """Must be called after the stage's translator was prepared, since its parameters may have become shards."""
        self.ema.to(device)
        self._place_average()

    def step(self) -> None:
        """Update the average after an optimiser step."""
        own: list[Any] = [local(parameter) for parameter in self.trained.parameters()]
        self.ema.step(own)

    def end_stage(self) -> None:
        """Copy the stage's trained weights back."""
        if not self.sharded:
            return
        average = self._whole_average()
        _fill(self.whole, [whole(parameter) for parameter in self.trained.parameters()], self.trained)
        self.ema.shadow_params, self.trained = average, self.whole

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ImageNetwork]:
        """An unsharded translator with the averaged weights, in evaluation mode. With sharded weights, a collective
        operation of all processes."""
        if self.sharded:
            _fill(self.whole, self._whole_average(), self.trained)
            self.whole.eval()
            yield self.whole
            self.whole.train()
            return
        parameters = list(self.whole.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.whole.eval()
        try:
            yield self.whole
        finally:
            self.ema.restore(parameters)
            self.whole.train()

    # For accelerate's checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The unsharded average."""
        return self.ema.state_dict() | {"shadow_params": self._whole_average()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved average, with the current placement of the weights."""
        self.ema.load_state_dict(state)
        self._place_average()

    # Average of this process's shards

    def _place_average(self) -> None:
        rows = zip(self.ema.shadow_params, self.trained.parameters(), self.fixed, strict=True)
        self.ema.shadow_params = [
            parameter.detach() if fixed else shard(average, parameter) for average, parameter, fixed in rows
        ]

    def _whole_average(self) -> list[Tensor]:
        pairs = zip(self.ema.shadow_params, self.trained.parameters(), strict=True)
        return [whole(_as_shard(average, parameter)) for average, parameter in pairs]


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over the processes."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local().detach().requires_grad_(tensor.requires_grad) if is_shard(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """Gather a possibly sharded tensor in every process."""
    return tensor.detach().full_tensor() if is_shard(tensor) else tensor.detach()


def shard(tensor: Tensor, like: Any) -> Tensor:
    """This process's shard of an unsharded tensor, with the sharding, device and memory layout of another, so that
    several are averaged by one kernel."""
    tensor = tensor.to(like.device)
    if not is_shard(like):
        return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local().clone()


def _as_shard(part: Tensor, like: Any) -> Tensor:
    """Wrap this process's shard as a tensor sharded like another."""
    if not is_shard(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def _fill(translator: nn.Module, parameters: Sequence[Tensor], source: nn.Module) -> None:
    """Copy these parameters and the source's buffers into an unsharded translator."""
    with torch.no_grad():
        for own, new in zip(translator.parameters(), parameters, strict=True):
            own.copy_(new)
        for own, new in zip(translator.buffers(), source.buffers(), strict=True):
            own.copy_(new)
