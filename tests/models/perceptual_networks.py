"""Perceptual networks with random weights, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor

from piti.models.perceptual import PerceptualNetwork, PerceptualSpec


def spec(**values: object) -> PerceptualSpec:
    return PerceptualSpec.parse({"network": "squeezenet1_1"} | values, "test")


def network(**values: object) -> PerceptualNetwork:
    """With random weights."""
    torch.manual_seed(0)
    return PerceptualNetwork(spec(**values))


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
