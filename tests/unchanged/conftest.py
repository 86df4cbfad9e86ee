"""Use one thread, since the order of sums affects the last bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unchanged.tiny import save_models


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: cascade, sketch, text, several, baseline."""
    folder = tmp_path_factory.mktemp("unchanged-models")
    save_models(folder)
    return folder
