"""Networks of this package as diffusers' models: how they change their type of numbers, what lies over them, and
whether their weights are still the same."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

_Network = TypeVar("_Network", bound="NetworkMixin")
_LOOKED_AT = 8  # values of a weight


def under_adapters(network: nn.Module) -> bool:
    """Whether low-rank adapters of peft's lie over some of a network's weights, which then have other names."""
    return any(".lora_" in name for name, _ in network.named_parameters())


@torch.no_grad()
def state_of(network: nn.Module) -> tuple[int, bytes]:
    """What differs once a network's weights were changed: how often they were in place, and some values of each, for
    torch counts no change through `.data`, as peft merges adapters."""
    weights = list(network.parameters())
    flat = [weight.reshape(-1) for weight in weights if not weight.is_meta]
    seen = [values[:: max(1, len(values) // _LOOKED_AT)].cpu() for values in flat]
    return sum(weight._version for weight in weights), torch.cat(seen).float().numpy().tobytes() if seen else b""


class NetworkMixin(ModelMixin):
    """diffusers' mixin for networks whose modules all follow a new dtype."""

    def to(  # pyright: ignore[reportIncompatibleVariableOverride]
        self: _Network, *args: Any, **kwargs: Any
    ) -> _Network:
        """As `torch.nn.Module.to`.

        diffusers' own warns at every dtype of modules that are to stay in float32, also where the list of them is
        empty. So the dtype is changed by torch, and the rest, such as what offloading forbids, is diffusers' affair.
        """
        dtype = kwargs.pop("dtype", None)
        for arg in args:
            dtype = arg if isinstance(arg, torch.dtype) else dtype
        if dtype is not None:
            nn.Module.to(self, dtype=dtype)
        args = tuple(arg for arg in args if not isinstance(arg, torch.dtype))
        if args or kwargs:
            super().to(*args, **kwargs)
        return self
