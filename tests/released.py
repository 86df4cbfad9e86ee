"""Tiny networks in the released layout, with random weights."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from torch import Tensor

from piti.checkpoints.release import as_released, expected_shapes, our_tensors

_BASE = {"channels": [32, 64], "layers": 1, "attention": [False, True], "head_dim": 32, "token_width": 32}
_LARGE = {"channels": [32, 32, 32, 64], "layers": 1, "attention": [False] * 3 + [True], "head_dim": 32}
_UPSAMPLER = _LARGE | {"token_width": 32}
_ENCODER = {"in_channels": 3, "size": 16, "channels": [8, 16], "width": 32, "layers": 1, "heads": 1}
_TEXT = {"vocabulary": 40, "context": 6, "width": 32, "layers": 2, "heads": 1}

TINY: dict[str, dict[str, Any]] = {
    "piti": {"encoder_spec": _ENCODER, "unet_spec": _BASE, "image_size": 16},
    "sketch": {"encoder_spec": _ENCODER | {"in_channels": 1}, "unet_spec": _BASE, "image_size": 16},
    "piti_up": {"encoder_spec": _ENCODER, "unet_spec": _UPSAMPLER, "image_size": 64, "low_res": 16},
    "sketch_up": {
        "encoder_spec": _ENCODER | {"in_channels": 1}, "unet_spec": _UPSAMPLER, "image_size": 64, "low_res": 16
    },
    "glide": {"text_spec": _TEXT, "unet_spec": _BASE, "image_size": 16},
    "glide_up": {"text_spec": _TEXT, "unet_spec": _UPSAMPLER, "image_size": 64, "low_res": 16},
    "inpaint": {"text_spec": _TEXT, "unet_spec": _BASE, "image_size": 16, "inpaint": True},
    "inpaint_up": {
        "text_spec": _TEXT, "unet_spec": _UPSAMPLER, "image_size": 64, "low_res": 16, "inpaint": True
    },
}  # fmt: skip
"""Configurations of translators that have a released layout, and whose sizes its shapes tell."""


def tiny_weights(name: str, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A released state dict of `TINY[name]`, changes made to its configuration."""
    generator = torch.Generator().manual_seed(seed)
    shapes = _shapes(json.dumps(TINY[name] | changes))
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@cache
def _shapes(config: str) -> dict[str, tuple[int, ...]]:
    """By name, of the state dict of a translator's configuration, which is JSON here."""
    values = json.loads(config)
    return expected_shapes(as_released(values).rules, our_tensors(values))


def encoder_weights(seed: int = 1, prefix: str = "") -> dict[str, Tensor]:
    """What PITI's first stage saves: the encoder alone."""
    weights = tiny_weights("piti", seed)
    return {
        prefix + key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")
    }
