"""Chamfer distances of lines: shifts by known pixels, missing and added lines, sketches in files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from piti.conditions import SketchCondition
from piti.data.edges import LineSpec, draw_lines, thinned
from piti.evaluation.per_condition import AlignmentError, PerCondition
from piti.evaluation.sketches import FAR, compare_lines, edges_of, line_distance


def column(x: int, side: int = 40) -> torch.Tensor:
    lines = torch.zeros(side, side, dtype=torch.bool)
    lines[:, x] = True
    return lines


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7])
def test_lines_shifted_by_k_pixels_are_k_apart(k: int) -> None:
    found = compare_lines(column(10 + k), column(10), far=16)
    assert found.to_edges == found.to_lines == found.chamfer == k
    assert found.kept == found.meant == (k <= 2)


def test_distances_are_clipped() -> None:
    found = compare_lines(column(39), column(0), far=16)
    assert (found.to_edges, found.to_lines) == (16, 16)
    assert compare_lines(column(39), column(0), far=10.5).chamfer == 10.5


def test_what_is_missing_and_what_is_added_are_told_apart() -> None:
    both = column(5) | column(30)
    added = compare_lines(both, column(5), far=16)
    assert (added.kept, added.meant, added.to_edges, added.to_lines) == (1, 0.5, 0, 8)
    missing = compare_lines(column(5), both, far=16)
    assert (missing.kept, missing.meant, missing.to_edges, missing.to_lines) == (0.5, 1, 8, 0)


def test_no_edges_and_no_lines() -> None:
    nothing = torch.zeros(40, 40, dtype=torch.bool)
    assert compare_lines(nothing, column(5), far=10) == (0, 0, 10, 10)
    with pytest.raises(AlignmentError, match="the sketch has no lines"):
        compare_lines(column(5), nothing, far=10)


def test_edges_are_those_of_the_extractor_at_64_pixels() -> None:
    image = drawn(64, 64)
    assert torch.equal(edges_of(image), draw_lines(np.asarray(image), LineSpec(shortest=4)))


def test_edges_of_a_large_image_are_one_pixel_wide() -> None:
    lines = edges_of(drawn(400, 300))
    assert lines.any()
    assert torch.equal(thinned(lines), lines)


def test_small_things_have_edges_in_images_of_any_size() -> None:
    board = np.full((256, 256, 3), 30, np.uint8)
    board[40:46, 40:46] = board[200:206, 100:106] = 220  # 6 px, whose edges are some 20 px long
    small, large = (edges_of(Image.fromarray(board).resize((side, side))) for side in (256, 768))
    assert small.any()
    assert 2.5 * small.sum() < large.sum() < 3.5 * small.sum()  # lines are drawn at 256 px, and enlarged


def drawn(width: int, height: int, fill: str = "white") -> Image.Image:
    """A bright box on black."""
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=fill)
    return image


def sketched(image: Image.Image, path: Path, shift: int = 0) -> Path:
    """Its edges as a sketch, `shift` pixels to the right and downwards."""
    lines = edges_of(image).roll((shift, shift), (0, 1))
    Image.fromarray((lines.numpy() * 255).astype(np.uint8)).save(path)
    return path


def test_files(tmp_path: Path) -> None:
    image = drawn(85, 64)
    for name in ("near_0", "near_1", "off_0"):
        image.save(tmp_path / f"{name}.png")
    Image.new("L", (85, 64), 255).save(tmp_path / "blank.png")
    image.save(tmp_path / "blank_0.png")
    conditions = {
        "near": sketched(image, tmp_path / "near.png"),
        "off": sketched(image, tmp_path / "off.png", 3),
        "blank": tmp_path / "blank.png",
    }
    groups = {
        "near": [tmp_path / "near_0.png", tmp_path / "near_1.png"],
        "off": [tmp_path / "off_0.png"],
        "blank": [tmp_path / "blank_0.png"],
    }
    found = line_distance(groups, conditions, SketchCondition())
    assert isinstance(found, PerCondition)
    assert (found.stems, found.blank, found.images) == (("near", "off"), ("blank",), 3)
    near = found.measures(torch.tensor([0]))
    assert near["line_distance_px", ""] == near["line_distance", ""] == 0
    assert near["lines_kept", ""] == near["edges_meant", ""] == 100
    off = found.measures(torch.tensor([1]))
    assert 2.5 < off["line_distance_px", ""] <= 3
    assert off["line_distance", ""] == pytest.approx(100 * off["line_distance_px", ""] / math.hypot(85, 64))
    both = found.measures()
    assert both["line_distance_px", ""] == pytest.approx(off["line_distance_px", ""] / 2)
    assert both["lines_to_edges_px", ""] + both["edges_to_lines_px", ""] == pytest.approx(
        2 * both["line_distance_px", ""]
    )


def test_a_square_image_of_a_wide_sketch_is_compared_with_its_centre(tmp_path: Path) -> None:
    drawn(64, 64).save(tmp_path / "a_0.png")
    wide = Image.new("L", (96, 64))
    wide.paste(Image.open(sketched(drawn(64, 64), tmp_path / "centre.png")), (16, 0))
    ImageDraw.Draw(wide).line((5, 0, 5, 63), fill=255)  # beyond the square
    wide.save(tmp_path / "a.png")
    found = line_distance({"a": [tmp_path / "a_0.png"]}, {"a": tmp_path / "a.png"}, SketchCondition())
    assert found.measures()["line_distance_px", ""] == 0


def test_a_blank_image_is_as_far_as_can_be(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a_0.png")
    conditions = {"a": sketched(drawn(64, 64), tmp_path / "a.png")}
    values = line_distance({"a": [tmp_path / "a_0.png"]}, conditions, SketchCondition()).measures()
    assert values["line_distance_px", ""] == FAR * 64 == 16
    assert values["lines_kept", ""] == 0


def test_sketches_without_any_line_are_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "a_0.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name)
    with pytest.raises(AlignmentError, match="none of the 1 sketches has a line"):
        line_distance({"a": [tmp_path / "a_0.png"]}, {"a": tmp_path / "a.png"}, SketchCondition())
