"""Augmentation of lines towards hand drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from piti.conditions import ClassTable, MaskCondition, SeveralCondition, SketchCondition
from piti.core.spec import SpecError
from piti.data.drawn import DrawnSpec, bent, with_gaps
from piti.data.edges import thinned
from piti.data.folders import PairedFolder
from piti.data.pairs import FolderSpec
from piti.training import read_recipe

SIDE = 48
TABLE = ClassTable(names=("a", "b"), ids=(0, 1), colours=((250, 10, 10), (10, 250, 10)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(width: int = 1) -> Tensor:
    """The outline of a square."""
    lines = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    lines[10:38, 10:38] = True
    lines[10 + width : 38 - width, 10 + width : 38 - width] = False
    return lines


def test_lines_stay_where_nothing_is_asked_for() -> None:
    lines = square(3)
    assert torch.equal(DrawnSpec(share=0)(lines, seeded()), lines)
    assert torch.equal(DrawnSpec(share=1, thin=0, wobble=0, gaps=0)(lines, seeded()), lines)
    blank = torch.zeros_like(lines)
    assert torch.equal(DrawnSpec(share=1)(blank, seeded()), blank)


def test_the_share_of_samples_is_kept_and_the_generator_decides() -> None:
    lines, spec = square(3), DrawnSpec(share=0.3)
    changed = [not torch.equal(spec(lines, seeded(seed)), lines) for seed in range(200)]
    assert 40 <= sum(changed) <= 80
    one, again, other = (DrawnSpec(share=1)(lines, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_thin_lines_are_as_thinning_leaves_them() -> None:
    spec = DrawnSpec(share=1, thin=1, wobble=0, gaps=0)
    assert torch.equal(spec(square(3), seeded()), thinned(square(3)))


def test_bending_moves_lines() -> None:
    shift = torch.zeros(2, SIDE, SIDE)
    shift[0], shift[1] = 3, -5  # what lies three rows below and five columns to the left
    assert torch.equal(bent(square(), shift), square().roll((-3, 5), (0, 1)))
    half = bent(square(), shift / 2)
    assert half.sum() >= square().sum()  # half a pixel off, no line is lost
    edge = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    edge[:, 0] = True
    assert bent(edge, torch.full((2, SIDE, SIDE), -2.0))[:, :2].all()  # goes on beyond the edge


def test_a_wobbling_outline_stays_whole_and_near() -> None:
    spec = DrawnSpec(share=1, thin=0, wobble=0.02, gaps=0)
    far = torch.nn.functional.max_pool2d(square()[None, None].float(), 17, 1, 8)[0, 0] > 0
    moved = 0
    for seed in range(20):
        lines = spec(square(), seeded(seed))
        assert not (lines & ~far).any()
        inside = flooded(~lines)
        assert not inside[SIDE // 2, SIDE // 2], f"seed {seed}: the outline has a gap"
        moved += int((lines != square()).sum())
    assert moved > 20 * 10


def flooded(free: Tensor) -> Tensor:
    """What can be reached from the corner through free pixels."""
    reached = torch.zeros_like(free)
    reached[0, 0] = True
    while True:
        wider = torch.nn.functional.max_pool2d(reached[None, None].float(), 3, 1, 1)[0, 0] > 0
        # by sides alone: a line of pixels that touch by corners holds
        wider &= free & (reached | reached.roll(1, 0) | reached.roll(-1, 0) | reached.roll(1, 1) | reached.roll(-1, 1))
        if torch.equal(wider, reached):
            return reached
        reached = wider


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_gaps_leave_out_a_share_where_the_noise_is_low(share: float) -> None:
    lines, noise = square(), torch.randn(SIDE, SIDE, generator=seeded())
    left = with_gaps(lines, noise, share)
    count = int(lines.sum())
    assert int(left.sum()) == count - int(share * count)
    assert not (left & ~lines).any()
    if share:
        assert noise[left].min() > noise[lines & ~left].max()


def test_training_samples_alone_are_changed(tmp_path: Path) -> None:
    for name in ("images", "sketches"):
        (tmp_path / name).mkdir()
    sketch = SketchCondition()
    for k in range(3):
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(tmp_path / f"images/{k}.png")
        sketch.preview(square(3)[None].to(torch.uint8)).save(tmp_path / f"sketches/{k}.png")
    plain = FolderSpec(root=tmp_path, conditions="sketches", size=SIDE, crop_scale=(1, 1))
    folders = [
        PairedFolder(spec, sketch, "train") for spec in (plain, plain.model_copy(update={"drawn": DrawnSpec(share=1)}))
    ]
    usual, changed = (folder.sample(0, seeded(1)) for folder in folders)
    assert torch.equal(usual.image, changed.image)
    assert not torch.equal(usual.condition, changed.condition)
    assert changed.condition.dtype == torch.uint8
    assert torch.equal(folders[0].center(0).condition, folders[1].center(0).condition)


def test_of_several_parts_the_lines_alone() -> None:
    several = SeveralCondition({"mask": MaskCondition(TABLE), "sketch": SketchCondition()})
    mask = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE) % 2
    raw = several.take({"mask": mask.to(torch.int16), "sketch": square(3)[None].to(torch.uint8)})
    spec = DrawnSpec(share=1, thin=1, wobble=0, gaps=0)
    made = several.redrawn(raw, lambda lines: spec(lines, seeded()))
    assert torch.equal(made[:3], raw[:3])
    assert torch.equal(made[3] != 0, thinned(square(3)))
    alone = several.take({"mask": mask.to(torch.int16)})
    assert torch.equal(several.redrawn(alone, lambda lines: ~lines), alone)


def test_masks_have_no_lines() -> None:
    raw = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert MaskCondition.redrawn(object(), raw, lambda lines: ~lines) is raw  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"'data.drawn' is for sketches"):
        read_recipe("street", ["data.drawn={}"])
    for name in ("sketch", "street-several"):
        assert read_recipe(name, ["data.drawn={share: 0.25}"]).data.drawn == DrawnSpec(share=0.25)
