"""What tests of the evaluation share: the referee's functions, real weights where present."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import SHARED


@pytest.fixture
def judge(referee: Path) -> ModuleType:
    """The referee's functions."""
    spec = importlib.util.spec_from_file_location("referee", referee)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def squeezenet() -> Path:
    """SqueezeNet 1.1 trained on ImageNet."""
    path = SHARED / "weights" / "squeezenet1_1_features.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name}: not present at {path} (set PITI_SHARED)")
    return path
