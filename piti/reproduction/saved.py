"""Whether a run's model is that of its newest checkpoint, told by the weights, which copying does not change."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

AVERAGE = "custom_checkpoint_0.pkl"
"""A checkpoint's file of averaged weights, which are what a model is made of."""
SMALL = 2**16
"""Tensors of more numbers are not compared: a step of training changes the small ones too."""


def is_of(model: Path, checkpoint: Path) -> bool:
    """Whether a model holds the averaged weights of a checkpoint; False where one of them cannot be read."""
    if not (model / "model_index.json").is_file():
        return False
    try:
        average = torch.load(checkpoint / AVERAGE, map_location="cpu", weights_only=True, mmap=True)
        wanted = _digests(average["shadow_params"])
        return any(wanted and wanted <= _digests(_weights(file)) for file in sorted(model.rglob("*.safetensors")))
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError):
        return False


def _weights(path: Path) -> Iterable[Tensor]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if math.prod(file.get_slice(key).get_shape()) <= SMALL:
                yield file.get_tensor(key)


def _digests(tensors: Iterable[Tensor]) -> Counter[str]:
    """The small tensors' contents: networks list them in another order than files do."""
    small = (tensor.detach().float().contiguous() for tensor in tensors if tensor.numel() <= SMALL)
    return Counter(hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest() for x in small)
