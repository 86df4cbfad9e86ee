"""Regions: where conditions differ, dilated and feathered."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from piti.conditions import Condition, GeometryCondition, SketchCondition, TextCondition
from piti.editing.regions import changed, derived, distance, softened
from tests.generation.test_inputs import several_pipeline
from tests.pipelines.test_pipeline import mask, seeded, tiny_pipeline


class TestRegions:
    def test_distances_are_euclidean(self) -> None:
        inside = torch.rand(23, 17, generator=seeded()) < 0.02
        points = inside.nonzero().float()
        grid = torch.stack(torch.meshgrid(torch.arange(23.0), torch.arange(17.0), indexing="ij"), dim=-1)
        want = torch.cdist(grid.view(-1, 2), points).amin(dim=1).view(23, 17)
        torch.testing.assert_close(distance(inside, 40), want)
        torch.testing.assert_close(distance(inside, 4), torch.where(want <= 4, want, 5.0))
        assert (distance(torch.zeros(5, 5, dtype=torch.bool), 3) == 4).all()

    def test_outside_is_zero_and_the_change_is_whole(self) -> None:
        differs = torch.zeros(100, 100, dtype=torch.bool)
        differs[40:50, 40:50] = True
        region = derived(differs, (100, 100), dilate=0.05, feather=0.1)
        far = distance(differs, 99)
        assert (region[far <= 5] == 1).all()
        assert (region[far > 15] == 0).all()
        ring = (far > 7) & (far < 13)
        assert ((region[ring] > 0) & (region[ring] < 1)).all()
        assert torch.equal(derived(differs, (100, 100), 0, 0) == 1, differs)

    def test_a_thin_change_survives_shrinking(self) -> None:
        differs = torch.zeros(480, 640, dtype=torch.bool)
        differs[:, 321] = True
        region = derived(differs, (48, 64), 0, 0)
        assert (region[:, 32] == 1).all()
        assert region.sum() == 48

    def test_a_thin_region_is_repainted_too(self) -> None:
        inside = torch.zeros(40, 40, dtype=torch.bool)
        inside[:, 20] = True
        assert torch.equal(softened(inside, 10) == 1, inside)
        assert (softened(torch.ones(8, 8, dtype=torch.bool), 3) == 1).all()

    def test_of_a_sketch_what_lines_enclose_changes(self) -> None:
        before = torch.zeros(1, 100, 100, dtype=torch.uint8)
        after = before.clone()
        after[0, 20:61, [20, 60]] = 1
        after[0, [20, 60], 20:61] = 1
        found = changed(SketchCondition(), before, after)
        assert found[20:61, 20:61].all()
        assert not found[:15].any()
        lines = torch.zeros_like(before)
        lines[0, 50:52] = 1
        moved = lines.roll(3, 1)
        found = changed(SketchCondition(), lines, moved)
        assert found[50:55].all()  # and between them
        assert not found[:47].any()
        assert not changed(SketchCondition(), lines, lines).any()

    def test_edges_that_resizing_moved_are_no_change(self) -> None:
        rows, columns = torch.meshgrid(torch.arange(90), torch.arange(90), indexing="ij")
        after = ((rows - 40) ** 2 + (columns - 45) ** 2 < 700).to(torch.uint8)[None]
        before = torch.nn.functional.interpolate(after[None], (30, 30), mode="nearest")
        before = torch.nn.functional.interpolate(before, (90, 90), mode="nearest")[0]
        kinds = [tiny_pipeline().condition, SketchCondition()]
        assert changed(kinds[0], before, after).sum() > 50
        assert all(not changed(kind, before, after, within=3).any() for kind in kinds)
        after[0, 80, :] = 1  # thinner than a pixel of the smaller
        for kind in kinds:
            assert changed(kind, before, after, within=3)[80].all()
            assert changed(kind, after, before, within=3)[80].all()

    def test_of_geometry_holes_are_equal_and_grain_is_none(self) -> None:
        before = torch.zeros(4, 8, 8, dtype=torch.float16)
        before[:, 0] = torch.nan
        after = before + 0.01
        after[0, 5, 5] = 0.5
        after[:, 6, 6] = torch.nan
        found = changed(GeometryCondition(), before, after)
        assert found.nonzero().tolist() == [[5, 5], [6, 6]]

    def test_of_several_parts_any(self) -> None:
        both: Condition = several_pipeline().condition
        lines = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
        one, other = mask(1), mask(1)
        other.putpixel((3, 4), (other.getpixel((3, 4)) + 1) % 3)  # type: ignore[operator]
        first, second = both.load({"mask": one, "sketch": lines}), both.load({"mask": other, "sketch": lines})
        assert changed(both, first, second).nonzero().tolist() == [[4, 3]]
        assert not changed(both, first, first).any()
        assert changed(both, first, both.load({"mask": one})).all()

    def test_of_texts_all_or_nothing(self) -> None:
        text = TextCondition()
        assert changed(text, text.tokens("a"), text.tokens("b")).all()
        assert not changed(text, text.tokens("a"), text.tokens("a")).any()
