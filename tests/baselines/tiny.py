"""Baselines with a few channels, an image to learn, and noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from piti.baselines import Baseline, baseline_from_config, noise_of

KINDS = ("pix2pixhd", "spade", "oasis")
TINY: dict[str, dict[str, Any]] = {
    "pix2pixhd": {"channels": 8, "blocks": 1, "discriminator_channels": 8, "perceptual": 0},
    "spade": {"channels": 8, "hidden": 8, "discriminator_channels": 8, "perceptual": 0},
    "oasis": {"channels": 8, "hidden": 8, "noise": 4, "discriminator_channels": 8},
}


def tiny(kind: str, classes: bool = True, channels: int = 3, size: int = 16, **changes: Any) -> Baseline:
    torch.manual_seed(0)
    return baseline_from_config({"kind": kind, **TINY[kind], **changes}, channels, classes, size)


def picture() -> tuple[Tensor, Tensor]:
    """A mask of three classes, one-hot [1, 3, 16, 16], and an image in the colours of its classes."""
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 8:] = 1
    labels[:, 4:9, 3:9] = 2
    colours = torch.tensor([[-0.5, 0.2, 0.8], [-0.2, -0.2, -0.2], [0.7, -0.7, -0.6]])
    return F.one_hot(labels, 3).permute(0, 3, 1, 2).float(), colours[labels].permute(0, 3, 1, 2).contiguous()


def noise(baseline: Baseline, batch: int, seed: int = 0) -> Tensor | None:
    return noise_of(baseline, [torch.Generator().manual_seed(seed + k) for k in range(batch)], torch.device("cpu"))
