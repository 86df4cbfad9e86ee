"""Photographs for line extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.prepare import trees


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs of squares, in two depths, with dots in their names."""
    for k, name in enumerate(("a.jpg", "b.v2.png", "deep/er/c.webp", "deep/d.JPG")):
        pixels = np.full((30, 40, 3), 250, np.uint8)
        pixels[8:20, 6 + k : 24 + k] = (10, 40, 90)
        trees.save(tmp_path / "photos" / name, pixels)
    return tmp_path / "photos"
