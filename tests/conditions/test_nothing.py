from __future__ import annotations

import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, NoCondition, condition_from_config
from piti.core.images import Box

NOTHING = NoCondition()


def test_nothing_passes_through() -> None:
    raw = NOTHING.read(Image.new("L", (6, 4)), "test")
    assert raw.shape == (0, 4, 6)
    assert NOTHING.crop_resize(raw, Box(0, 0, 4, 4), 8).shape == (0, 8, 8)
    assert NOTHING.crop_resize(raw, Box(0, 0, 4, 4), (8, 6)).shape == (0, 8, 6)
    assert NOTHING.flip(raw).shape == raw.shape
    encoded = NOTHING.encode(torch.stack([raw, raw]))
    assert encoded.shape == (2, NOTHING.channels, 4, 6)
    assert encoded.shape == NOTHING.null(2, 4, 6).shape
    assert encoded.dtype == torch.float32
    assert NOTHING.preview(raw).size == (6, 4)


def test_written_and_read_back() -> None:
    assert isinstance(condition_from_config(NOTHING.to_config()), NoCondition)
    with pytest.raises(ConditionError, match="kind 'none' takes no classes"):
        condition_from_config({"kind": "none", "classes": 3})


def test_what_is_something_is_refused() -> None:
    assert NOTHING.checked(torch.empty(0, 4, 4), "it").shape == (0, 4, 4)
    with pytest.raises(ConditionError, match=r"it: expected no planes, \[0, h, w\], got \[1, 4, 4\]"):
        NOTHING.checked(torch.zeros(1, 4, 4), "it")
    with pytest.raises(ConditionError, match=r"mask.png: this model takes no condition"):
        NOTHING.load("mask.png")
