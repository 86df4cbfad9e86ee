from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from piti.core import images
from piti.core.images import Box, ImageError, center_box, crop_resize, open_image, png_text, read_rgb, save_png


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class TestRange:
    def test_every_pixel_value_survives_the_round_trip(self):
        values = np.arange(256, dtype=np.uint8).reshape(16, 16)
        pixels = np.stack([values, values.T, 255 - values], axis=-1)
        tensor = images.to_tensor(pixels)
        assert tensor.shape == (3, 16, 16)
        assert (tensor.min(), tensor.max()) == (-1, 1)
        assert np.array_equal(np.asarray(images.to_pil(tensor)), pixels)

    def test_values_outside_are_clipped_not_wrapped(self):
        assert images.to_uint8(torch.tensor([-7.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]

    def test_bfloat16_is_rounded_in_float32(self):
        assert images.to_uint8(torch.tensor([0.0, 1.0], dtype=torch.bfloat16)).tolist() == [128, 255]

    def test_a_batch_becomes_a_list_in_order(self):
        batch = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 1.0)])
        assert [image.getpixel((0, 0)) for image in images.to_pil(batch)] == [(0, 0, 0), (255, 255, 255)]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_an_error(self, value):
        with pytest.raises(ImageError, match="NaN or infinite"):
            images.to_uint8(torch.tensor([0.0, value]))

    @pytest.mark.parametrize("shape", [(2, 8, 8), (8, 8), (1, 2, 3, 8, 8)])
    def test_wrong_shapes_are_named(self, shape):
        with pytest.raises(ImageError, match=str(list(shape)).replace("[", r"\[")):
            images.to_pil(torch.zeros(shape))


class TestOpen:
    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16", "1"])
    def test_the_mode_is_kept(self, tmp_path, mode):
        image = Image.new(mode, (5, 4))
        image.save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png").mode == mode

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_truncated(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        noise(64, 64).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
        assert images.image_size(path) == (64, 64)  # the header is whole, so only decoding can tell
        with pytest.raises(ImageError, match=rf"a\{suffix}: damaged or incomplete"):
            open_image(path)

    @pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00"])
    def test_no_picture(self, tmp_path, content):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.png: .*save it as PNG or JPEG"):
            open_image(path)

    def test_missing_and_folder(self, tmp_path):
        with pytest.raises(ImageError, match=r"none\.png: no such file"):
            open_image(tmp_path / "none.png")
        with pytest.raises(ImageError, match="is a folder; give an image file"):
            open_image(tmp_path)

    @pytest.mark.parametrize("side", [9_000, 60_000])
    def test_a_bomb_is_refused_before_decoding(self, tmp_path, side, monkeypatch):
        path = tmp_path / "bomb.png"
        path.write_bytes(png_claiming(side, side))
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(ImageError, match=r"bomb\.png: .*make it smaller"):
            open_image(path)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_exif_orientation_is_applied(self, tmp_path, orientation, suffix):
        """The corner that the tag calls the top left ends there, whatever the stored layout."""
        upright = noise(6, 4)
        stored_from_upright = {
            1: None,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        way = stored_from_upright[orientation]
        stored = upright if way is None else upright.transpose(way)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"a{suffix}"
        stored.save(path, exif=exif)
        assert images.image_size(path) == (6, 4)
        assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(upright))

    def test_broken_exif_does_not_lose_the_picture(self, tmp_path):
        noise(8, 8).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00XX broken")
        assert open_image(tmp_path / "a.jpg").size == (8, 8)

    def test_the_size_of_a_png_is_read_without_its_pixels(self, tmp_path, monkeypatch):
        noise(30, 20).save(tmp_path / "a.png")
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        assert images.image_size(tmp_path / "a.png") == (30, 20)


class TestReadRGB:
    def test_transparent_parts_lie_on_white(self, tmp_path):
        image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
        image.putpixel((1, 0), (10, 20, 30, 0))
        image.save(tmp_path / "a.png")
        assert list(np.asarray(read_rgb(tmp_path / "a.png"))[0].tolist()) == [[10, 20, 30], [255, 255, 255]]

    def test_sixteen_bit_greys_are_scaled_not_clipped(self, tmp_path):
        Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
        assert np.asarray(read_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]

    @pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA"])
    def test_every_mode_becomes_rgb(self, tmp_path, mode):
        path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
        noise(4, 4).convert("RGB").convert("L" if mode == "LA" else mode).convert(mode).save(path)
        assert read_rgb(path).mode == "RGB"

    def test_float_pixels_have_no_range(self, tmp_path):
        Image.new("F", (2, 2)).save(tmp_path / "a.tiff")
        with pytest.raises(ImageError, match="floating-point"):
            read_rgb(tmp_path / "a.tiff")


class TestCrop:
    @pytest.mark.parametrize("size", [(480, 360), (360, 480), (101, 64), (64, 64), (30, 47)])
    def test_center_crop_is_the_plain_one_to_the_pixel(self, size):
        """Cut first, then resize: the filter must not see what lies outside the square."""
        image = noise(*size)
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        wanted = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BICUBIC)
        for source in (image, np.asarray(image)):
            assert np.array_equal(np.asarray(crop_resize(source, center_box(*size), 64)), np.asarray(wanted))

    def test_the_result_depends_on_the_box_alone(self):
        image = noise(40, 40)
        other = Image.new("RGB", (40, 40), "red")
        box = Box(10, 12, 20, 20)
        other.paste(image.crop((10, 12, 30, 32)), (10, 12))
        assert np.array_equal(np.asarray(crop_resize(image, box, 9)), np.asarray(crop_resize(other, box, 9)))

    @given(st.integers(1, 999), st.integers(1, 999))
    @settings(max_examples=50, deadline=None)
    def test_center_box_is_the_largest_square_and_centred(self, width, height):
        box = center_box(width, height)
        assert box.width == box.height == min(width, height)
        for start, length, whole in ((box.left, box.width, width), (box.top, box.height, height)):
            assert 0 <= (whole - length - start) - start <= 1


class TestSave:
    def test_text_of_a_name_in_another_encoding_is_written_out(self, tmp_path):
        save_png(noise(8, 8), tmp_path / "a.png", {"condition": "stra\udcdfe.png"})
        assert png_text(tmp_path / "a.png") == {"condition": "stra%DFe.png"}

    def test_text_comes_back_and_folders_are_made(self, tmp_path):
        path = tmp_path / "new" / "a.png"
        save_png(noise(8, 8), path, {"seed": "7", "prompt": "Straße — 通り"})
        with Image.open(path) as image:
            assert image.text == {"seed": "7", "prompt": "Straße — 通り"}
            assert np.array_equal(np.asarray(image), np.asarray(noise(8, 8)))

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        save_png(noise(8, 8), path)
        before = path.read_bytes()

        def full(self, file, **_):
            file.write(b"\x89PNG half a pict")
            raise OSError("No space left on device")

        monkeypatch.setattr(Image.Image, "save", full)
        with pytest.raises(ImageError, match=r"a\.png: cannot be written \(No space"):
            save_png(noise(8, 8, seed=1), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_interrupt_leaves_nothing_either(self, tmp_path, monkeypatch):
        def interrupted(self, file, **_):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_png(noise(8, 8), tmp_path / "a.png")
        assert list(tmp_path.iterdir()) == []

    def test_no_place_to_write(self, tmp_path):
        (tmp_path / "taken").write_bytes(b"old")
        with pytest.raises(ImageError, match=r"a\.png: cannot be written") as error:
            save_png(noise(8, 8), tmp_path / "taken/a.png")
        assert ".tmp" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["taken"]

    def test_ordinary_permissions(self, tmp_path):
        """Not those of a private temporary file: others of the group may read results."""
        save_png(noise(2, 2), tmp_path / "a.png")
        (tmp_path / "b").write_text("")
        assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode

    def test_only_png(self, tmp_path):
        with pytest.raises(ImageError, match=r"a\.jpg: images are written as PNG"):
            save_png(noise(2, 2), tmp_path / "a.jpg")


def test_a_file_of_several_pictures_holds_no_exact_values(tmp_path: Path) -> None:
    """Which of its pages is meant, nobody can say; of an animated photograph the first frame is taken."""
    file = tmp_path / "pages.tif"
    Image.new("L", (4, 4), 1).save(file, save_all=True, append_images=[Image.new("L", (4, 4), 2)])
    assert np.asarray(open_image(file)).max() == 1
    with pytest.raises(ImageError, match=r"pages\.tif: contains 2 images \(pages or frames\); save the right one"):
        open_image(file, exact=True)
