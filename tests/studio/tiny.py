"""Tiny models, and images for them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from piti.conditions import condition_from_config
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.pipelines.test_pipeline import tiny_pipeline

COLOURS = np.array([[128, 128, 128], [128, 64, 128], [64, 0, 128]], np.uint8)


def tiny_model(folder: Path) -> str:
    """A model of masks with three classes: its folder."""
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def tiny_sketcher(folder: Path) -> str:
    """A model of sketches: its folder."""
    torch.manual_seed(0)
    base = Translator(
        encoder_spec=TINY_MODEL["encoder"] | {"in_channels": 1},  # type: ignore[operator]
        unet_spec=TINY_MODEL["unet"],  # type: ignore[arg-type]
        image_size=16,
        patch_size=2,
    )
    condition = condition_from_config({"kind": "sketch", "clip": 16})
    PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), condition, defaults={"steps": 3}).save_pretrained(folder)
    return str(folder)


def ids(width: int = 40, height: int = 30) -> np.ndarray:
    """A mask of class ids: sky over road, with a car."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    labels[height // 2 - 4 : height // 2 + 4, 8:20] = 2
    return labels


def painted(labels: np.ndarray) -> Image.Image:
    """The same in class colours."""
    return Image.fromarray(COLOURS[labels])


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture as a file."""
    data = BytesIO()
    image.save(data, format=kind, **options)  # type: ignore[arg-type]
    return data.getvalue()
