from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import tiny_recipe


@pytest.fixture
def recipe(tiny_data: Path, tmp_path: Path) -> Path:
    values = tiny_recipe(tiny_data)
    values["data"] = {"size": 16}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
