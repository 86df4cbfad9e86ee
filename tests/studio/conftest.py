"""A studio with two tiny models, also as a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from piti.pipelines.computing import Computing
from piti.studio.service.schema import Limits
from piti.studio.service.service import Studio
from tests.studio.serving import answering
from tests.studio.tiny import tiny_model, tiny_sketcher

LIMITS = Limits(upload_bytes=400_000, upload_seconds=1.0, pixels=200_000, samples=4, steps=500, size=64, waiting=24)


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Serves `mask` and `lines`."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_model(Path("mask"))
        tiny_sketcher(Path("lines"))
        made = Studio(("mask", "lines"), LIMITS, Computing("cpu", engine="torch"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def address(studio: Studio) -> Iterator[str]:
    """Where the studio answers, without its page."""
    with answering(studio, ["studio.example"]) as found:
        yield found.rstrip("/")
