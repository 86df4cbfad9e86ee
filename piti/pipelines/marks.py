"""Fast hashes of weights, independent of dtype, to check whether an image was generated with a pipeline's weights."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

from piti.core.compiled import plain_key
from piti.models.casting import state_of
from piti.pipelines.pipeline import PITIPipeline

_MARKED = 16  # hexadecimal digits of a hash
_SAMPLED = 256  # values of a tensor that are hashed
_BEFORE: WeakKeyDictionary[nn.Module, tuple[tuple[int, bytes], str]] = WeakKeyDictionary()
"""Networks that were cast => the state of their weights after it, see `state_of`, and their mark before it."""


def weights_mark(pipeline: PITIPipeline) -> str:
    """Hashes of the weights of base, upsampler and autoencoder: of the name, the shape and some values of every tensor.

    Training changes them; moving to a device, files in half precision and `cast` do not. Empty if weights are offloaded
    (on the meta device).
    """
    parts = [part for part in (pipeline.base, pipeline.upsampler, pipeline.vae) if part is not None]
    if any(value.is_meta for part in parts for value in part.state_dict().values()):
        return ""
    return " ".join(map(_mark, parts))


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of a network's weights in place; its mark does not change."""
    mark = None if all(weight.dtype is dtype for weight in network.parameters()) else _mark(network)
    nn.Module.to(network, dtype=dtype)
    if mark is not None:
        _BEFORE[network] = state_of(network), mark


def _mark(network: nn.Module) -> str:
    before = _BEFORE.get(network)
    if before is not None and before[0] == state_of(network):
        return before[1]
    digest = hashlib.sha256()
    named = {plain_key(key): value for key, value in network.state_dict().items()}
    for key, value in sorted(named.items()):
        digest.update(f"{key}{list(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        digest.update(flat[:: max(1, len(flat) // _SAMPLED)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:_MARKED]
