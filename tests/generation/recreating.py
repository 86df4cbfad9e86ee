"""Recreated images, and images with changed metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from piti.conditions import condition_from_config
from piti.core.images import png_text, save_png
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.generation.metadata import model_name
from piti.generation.options import GenerationOptions
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.pipelines.test_pipeline import mask

FAST = GenerationOptions.from_flat(num=4, seed=5, steps=2, batch=3)


def pipeline_of(config: dict[str, Any]) -> PITIPipeline:
    torch.manual_seed(0)
    condition = condition_from_config(config)
    encoder: Any = {**TINY_MODEL["encoder"], "in_channels": condition.channels}  # type: ignore[dict-item]
    unet: Any = TINY_MODEL["unet"]
    base = Translator(encoder_spec=encoder, unet_spec=unet, image_size=16, patch_size=2)
    pipeline = PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), condition, defaults={"steps": 2})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def translated_mask(pipeline: PITIPipeline, folder: Path, options: GenerationOptions) -> Path:
    """The folder with a mask's images m_0.png, …"""
    mask(1).save(folder / "m.png")
    translate_files(pipeline, TranslationFiles([folder / "m.png"], folder / "first"), options, "tiny")
    return folder / "first"


def again(pipeline: PITIPipeline, file: Path, out: Path, inputs: Sequence[Path] = (), **given: Any) -> list[str]:
    """Make an image again; the notes."""
    record = read_record(file)
    settings = record.options(GenerationOptions.from_flat(**given), given)
    name = model_name(record.model, record.upsampler)
    return translate_files(record.applied(pipeline), TranslationFiles(inputs, out, like=record), settings, name).notes


def with_text(file: Path, target: Path, **changes: str | None) -> Path:
    """The same picture with other metadata; None: without this key."""
    text = png_text(file) | {f"piti:{key}": value for key, value in changes.items() if value is not None}
    gone = {f"piti:{key}" for key, value in changes.items() if value is None}
    with Image.open(file) as image:
        save_png(image, target, {key: value for key, value in text.items() if key not in gone})
    return target
