"""Bundled models by name, and their upsamplers."""

from __future__ import annotations

import pytest
import torch

from piti.checkpoints.folder import ModelError, bundled_models
from piti.core.errors import UserError
from piti.pipelines.pipeline import PITIPipeline


def test_the_upsampler_of_street_takes_one_step_and_no_other() -> None:
    pipeline = PITIPipeline.from_pretrained("street")
    pipeline.set_progress_bar_config(disable=True)
    mask = bundled_models()["street"] / "examples" / "high_street.png"
    generator = torch.Generator().manual_seed(0)
    image = pipeline(mask, steps=1, size=64, generator=generator).images[0]
    assert min(image.size) == 64
    with pytest.raises(UserError, match="trained for one step from noise"):
        pipeline(mask, steps=1, size=64, upsampler_steps=4)


def test_an_upsampler_that_sees_masks_is_refused_for_sketches() -> None:
    with pytest.raises(ModelError, match="its upsampler reads another condition than the base"):
        PITIPipeline.from_pretrained("sketch", upsampler="street")
