"""Resizing and normalisation for networks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from piti.evaluation.fitting import Fitting, as_it_is, centre_square, normalised, shorter_side, stretched
from tests.evaluation.tiny_features import CPU, picture


def pixels(fitting: Fitting, image: Image.Image) -> np.ndarray:
    return np.array(fitting.apply(image))


def test_ways_to_a_size() -> None:
    wide = picture(60, 40)
    bicubic = Image.Resampling.BICUBIC
    assert np.array_equal(pixels(centre_square(20), wide), wide.crop((10, 0, 50, 40)).resize((20, 20), bicubic))
    assert np.array_equal(pixels(stretched(20), wide), wide.resize((20, 20), bicubic))
    assert np.array_equal(pixels(shorter_side(20, 16), wide), wide.resize((30, 20), bicubic).crop((7, 2, 23, 18)))
    assert as_it_is("so").apply(wide) is wide
    tall = pixels(shorter_side(20, 20), picture(40, 61))
    assert np.array_equal(tall, picture(40, 61).resize((20, 30), bicubic).crop((0, 5, 20, 25)))


def test_numbers_of_pixels() -> None:
    image = Image.new("RGB", (3, 2), (255, 51, 0))
    x = normalised([image, image], (0.5, 0.2, 0.1), (0.25, 1, 0.1), CPU)
    assert x.shape == (2, 3, 2, 3)
    assert x[1, :, 1, 2].tolist() == pytest.approx([2, 0, -1], abs=1e-6)
