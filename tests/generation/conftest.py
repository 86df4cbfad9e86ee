"""An image with its metadata, generated once."""

from __future__ import annotations

from pathlib import Path

import pytest

from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from tests.generation.recreating import FAST
from tests.pipelines.test_pipeline import mask, tiny_pipeline


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third of four images of a mask, made in a batch of three."""
    place = tmp_path_factory.mktemp("made")
    mask(1, 22, 16).save(place / "street.png")
    translate_files(tiny_pipeline(), TranslationFiles([place / "street.png"], place / "first"), FAST, "tiny")
    return place / "first/street_2.png"
