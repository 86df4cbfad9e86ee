"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from piti.core.images import ImageError
from piti.core.sheets import grid, zoomed


class TestGrid:
    def test_every_picture_is_where_it_belongs(self):
        colours = [["red", "green", "blue"], ["black", "yellow", "cyan"]]
        rows = [[Image.new("RGB", (10, 8), colour) for colour in row] for row in colours]
        sheet = grid(rows, gap=3, background="white")
        assert sheet.size == (3 * 10 + 4 * 3, 2 * 8 + 3 * 3)
        for r, row in enumerate(rows):
            for c, image in enumerate(row):
                box = (3 + c * 13, 3 + r * 11, 13 + c * 13, 11 + r * 11)
                assert np.array_equal(np.asarray(sheet.crop(box)), np.asarray(image))

    def test_unequal_rows_and_sizes(self):
        sheet = grid([[Image.new("RGB", (10, 10), "red")], [Image.new("RGB", (4, 6), "blue")] * 2], gap=1)
        assert sheet.size == (10 + 4 + 3, 10 + 6 + 3)
        assert sheet.getpixel((1 + 3, 12)) == (0, 0, 255)  # centred below the wider one

    @pytest.mark.parametrize(("background", "darker"), [("white", True), ("black", False)])
    def test_headings_stay_above_their_column_and_are_legible(self, background, darker):
        rows = [[Image.new("RGB", (40, 10), background)] * 2]
        plain = np.asarray(grid(rows, gap=2, background=background)).astype(int)
        sheet = np.asarray(grid(rows, gap=2, background=background, headings=["", "a very long heading"])).astype(int)
        band = sheet[: -plain.shape[0]]
        changed = np.argwhere(band != plain[0, 0, 0])
        assert len(changed)
        assert changed[:, 1].min() >= 44
        assert changed[:, 1].max() < 84
        assert (band.mean() < plain.mean()) == darker

    def test_a_heading_takes_as_many_lines_as_its_column_asks_for(self):
        rows = [[Image.new("RGB", (60, 10), "white")] * 2]
        heights = [grid(rows, headings=["one", words]).height for words in ("two", "two three four five", "w" * 40)]
        assert heights == [heights[0], heights[0] + 16, heights[0]]
        above = np.asarray(grid(rows, headings=["one", "two three four five"]).convert("L"))[:-18]
        first, second = (np.argwhere(part < 128)[:, 0] for part in (above[:, :66], above[:, 66:]))
        assert first.min() > second.min() + 10  # one line stands next to its picture

    def test_nothing_to_show(self):
        with pytest.raises(ImageError, match="at least one image"):
            grid([[], []])


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), (192, 192)), ((64, 48), (192, 144)), ((100, 10), (100, 10)), ((300, 200), (300, 200))],
)
def test_small_pictures_are_zoomed_by_a_whole_factor(size: tuple[int, int], shown: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    made = zoomed(Image.fromarray(pixels), 192)
    assert made.size == shown
    factor = shown[0] // size[0]
    assert np.array_equal(np.asarray(made), pixels.repeat(factor, 0).repeat(factor, 1))
