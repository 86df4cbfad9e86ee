"""A photograph, two masks of it, and a quick edit from one to the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.editing import Edited, EditSettings, edit
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_pipeline import arrays, seeded

FAST = {"steps": 3, "upsampler_steps": 2, "dilate": 0.05, "feather": 0.05}


def photograph(width: int = 40, height: int = 40, seed: int = 0) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def two_masks(width: int = 40, height: int = 40) -> tuple[Tensor, Tensor]:
    """Sky above a road; and the same with a car on the left."""
    before = torch.zeros(1, height, width, dtype=torch.uint8)
    before[:, height // 2 :] = 1
    after = before.clone()
    after[:, height // 2 : height // 2 + 8, 4:12] = 2
    return before, after


def edited(pipeline: PITIPipeline, image: Any = None, num: int = 1, **given: Any) -> Edited:
    before, after = two_masks()
    kept = {key: given.pop(key) for key in ("batch_size", "on_step", "region") if key in given}
    alone = pipeline.upsampler is None or given.get("base_only")
    fast = {key: value for key, value in FAST.items() if not (alone and key == "upsampler_steps")}
    from_ = None if given.pop("unknown", False) else before
    settings = EditSettings.from_flat(**{**fast, **given})
    image = photograph() if image is None else image
    return edit(pipeline, image, after, from_, settings=settings, num_images=num, generator=seeded(), **kept)


def apart(one: Image.Image, other: Image.Image) -> np.ndarray:
    """The largest difference of each pixel."""
    first, second = arrays([one, other])
    return np.abs(first - second).max(axis=-1)
