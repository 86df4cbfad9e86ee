"""Colour management: sRGB unchanged, other profiles converted, and high bit depths."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from piti.core.images import ImageError, loss_as_rgb, read_rgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def deep_png(path, values):
    """Colours of 16 bits, which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("profile", [SRGB, b"damaged", b""])
def test_pixels_stay_where_a_profile_says_nothing_else(tmp_path, profile):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), PIXELS)
    assert loss_as_rgb(tmp_path / "a.png") == ""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_another_profile_is_converted_in_every_mode_and_transparency_stays(tmp_path, mode, cases):
    with Image.open(cases / "20-icc/26-icc/wide_gamut.png") as wide:
        profile, image = wide.info["icc_profile"], wide.convert("RGB").quantize(8)
    plain = image.convert("RGB")
    image = image if mode == "P" else plain.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 0))
    plain.save(tmp_path / "plain.png", icc_profile=profile)
    image.save(tmp_path / "a.png", icc_profile=profile)
    wanted = np.full_like(np.asarray(plain), 255) if mode == "RGBA" else np.asarray(read_rgb(tmp_path / "plain.png"))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), wanted)
    assert loss_as_rgb(tmp_path / "plain.png") == "the colours of its ICC profile"


def test_a_profile_of_another_kind_of_picture_is_left_out(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "a.png", icc_profile=SRGB)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png"))[..., 0], PIXELS[..., 0])


def test_sixteen_bit_colours(tmp_path):
    whole = PIXELS.astype(np.uint16) * 257
    assert np.array_equal(np.asarray(read_rgb(deep_png(tmp_path / "a.png", whole))), PIXELS)
    with pytest.raises(
        ImageError, match=r"a\.png: its 16-bit colours end at about \d+, but they are read as 0\.\.65535"
    ):
        read_rgb(deep_png(tmp_path / "a.png", whole // 16))


def test_black_is_black(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png").getextrema() == ((0, 0),) * 3
