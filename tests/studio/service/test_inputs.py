"""Depth given as arrays."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, GeometryCondition, MaskCondition
from piti.core.images import ImageError
from piti.studio.service.inputs import NoPicture, read_arrays, read_picture
from piti.studio.service.schema import TooLarge
from piti.studio.service.service import Studio

DEPTH = np.linspace(1, 3, 12 * 16, dtype=np.float32).reshape(12, 16)


def file_of(**arrays: np.ndarray) -> bytes:
    """The arrays as a `.npz`."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def packed_by(method: int) -> bytes:
    """An archive whose members may be unpacked without bound."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr("depth.npy", b"")
    return data.getvalue()


def test_depth_may_be_arrays(studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    condition = GeometryCondition()
    monkeypatch.setattr(studio.models["mask"].pipeline, "condition", condition)
    np.save(tmp_path / "d.npy", DEPTH)
    expected = condition.from_depth(torch.from_numpy(DEPTH))
    alone = studio.read_condition("mask", tmp_path / "d.npy", "d.NPY")
    archived = studio.read_condition("mask", file_of(depth=DEPTH), "d.npz")
    for raw in (alone, archived):
        assert torch.equal(raw.nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize(
    ("name", "data", "kind", "words"),
    [
        ("d.exr", b"x", NoPicture, "16-bit grey PNG"),
        ("d.npy", b"x", ImageError, "damaged"),
        ("d.npz", b"x", ImageError, "damaged"),
        ("d.npz", file_of(depth=np.ones((500, 500))), TooLarge, "more than 200 pixels"),
        ("d.npz", file_of(depth=DEPTH, more=np.zeros(100_000)), TooLarge, "more than 200 pixels"),
        ("d.npz", file_of(depth=np.ones((15, 16))), TooLarge, "more than 200 pixels"),
        ("d.npz", packed_by(zipfile.ZIP_LZMA), ImageError, "another compression than NumPy"),
        ("d.npz", file_of(depth=DEPTH)[30:], ImageError, "damaged"),
    ],
)
def test_arrays_that_are_no_depth_or_too_large(name: str, data: bytes, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        read_arrays(GeometryCondition(), data, name, 200)


def test_pictures_are_left_to_others() -> None:
    assert read_arrays(GeometryCondition(), b"x", "d.png", 200) is None


@pytest.mark.parametrize("ignore_colour", [(255, 255, 255), (0, 0, 0), None])
def test_what_is_transparent_is_of_no_class_whatever_its_colour(ignore_colour: tuple[int, int, int] | None) -> None:
    """It was taken for black, which is far from every class where nothing is black."""
    sky, road = (128, 128, 128), (0, 0, 0) if ignore_colour is None else (128, 64, 128)
    table = ClassTable(names=("sky", "road"), ids=(1, 2), colours=(sky, road), ignore=0, ignore_colour=ignore_colour)
    pixels = np.full((32, 32, 4), (*sky, 255), np.uint8)
    pixels[16:, :, :3] = road
    pixels[..., 0] += 1  # as JPEG leaves it
    pixels[:, 20:] = (9, 200, 9, 0)
    raw = read_picture(MaskCondition(table), Image.fromarray(pixels), "mask.png")
    expected = np.repeat([0, 1], 16)[:, None].repeat(32, 1)
    expected[:, 20:] = 255
    assert np.array_equal(raw[0], expected)
