"""Conditions of any aspect ratio: exact shapes, no distortion, unchanged results for squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.conditions import ConditionError, SketchCondition, condition_from_config
from piti.core.errors import UserError
from piti.core.images import Box
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationError, TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.pipelines.canvas import Canvas, batches_alike, canvas_of, enlarged, extended, fitted
from piti.pipelines.cascade import Batch
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_cascade import tiny_cascade, tiny_upsampler
from tests.pipelines.test_pipeline import CLASSES, arrays, mask, seeded, tiny_pipeline

MASK = condition_from_config({"kind": "mask", "classes": CLASSES})
BASE = tiny_pipeline().base  # 16 px; sides are multiples of 4
PLAIN, CONDITIONAL = tiny_upsampler(False), tiny_upsampler(True)  # to 32 px


def raw_of(height: int, width: int) -> torch.Tensor:
    return torch.zeros(1, height, width, dtype=torch.uint8)


class TestCanvas:
    @given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([None, PLAIN, CONDITIONAL]), st.integers(16, 64))
    @settings(deadline=None)
    def test_proportions_are_kept_to_the_last_pixel(self, height: int, width: int, upsampler: Any, size: int) -> None:
        if max(height, width) > 4 * min(height, width):
            with pytest.raises(ConditionError, match=r"m\.png: .*at most 4:1"):
                canvas_of(MASK, raw_of(height, width), BASE, upsampler, size, "m.png")
            return
        canvas = canvas_of(MASK, raw_of(height, width), BASE, upsampler, size)
        long, short = max(canvas.image_height, canvas.image_width), min(canvas.image_height, canvas.image_width)
        assert short == size
        assert abs(long - size * max(height, width) / min(height, width)) <= 0.5
        assert (canvas.image_height >= canvas.image_width) == (height >= width) or long == short
        assert canvas.scale == (1 if upsampler is None else 2)
        for side, whole in zip((canvas.image_height, canvas.image_width), canvas.base_size, strict=True):
            assert whole % BASE.granularity == 0
            assert upsampler is None or (2 * whole) % upsampler.granularity == 0
            assert side <= whole * canvas.scale < side + canvas.scale * 4  # not more than is needed

    @pytest.mark.parametrize(
        ("height", "width", "image", "base_size"),
        [
            (50, 100, (32, 64), (16, 32)),
            (100, 50, (64, 32), (32, 16)),
            (333, 517, (32, 50), (16, 28)),  # 49.7 x 32
            (517, 333, (50, 32), (28, 16)),
            (7, 7, (32, 32), (16, 16)),
            (7, 28, (32, 128), (16, 64)),
        ],
    )
    def test_by_hand(self, height: int, width: int, image: tuple[int, int], base_size: tuple[int, int]) -> None:
        canvas = canvas_of(MASK, raw_of(height, width), BASE, PLAIN)
        assert canvas == Canvas(*image, base_size, 2)
        assert canvas.crop(torch.zeros(2, 3, 2 * base_size[0], 2 * base_size[1])).shape == (2, 3, *image)

    def test_a_text_is_square(self) -> None:
        pipeline = text_pipeline()
        canvas = pipeline.prepare("the sea").canvas
        assert canvas == Canvas(16, 16, (16, 16))

    @pytest.mark.parametrize("size", [0, 1, 15, 129])
    def test_impossible_sizes(self, size: int) -> None:
        with pytest.raises(UserError, match=r"^size \d+: this model was trained for 32 px; give 16 to 128"):
            canvas_of(MASK, raw_of(8, 8), BASE, PLAIN, size)

    def test_the_base_alone_makes_smaller_images(self) -> None:
        with pytest.raises(
            UserError, match=r"16 px without an upsampler \(it has none, or base_only is set\); give 16 to 64"
        ):
            tiny_cascade()(mask(1), size=128, base_only=True)
        assert tiny_cascade()(mask(1), size=128).images[0].size == (128, 128)

    def test_batches_are_of_one_canvas_and_keep_the_order(self) -> None:
        wide, tall = Canvas(16, 30, (16, 32)), Canvas(30, 16, (32, 16))
        wider = Canvas(16, 32, (16, 32))
        assert batches_alike([wide, tall, wider, wide, tall], 2) == [[0, 2], [3], [1, 4]]

    def test_enlarged(self) -> None:
        assert enlarged(Canvas(16, 40, (16, 40)), 192) == (480, 192)
        assert enlarged(Canvas(256, 512, (64, 128), 4), 192) == (512, 256)


class TestFitted:
    def test_a_square_is_resized_and_nothing_else(self) -> None:
        raw = MASK.read(mask(1, 50, 50), "mask")
        canvas = canvas_of(MASK, raw, BASE, None)
        assert torch.equal(fitted(MASK, raw, canvas, BASE), MASK.crop_resize(raw, Box(0, 0, 50, 50), 16))

    @pytest.mark.parametrize(("encoder_size", "zoom"), [(16, 1), (32, 2), (8, 0.5)])
    def test_it_lies_over_the_image_whatever_the_encoders_scale(self, encoder_size: int, zoom: float) -> None:
        specs: Any = {"encoder_spec": TINY_MODEL["encoder"] | {"size": encoder_size}, "unet_spec": TINY_MODEL["unet"]}  # type: ignore[operator]
        base = Translator(**specs, image_size=16, patch_size=2)
        raw = MASK.read(mask(2, 97, 41), "mask")
        canvas = canvas_of(MASK, raw, base, None)
        found = fitted(MASK, raw, canvas, base)
        height, width = (int(side * zoom) for side in canvas.base_size)
        assert found.shape == (1, height, width)
        taken = (round(canvas.image_height * zoom), round(canvas.image_width * zoom))
        part = MASK.crop_resize(raw, Box(0, 0, 97, 41), taken)
        assert torch.equal(found[:, : taken[0], : taken[1]], part)
        assert torch.equal(found[:, :, taken[1] :], part[:, :, -1:].expand(-1, -1, width - taken[1]))
        tokens = base.encode(MASK.encode(found)[None])
        assert (
            base(torch.randn(1, 3, *canvas.base_size), torch.tensor([5]), tokens).output.shape[-2:] == canvas.base_size
        )

    def test_an_upsampler_sees_the_same_canvas(self) -> None:
        raw = MASK.read(mask(2, 97, 41), "mask")
        canvas = canvas_of(MASK, raw, BASE, CONDITIONAL)
        assert fitted(MASK, raw, canvas, CONDITIONAL).shape[-2:] == (2 * canvas.base_size[0], 2 * canvas.base_size[1])

    def test_distances_to_lines_do_not_change_beside_what_is_added(self) -> None:
        sketch = SketchCondition(clip=32)
        raw = (torch.rand(1, 41, 97, generator=seeded(3)) < 0.01).to(torch.uint8)
        canvas = canvas_of(MASK, raw, BASE, None)
        part = sketch.crop_resize(raw, Box(0, 0, 97, 41), (16, 38))
        found = sketch.encode(fitted(sketch, raw, canvas, BASE))
        assert found.shape == (1, 16, 40)
        assert torch.equal(found[..., :38], sketch.encode(part))

    def test_extended(self) -> None:
        raw = torch.tensor([[[1, 2], [3, 4]]])
        assert extended(raw, (3, 4)).tolist() == [[[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4]]]


class TestPipeline:
    @pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (517, 333), (333, 517)])
    def test_the_image_lies_under_the_whole_mask(self, width: int, height: int, monkeypatch: Any) -> None:
        """With a network that paints what it is told, the image is the mask, resized by nearest neighbour."""
        pipeline, given = tiny_pipeline(), mask(4, width, height)

        def paint(base: Any, _: Any, batch: Batch, *rest: Any) -> torch.Tensor:
            raws = [fitted(MASK, one.raw, one.canvas, base.translator) for one in batch.conditions]
            return MASK.encode(torch.stack(raws)) * 2 - 1

        monkeypatch.setattr("piti.pipelines.pipeline.sample_cascade", paint)
        image = pipeline(given).images[0]
        short = min(width, height)
        assert image.size == (round(16 * width / short), round(16 * height / short))
        expected = np.asarray(given.resize(image.size, Image.Resampling.NEAREST))
        assert np.array_equal(np.asarray(image).argmax(-1), expected)

    @pytest.mark.parametrize("make", [tiny_pipeline, tiny_cascade, lambda: tiny_cascade(True)])
    def test_mixed_shapes_and_any_batch_give_the_same_images(self, make: Any) -> None:
        pipeline = make()
        masks = [mask(1, 40, 20), mask(2, 20, 40), mask(3), mask(4, 39, 20), mask(5, 51, 33)]
        last = (pipeline.upsampler or pipeline.base).image_size
        whole = pipeline(masks, num_images=2, generator=seeded(), batch_size=10).images
        sizes = [(2, 1), (1, 2), (1, 1), (39 / 20, 1), (51 / 33, 1)]
        assert [image.size for image in whole[::2]] == [(round(last * w), round(last * h)) for w, h in sizes]
        again = pipeline(masks, num_images=2, generator=seeded(), batch_size=3).images
        for one, other in zip(whole, again, strict=True):  # a small image's rounding may differ in its last bit
            assert np.abs(arrays([one]) - arrays([other])).mean() < 0.05
        assert np.abs(arrays(whole[0:1]) - arrays(whole[1:2])).max() > 20

    def test_square_takes_the_middle(self) -> None:
        pipeline, given = tiny_cascade(), mask(1, 40, 20)
        cropped = pipeline(given, square=True, generator=seeded()).images[0]
        by_hand = pipeline(given.crop((10, 0, 30, 20)), generator=seeded()).images[0]
        assert cropped.size == (32, 32)
        assert cropped.tobytes() == by_hand.tobytes()

    def test_size_is_the_short_side(self) -> None:
        assert tiny_cascade()(mask(1, 40, 20), size=40).images[0].size == (80, 40)
        assert tiny_cascade()(mask(1), size=17).images[0].size == (17, 17)
        assert tiny_cascade()(mask(1), size=24, base_only=True).images[0].size == (24, 24)

    def test_far_ends_differ(self) -> None:
        """Both ends of a wide image are made, each its own: the noise is not that of a square."""
        image = np.asarray(tiny_pipeline()(mask(1, 40, 20), generator=seeded()).images[0], np.int16)
        assert np.abs(image[:, :16] - image[:, 16:]).max() > 20


class TestFiles:
    @pytest.fixture
    def masks(self, tmp_path: Path) -> Path:
        folder = tmp_path / "masks"
        folder.mkdir()
        for name, width, height in (("a", 40, 20), ("b", 16, 16), ("c", 20, 40), ("d", 40, 20)):
            mask(ord(name), width, height).save(folder / f"{name}.png")
        return folder

    def test_every_image_has_its_masks_proportions(self, masks: Path, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        options = GenerationOptions.from_flat(steps=1)
        files = TranslationFiles([masks], tmp_path / "out")
        report = translate_files(tiny_pipeline(), files, options, "tiny", lambda *a: seen.append(a))
        sizes = {path.stem: Image.open(path).size for path in report.made}
        assert sizes == {"a_0": (32, 16), "b_0": (16, 16), "c_0": (16, 32), "d_0": (32, 16)}
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert Image.open(report.sheet).size == (2 * 384 + 12, 3 * 192 + 384 + 20)
        again = translate_files(tiny_pipeline(), files, options, "tiny")
        assert len(again.kept) == 4
        translate_files(
            tiny_pipeline(),
            TranslationFiles([masks / "d.png"], tmp_path / "one"),
            GenerationOptions.from_flat(steps=1),
            "tiny",
        )
        one, other = (np.asarray(Image.open(tmp_path / d / "d_0.png"), np.int16) for d in ("out", "one"))
        assert np.abs(one - other).max() <= 1

    def test_what_is_too_long_is_named_before_anything_is_made(self, masks: Path, tmp_path: Path) -> None:
        mask(0, 81, 20).save(masks / "long.png")
        message = r"(?s)1 of 5 inputs.*long\.png: is 81 x 20 pixels; at most 4:1.*by square"
        with pytest.raises(TranslationError, match=message):
            translate_files(
                tiny_pipeline(),
                TranslationFiles([masks], tmp_path / "out"),
                GenerationOptions.from_flat(steps=1),
                "tiny",
            )
        assert not (tmp_path / "out").exists()
        report = translate_files(
            tiny_pipeline(),
            TranslationFiles([masks], tmp_path / "out"),
            GenerationOptions.from_flat(steps=1, square=True),
            "tiny",
        )
        assert {Image.open(path).size for path in report.made} == {(16, 16)}
        with Image.open(report.made[0]) as image:
            assert image.text["piti:square"] == "True"  # type: ignore[attr-defined]

    def test_on_the_command_line(self, masks: Path, tmp_path: Path) -> None:
        tiny_pipeline().save_pretrained(tmp_path / "model")
        command = ["translate", str(masks / "a.png"), "--model", str(tmp_path / "model"), "-n", "1", "--steps", "1"]
        cases = (("p", [], (32, 16)), ("s", ["--square"], (16, 16)), ("l", ["--size", "20"], (40, 20)))
        for name, flags, size in cases:
            run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / name), *flags])
            assert run.exit_code == 0, run.output
            assert Image.open(tmp_path / name / "a_0.png").size == size
        kept = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "s")])
        assert "16 x 16, but 32 x 16 is requested" in str(kept.exception)


@pytest.mark.parametrize("size", [(96, 48), (48, 96)])
def test_the_bundled_model_at_two_to_one(size: tuple[int, int]) -> None:
    pipeline = PITIPipeline.from_pretrained("street")
    pipeline.set_progress_bar_config(disable=True)
    classes = np.zeros(size[::-1], np.uint8)  # sky
    classes[size[1] // 2 :] = 3  # road below
    image = pipeline(Image.fromarray(classes), generator=seeded(), steps=4, upsampler_steps=1).images[0]
    assert image.size == (size[0] * 256 // 48, size[1] * 256 // 48)
    pixels = np.asarray(image, np.float32)
    axis = int(size[0] > size[1])
    first, second = np.split(pixels, 2, axis=axis)
    assert np.abs(first - second).mean() > 4
    assert pixels[: len(pixels) // 3].mean() > pixels[-len(pixels) // 3 :].mean() + 20  # a sky above a road
