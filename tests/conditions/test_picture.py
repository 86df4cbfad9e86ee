"""Images as conditions, also in pairs, such as the release's normals and depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, PictureCondition, SeveralCondition, condition_from_config
from piti.core.images import Box, to_tensor

PICTURE = PictureCondition()
BOTH = SeveralCondition({"normal": PICTURE, "depth": PICTURE}, together=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def test_a_picture_is_seen_in_its_own_colours(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "normal.png")
    raw = PICTURE.load(tmp_path / "normal.png")
    assert (raw.dtype, tuple(raw.shape)) == (torch.uint8, (3, 6, 8))
    assert torch.equal(PICTURE.encode(raw), to_tensor(PIXELS))
    assert torch.equal(PICTURE.read(PICTURE.preview(raw), "its preview"), raw)
    assert torch.equal(PICTURE.take(PIXELS), raw)
    assert torch.equal(PICTURE.checked(raw, "it"), raw)
    assert torch.equal(PICTURE.null(1, 2, 2), torch.ones(1, 3, 2, 2))


def test_it_is_resized_as_by_pil_and_mirrored_as_it_is() -> None:
    raw = torch.from_numpy(PIXELS).movedim(-1, 0)
    cut = PICTURE.crop_resize(raw, Box(1, 0, 6, 6), (4, 3))
    wanted = Image.fromarray(PIXELS[:, 1:7]).resize((3, 4), Image.Resampling.NEAREST)
    assert np.array_equal(cut.movedim(0, -1).numpy(), np.asarray(wanted))
    assert torch.equal(PICTURE.flip(raw), raw.flip(-1))


def test_greys_are_colours_and_deep_numbers_are_refused() -> None:
    grey = PICTURE.read(Image.fromarray(PIXELS[..., 0]), "depth.png")
    assert torch.equal(grey, torch.from_numpy(PIXELS[..., 0]).expand(3, -1, -1))
    for values in (PIXELS[..., 0].astype(np.uint16) * 257, PIXELS[..., 0].astype(np.float32)):
        with pytest.raises(ConditionError, match=r"depth.png: has more than 8 bits"):
            PICTURE.read(Image.fromarray(values), "depth.png")


@pytest.mark.parametrize("raw", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)])
def test_other_tensors_are_refused(raw: torch.Tensor) -> None:
    with pytest.raises(ConditionError, match=r"it: expected RGB \[3, h, w\] of torch.uint8"):
        PICTURE.checked(raw, "it")


def test_parts_that_belong_together_are_all_given() -> None:
    raw = BOTH.load({"depth": PIXELS, "normal": PIXELS[::-1].copy()})
    assert torch.equal(BOTH.encode(raw), torch.cat([to_tensor(PIXELS[::-1].copy()), to_tensor(PIXELS)]))
    assert torch.equal(BOTH.checked(raw, "it"), raw)
    with pytest.raises(ConditionError, match="normal alone: this model reads normal and depth together; give depth"):
        BOTH.load({"normal": PIXELS})
    raw[1] = 0
    with pytest.raises(ConditionError, match="1 for normal and depth"):
        BOTH.checked(raw, "it")


def test_parts_that_belong_together_are_null_at_once() -> None:
    encoded, uniform = torch.zeros(2, 6, 2, 2), torch.tensor([[0.05], [0.5]])
    assert BOTH.draws == 1
    dropped = BOTH.dropped(encoded, uniform, 0.1)
    assert torch.equal(dropped, torch.stack([torch.ones(6, 2, 2), torch.zeros(6, 2, 2)]))


def test_what_is_saved() -> None:
    assert condition_from_config(PICTURE.to_config()) == PICTURE
    assert condition_from_config(BOTH.to_config()) == BOTH
    apart = SeveralCondition(BOTH.parts)
    assert "together" not in apart.to_config()
    assert condition_from_config(apart.to_config()) == apart
    assert not BOTH.reads_like(apart)
    with pytest.raises(ConditionError, match="unknown key 'null_valu'"):
        condition_from_config({"kind": "picture", "null_valu": 1})
