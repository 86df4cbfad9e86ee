"""Weights of the recorded tensors, derived from names and shapes, as used with the released code."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from piti.checkpoints.release import as_released, expected_shapes, our_tensors


def recipe_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The manifest's `weight_recipe`: normal numbers from the name's checksum, rounded to float16, as float32."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("weight"):
        values = z / np.sqrt(np.prod(shape[1:])) if len(shape) >= 2 else 1 + 0.1 * z
    else:
        values = 0.1 * z
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def recipe_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A released state dict of a translator of this configuration."""
    shapes = expected_shapes(as_released(config).rules, our_tensors(config))
    return {name: recipe_tensor(name, shape) for name, shape in shapes.items()}


def recorded_config(manifest: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The configuration of a recorded model, from the options that it was made with (not from its tensors)."""
    entry = manifest["models"][model]
    if "options" in entry:
        return _piti(entry["options"], entry["encoder_layers"])
    return _glide(manifest["models"]["glide_s32"]["kwargs"], upsampler=model == "glide_up_s32")


def _piti(options: Mapping[str, Any], encoder_layers: int) -> dict[str, Any]:
    mult = (1, 1, 2, 2, 4, 4) if options["image_size"] == 256 else (1, 2, 3, 4)
    attended = [int(side) for side in options["attention_resolutions"].split(",")]
    return {
        "encoder_spec": {"layers": encoder_layers, "in_channels": 1 if "edge" in options["mode"] else 3},
        "unet_spec": {
            "channels": [options["num_channels"] * m for m in mult],
            "layers": options["num_res_blocks"],
            "attention": [options["image_size"] // 2**level in attended for level in range(len(mult))],
            "head_dim": options["num_head_channels"],
        },
        "image_size": options["image_size"],
        "low_res": options["super_res"] or None,
    }


def _glide(kwargs: Mapping[str, Any], upsampler: bool) -> dict[str, Any]:
    mult = (1, 1, 2, 2, 4, 4) if upsampler else tuple(kwargs["channel_mult"])
    strides = (8, 16, 32) if upsampler else kwargs["attention_resolutions"]
    return {
        "text_spec": {
            "vocabulary": int(re.findall(r"\d+", kwargs["tokenizer"])[0]),
            "context": kwargs["text_ctx"],
            "width": kwargs["xf_width"],
            "layers": kwargs["xf_layers"],
            "heads": kwargs["xf_heads"],
        },
        "unet_spec": {
            "channels": [kwargs["model_channels"] * m for m in mult],
            "layers": kwargs["num_res_blocks"],
            "attention": [2**level in strides for level in range(len(mult))],
            "head_dim": kwargs["num_head_channels"],
            "token_width": kwargs["xf_width"],
        },
        "image_size": 256 if upsampler else 64,
        "low_res": 64 if upsampler else None,
    }


def manifest_of(golden: Path) -> dict[str, Any]:
    """The recorded tensors' manifest."""
    return json.loads((golden / "manifest.json").read_text(encoding="utf-8"))
