from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from piti.conditions import ConditionError, SketchCondition, condition_from_config
from piti.conditions.sketch import city_block_distance
from piti.core.images import Box, open_image
from piti.data.archives import list_archived

SKETCH = SketchCondition()
BITMAPS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def brute_force(lines: np.ndarray) -> np.ndarray:
    """Every pixel against every line pixel."""
    rows, columns = np.indices(lines.shape)
    found = [abs(rows - y) + abs(columns - x) for y, x in np.argwhere(lines)]
    return np.min(found, axis=0)


def drawing(width: int = 120, height: int = 90, scale: int = 1) -> Image.Image:
    """Black on white: a house, its frame touching the border; scale 4, then shrunk, is anti-aliased."""
    image = Image.new("L", (width * scale, height * scale), 255)
    draw = ImageDraw.Draw(image)
    points = [(20, 80), (20, 40), (60, 12), (100, 40), (100, 80), (20, 80)]
    draw.line([(x * scale, y * scale) for x, y in points], fill=0, width=2 * scale)
    draw.line([(0, 80 * scale), (width * scale, 80 * scale)], fill=0, width=2 * scale)
    draw.ellipse([50 * scale, 45 * scale, 70 * scale, 65 * scale], outline=0, width=2 * scale)
    return image if scale == 1 else image.resize((width, height), Image.Resampling.BOX)


LINES = np.asarray(drawing()) == 0


def read(image: Image.Image) -> np.ndarray:
    raw = SKETCH.read(image, "sketch.png")
    assert (raw.dtype, raw.shape) == (torch.uint8, (1, image.height, image.width))
    return raw[0].numpy().astype(bool)


class TestDistance:
    @given(BITMAPS)
    @settings(deadline=None)
    def test_equals_brute_force(self, lines: np.ndarray) -> None:
        found = city_block_distance(torch.from_numpy(lines)).numpy()
        if lines.any():
            assert np.array_equal(found, brute_force(lines))
        else:
            assert (found >= 255).all()

    def test_batches_of_any_shape(self) -> None:
        lines = torch.rand(2, 3, 1, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.1
        lines[0, 1] = False  # a blank page among others
        encoded = SKETCH.encode(lines.to(torch.uint8))
        assert (encoded.shape, encoded.dtype) == (lines.shape, torch.float32)
        for batch in np.ndindex(2, 3):
            assert torch.equal(encoded[batch], SKETCH.encode(lines[batch].to(torch.uint8)))

    def test_values_are_the_releases(self) -> None:
        raw = torch.zeros(1, 1, 400, dtype=torch.uint8)
        raw[..., 0] = 1
        wanted = torch.arange(400).clamp(max=255) / 127.5 - 1
        assert torch.equal(SKETCH.encode(raw)[0, 0], wanted)

    def test_beyond_the_clip_all_is_alike(self) -> None:
        raw = torch.zeros(1, 3, 100, dtype=torch.uint8)
        raw[..., 0] = 1
        encoded = SketchCondition(clip=32).encode(raw)[0, 1]
        assert torch.allclose(encoded, torch.arange(100).clamp(max=32) / 16 - 1)
        assert (SketchCondition(clip=32).encode(torch.zeros_like(raw)) == 1).all()

    @pytest.mark.parametrize("side", [1, 64, 300])
    def test_without_lines_everything_is_far(self, side: int) -> None:
        assert (SKETCH.encode(torch.zeros(1, side, side, dtype=torch.uint8)) == 1).all()

    def test_equals_opencvs_as_the_release_calls_it(self) -> None:
        cv2 = pytest.importorskip("cv2")
        for lines in (LINES, np.zeros((40, 50), bool)):
            distance = cv2.distanceTransform(np.where(lines, 0, 255).astype(np.uint8), cv2.DIST_L1, 3)
            wanted = np.clip(distance, 0, 255).astype(np.uint8) / 127.5 - 1
            found = SKETCH.encode(torch.from_numpy(lines.astype(np.uint8))[None])[0]
            assert np.allclose(found, wanted, atol=1e-6)

    def test_equals_scipys(self) -> None:
        ndimage = pytest.importorskip("scipy.ndimage")
        wanted = ndimage.distance_transform_cdt(~LINES, "taxicab")
        assert np.array_equal(city_block_distance(torch.from_numpy(LINES)), wanted)


class TestReading:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "I"])
    @pytest.mark.parametrize("light", [False, True])
    def test_every_mode_dark_on_light_and_light_on_dark(self, mode: str, light: bool) -> None:
        image = ImageOps.invert(drawing()) if light else drawing()
        if mode.startswith("I"):
            values = np.asarray(image).astype(np.uint16 if mode == "I;16" else np.int32) * 257
            image = Image.fromarray(values)
        else:
            image = image.convert(mode)
        assert np.array_equal(read(image), LINES)

    @pytest.mark.parametrize("light", [False, True])
    def test_files(self, tmp_path, light: bool) -> None:
        image = ImageOps.invert(drawing()) if light else drawing()
        for name in ("s.png", "s.bmp", "s.tif", "s.jpg"):
            image.save(tmp_path / name, **({"quality": 90} if name == "s.jpg" else {}))
            assert np.array_equal(SKETCH.load(tmp_path / name)[0], LINES)

    def test_zeros_and_ones(self) -> None:
        for values in (LINES, ~LINES):
            assert np.array_equal(read(Image.fromarray(values.astype(np.uint8))), LINES)

    def test_black_with_a_jpegs_noise(self, tmp_path) -> None:
        noisy = np.kron(np.random.default_rng(0).integers(0, 2, (5, 5)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "s.jpg", quality=100)
        assert np.asarray(Image.open(tmp_path / "s.jpg")).max() == 1
        assert not SKETCH.load(tmp_path / "s.jpg").any()

    def test_eight_bits_in_a_wider_type(self) -> None:
        for dtype in (np.uint16, np.int32):
            assert np.array_equal(read(Image.fromarray(np.where(LINES, 255, 0).astype(dtype))), LINES)

    @pytest.mark.parametrize("paper", [(255, 250, 235), (230, 230, 230), (200, 30, 30), (250, 240, 90)])
    @pytest.mark.parametrize("ink", [(0, 0, 0), (70, 70, 75), (20, 40, 120)])
    def test_ink_on_paper_of_any_colour(self, paper, ink) -> None:
        assert np.array_equal(read(Image.fromarray(np.where(LINES[..., None], ink, paper).astype(np.uint8))), LINES)

    @pytest.mark.parametrize(("ink", "paper"), [((255, 230, 0), (255,) * 3), ((0, 0, 255), (0,) * 3)])
    def test_colours_as_light_or_dark_as_their_paper(self, ink, paper) -> None:
        assert np.array_equal(read(Image.fromarray(np.where(LINES[..., None], ink, paper).astype(np.uint8))), LINES)

    @pytest.mark.parametrize(("paper", "ink"), [(60, 220), (110, 240), (235, 150), (210, 120), (245, 20)])
    def test_scans(self, paper: int, ink: int) -> None:
        """Chalk and faint pencil, with grain, on large sheets."""
        clean = np.where(np.asarray(drawing().resize((480, 360), Image.Resampling.NEAREST)) == 0, ink, paper)
        grain = np.random.default_rng(0).normal(0, 5, clean.shape)
        found = read(Image.fromarray((clean + grain).clip(0, 255).astype(np.uint8)))
        assert np.array_equal(found, clean == ink)

    @pytest.mark.parametrize("light", [False, True])
    def test_anti_aliased(self, light: bool) -> None:
        image = drawing(scale=4)
        found = read(ImageOps.invert(image) if light else image)
        assert np.array_equal(found, np.asarray(image) < 255 - 0.35 * 255)

    @pytest.mark.parametrize("tone", [0, 90, 200, 255])
    @pytest.mark.parametrize("grain", [0, 3])
    def test_a_blank_page_has_no_line(self, tone: int, grain: int) -> None:
        values = np.random.default_rng(0).normal(tone, grain, (60, 80)).clip(0, 255)
        assert not read(Image.fromarray(values.astype(np.uint8))).any()

    def test_a_soft_edge_map_is_cut_at_the_threshold(self) -> None:
        soft = ImageOps.invert(drawing()).filter(ImageFilter.GaussianBlur(1))
        for threshold in (0.2, 0.35, 0.6):
            found = SketchCondition(threshold).read(soft, "edges")[0].bool().numpy()
            assert np.array_equal(found, np.asarray(soft) > threshold * 255)

    def test_a_faint_edge_map_says_that_there_are_no_edges(self) -> None:
        soft = np.asarray(ImageOps.invert(drawing())) // 4  # nowhere above 63
        assert not read(Image.fromarray(soft)).any()

    @pytest.mark.parametrize("light", [False, True])
    def test_lines_over_more_than_half_of_the_page(self, light: bool) -> None:
        """A page crowded with thick lines, and one clearing: fewer dark pixels than light ones do not decide."""
        lines = np.zeros((96, 96), bool)
        for start in range(0, 96, 7):
            lines[start : start + 4] = lines[:, start : start + 4] = True
        lines[20:60, 20:70] = False
        assert lines.mean() > 0.55
        assert np.array_equal(read(Image.fromarray((lines == light).astype(np.uint8) * 255)), lines)

    def test_a_few_specks_do_not_decide(self) -> None:
        values = np.where(LINES, 90, 180).astype(np.uint8)
        values[5, 5:8] = 255
        found = read(Image.fromarray(values))
        assert np.array_equal(found[10:], LINES[10:])


class TestTransparency:
    @pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (200, 0, 0), (255, 255, 0)])
    @pytest.mark.parametrize("hidden", [0, 255])
    def test_strokes_on_nothing(self, ink, hidden: int) -> None:
        """Whatever colour is stored where nothing can be seen."""
        pixels = np.full((*LINES.shape, 4), hidden, np.uint8)
        pixels[..., 3] = 0
        pixels[LINES] = (*ink, 255)
        assert np.array_equal(read(Image.fromarray(pixels)), LINES)

    @pytest.mark.parametrize("light", [False, True])
    def test_a_page_with_transparent_corners(self, light: bool) -> None:
        image = (ImageOps.invert(drawing()) if light else drawing()).convert("RGBA")
        pixels = np.array(image)
        pixels[:6, :6] = (0, 0, 0, 0)
        pixels[:6, -6:] = (255, 255, 255, 0)
        assert np.array_equal(read(Image.fromarray(pixels)), LINES)

    def test_nothing_at_all(self) -> None:
        assert not read(Image.new("RGBA", (8, 6))).any()
        assert not read(Image.new("LA", (8, 6), (255, 0))).any()


class TestErrors:
    def test_floating_point_pixels(self) -> None:
        with pytest.raises(ConditionError, match=r"s\.tif: floating-point pixels have no fixed range; save .* PNG"):
            SKETCH.read(Image.new("F", (4, 4)), "s.tif")

    @pytest.mark.parametrize("raw", [torch.zeros(4, 4), torch.zeros(1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)])
    def test_what_cannot_be_raw(self, raw) -> None:
        with pytest.raises(ConditionError, match=r"it: expected lines \[1, h, w\] of torch.uint8.*got .*; convert it"):
            SKETCH.checked(raw, "it")

    def test_values_that_are_no_lines(self) -> None:
        raw = torch.tensor([[[0, 1, 255, 255]]], dtype=torch.uint8)
        with pytest.raises(ConditionError, match=r"it: 2 pixels hold values such as 255; lines are 1, the rest is 0"):
            SKETCH.checked(raw, "it")
        assert SKETCH.checked(raw[..., :2], "it").tolist() == [[[0, 1]]]

    @pytest.mark.parametrize("threshold", [0.0, 1.0, 89.0])
    def test_a_threshold_out_of_range(self, threshold: float) -> None:
        with pytest.raises(ConditionError, match=f"SketchCondition:\n.*'threshold' = {threshold}"):
            SketchCondition(threshold)
        with pytest.raises(ConditionError, match=r"r\.yaml:\n.*'threshold'"):
            condition_from_config({"kind": "sketch", "threshold": threshold}, "r.yaml")


class TestResizing:
    @given(BITMAPS, st.data())
    @settings(deadline=None)
    def test_every_source_pixel_counts_once(self, lines: np.ndarray, data) -> None:
        """Shrinking: pixel j of n goes to pixel floor((j + 1/2) · size / n). Enlarging: PIL's nearest."""
        height, width = lines.shape
        box_width, box_height = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
        left, top = data.draw(st.integers(0, width - box_width)), data.draw(st.integers(0, height - box_height))
        target_size = data.draw(st.integers(1, 20) | st.tuples(st.integers(1, 20), st.integers(1, 20)))
        cut = lines[top : top + box_height, left : left + box_width]
        for axis, length in enumerate(cut.shape):
            size = target_size if isinstance(target_size, int) else target_size[axis]
            if size >= length:
                places = np.asarray(Image.fromarray(np.arange(length, dtype=np.int32)[None]).resize((size, 1), 0))[0]
                cut = np.take(cut, places, axis)
            else:
                target = (2 * np.arange(length) + 1) * size // (2 * length)
                cut = np.stack([np.compress(target == k, cut, axis).any(axis) for k in range(size)], axis)
        raw = torch.from_numpy(lines.astype(np.uint8))[None]
        found = SKETCH.crop_resize(raw, Box(left, top, box_width, box_height), target_size)
        assert found.dtype == torch.uint8
        assert np.array_equal(found[0], cut)

    @pytest.mark.parametrize("size", [100, 64, 33, 7])
    def test_thin_lines_survive_and_stay_thin(self, size: int) -> None:
        for place in range(128):
            raw = torch.zeros(1, 128, 128, dtype=torch.uint8)
            raw[:, place] = 1
            small = SKETCH.crop_resize(raw, Box(0, 0, 128, 128), size)
            assert small.sum() == size
            assert small.amax(-1).sum() == 1

    def test_the_same_size_is_a_cut(self) -> None:
        raw = torch.from_numpy(LINES.astype(np.uint8))[None]
        assert torch.equal(SKETCH.crop_resize(raw, Box(20, 10, 64, 64), 64), raw[:, 10:74, 20:84])


class TestTheRest:
    def test_null_is_what_a_blank_page_encodes_to(self) -> None:
        assert SKETCH.channels == 1
        null = SKETCH.null(2, 4, 5, dtype=torch.float64)
        assert (null.shape, null.dtype) == ((2, 1, 4, 5), torch.float64)
        assert torch.equal(null[0].float(), SKETCH.encode(torch.zeros(1, 4, 5, dtype=torch.uint8)))
        assert (SketchCondition(null_value=0.0).null(1, 2, 2) == 0).all()

    @given(BITMAPS)
    @settings(deadline=None)
    def test_a_preview_is_read_as_the_same_lines(self, lines: np.ndarray) -> None:
        """However few or many there are."""
        raw = torch.from_numpy(lines.astype(np.uint8))[None]
        preview = SKETCH.preview(raw)
        assert (preview.mode, preview.size) == ("RGB", lines.shape[::-1])
        assert torch.equal(SKETCH.read(preview, "preview"), raw)

    def test_a_preview_is_dark_on_white(self) -> None:
        grey = np.asarray(SKETCH.preview(torch.from_numpy(LINES.astype(np.uint8))[None]).convert("L"))
        assert (grey[LINES] < 40).all()
        assert (grey[~LINES] == 255).all()

    def test_flip_and_squared(self) -> None:
        raw = torch.from_numpy(LINES.astype(np.uint8))[None]
        assert np.array_equal(SKETCH.flip(raw)[0], LINES[:, ::-1])
        assert np.array_equal(SKETCH.squared(raw)[0], LINES[:, 15:105])

    def test_round_trip_through_json(self) -> None:
        condition = SketchCondition(threshold=0.6, null_value=0.0, clip=32)
        config = json.loads(json.dumps(condition.to_config()))
        assert config == {"kind": "sketch", "threshold": 0.6, "null_value": 0.0, "clip": 32}
        assert condition_from_config(config) == condition
        assert condition_from_config({"kind": "sketch"}) == SKETCH
        with pytest.raises(ConditionError, match="clip"):
            SketchCondition(clip=1)
        with pytest.raises(ConditionError, match="unknown key 'treshold'; did you mean 'threshold'"):
            condition_from_config({"kind": "sketch", "treshold": 0.5}, "r.yaml")


def test_scenes_edge_maps(scenes) -> None:
    """Real soft edge maps, white on black, some with more line than paper: read at the threshold, every one."""
    shares = []
    for edge in list_archived(scenes / "scenes-train-003.tar", {".edge.jpg"})[::10]:
        soft = np.asarray(open_image(edge))
        raw = SKETCH.load(edge)
        assert np.array_equal(raw[0].numpy(), soft > 0.35 * 255), edge
        shares.append(float(raw.float().mean()))
        assert torch.equal(SKETCH.read(SKETCH.preview(raw), "preview"), raw)
    assert max(shares) > 0.5
