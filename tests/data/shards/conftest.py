"""Shared fixtures for shards."""

from __future__ import annotations

import pytest

from piti.data import FolderSpec
from piti.data.shards import fetch as fetching


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch) -> None:
    """Fetching tries again at once."""
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))


@pytest.fixture
def spec(tmp_path):
    """A spec of shards, with a cache of the test's own."""

    def made(*shards, **changes) -> FolderSpec:
        settings = {"size": 8, "shard_cache": tmp_path / "cache", "shuffle_shards": 2, "flip": False, **changes}
        return FolderSpec(shards=tuple(map(str, shards)), **settings)

    return made
