"""A small depth map of known surfaces, its camera, and comparisons with what is read from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from piti.conditions import GeometryCondition
from piti.conditions.normals import Camera

GEOMETRY = GeometryCondition()
HEIGHT, WIDTH = 24, 32
CAMERA = Camera(fx=40, fy=44, cx=14.5, cy=10, width=WIDTH, height=HEIGHT)


def metres() -> np.ndarray:
    """A floor that comes nearer towards the bottom and the right, with a block of holes; exact in millimetres."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    depth = (4000 - 40 * rows - 10 * columns).astype(np.float32)
    depth[4:8, 6:11] = 0
    return depth / np.float32(1000)


DEPTH = metres()
HOLES = DEPTH == 0


def plane(normal: tuple[float, float, float], distance: float, camera: Camera = CAMERA) -> Tensor:
    """Depth of the points with normal · point = -distance."""
    toward = (camera.rays() * torch.tensor(normal)[:, None, None]).sum(0)
    return -distance / toward


def unit(*vector: float) -> Tensor:
    return torch.tensor(vector) / math.hypot(*vector)


def same(first: Tensor, second: Tensor, atol: float = 0.0) -> bool:
    return torch.allclose(first, second, rtol=0, atol=atol, equal_nan=True)


def known(raw: Tensor) -> np.ndarray:
    return raw[0].isfinite().numpy()
