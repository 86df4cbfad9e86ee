"""Editing: repainted and kept regions, and the networks used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from piti.conditions import Condition, TextCondition
from piti.core.errors import UserError
from piti.core.images import ImageError
from piti.editing import VARIETY, EditError, EditSettings, edit
from piti.editing.regions import mixed
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.editing.edits import apart, edited, photograph, two_masks
from tests.evaluation.seen import NOISELESS, baseline_pipeline
from tests.generation.test_inputs import several_pipeline
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline


@pytest.mark.parametrize("conditional", [False, True])
def test_what_is_outside_comes_back_to_the_bit(conditional: bool) -> None:
    image = photograph(120, 120)
    result = edited(tiny_cascade(conditional), image, keep_exact=True)
    assert result.images[0].size == result.region.size == (120, 120)
    outside = np.asarray(result.region) == 0
    difference = apart(result.images[0], image)
    assert (difference[outside] == 0).all()
    assert (difference[~outside] > 5).mean() > 0.5
    assert result.outside == [math.inf]
    assert result.share == pytest.approx((~outside).mean())
    car = np.zeros((120, 120), bool)
    car[60:84, 12:36] = True
    assert (np.asarray(result.region)[car] == 255).all()
    assert 0.04 < result.share < 0.2


def test_without_it_the_image_has_the_models_size_and_says_how_well_it_came_back() -> None:
    result = edited(tiny_cascade(), measure=True)
    image = photograph().resize((32, 32), Image.Resampling.BICUBIC)
    outside = np.asarray(result.region) == 0
    one, other = arrays([result.images[0], image])
    error = ((one[outside] - other[outside]) ** 2).mean()
    assert result.images[0].size == result.region.size == (32, 32)
    assert result.outside[0] == pytest.approx(10 * math.log10(255**2 / error), rel=1e-4)
    assert result.returned is not None
    assert edited(tiny_cascade()).returned is None
    assert edited(tiny_cascade(), measure=True, steps=20, refinements=3).returned > result.returned  # type: ignore[operator]


def test_fresh_noise_is_for_the_region_alone() -> None:
    pipeline = tiny_pipeline()
    same = edited(pipeline, num=3, variety=0.0).images
    assert apart(same[0], same[1]).max() <= 1
    result = edited(pipeline, num=3, variety=1.0)
    inside = np.asarray(result.region) > 0
    difference = apart(result.images[0], result.images[1])
    assert difference[inside].max() > 10
    again = edited(pipeline, num=3, variety=1.0, batch_size=2).images
    assert np.abs(arrays(again) - arrays(result.images)).max() <= 1


def test_without_the_images_own_condition_everything_is_repainted() -> None:
    result = edited(tiny_cascade(), unknown=True, num=2)
    assert result.share == 1
    assert result.outside == [None, None]
    assert apart(*result.images).max() <= 1  # no fresh noise unless asked for: else nothing of the image is left
    assert apart(*edited(tiny_cascade(), unknown=True, num=2, variety=0.5).images).max() > 10


@pytest.mark.parametrize("unknown", [False, True])
def test_a_region_may_be_given(unknown: bool) -> None:
    region = Image.new("L", (80, 80))
    region.paste(255, (40, 0, 80, 80))
    result = edited(tiny_cascade(), region=region, unknown=unknown, keep_exact=True)
    assert result.share == pytest.approx(0.5, abs=0.03)
    assert (np.asarray(result.region)[:, :19] == 0).all()
    assert (apart(result.images[0], photograph())[:, :19] == 0).all()
    assert apart(result.images[0], photograph())[:, 21:].max() > 10


def test_with_a_region_the_image_shows_the_change_inside_and_the_rest_outside() -> None:
    before, after = two_masks()
    after[:, 30:, 30:] = 2  # a change that the region leaves out
    region = Image.new("L", (80, 80))
    region.paste(255, (0, 0, 40, 80))
    settings, pipeline = EditSettings.from_flat(steps=2, base_only=True), tiny_cascade()
    shows = edit(pipeline, photograph(), after, before, region, settings).shows
    assert shows is not None
    assert torch.equal(shows[..., :20], after[..., :20])
    assert torch.equal(shows[..., 20:], before[..., 20:])
    assert edit(pipeline, photograph(), after, None, region, settings).shows is None
    assert torch.equal(edit(pipeline, photograph(), after, before, None, settings).shows, after)  # type: ignore[arg-type]
    assert torch.equal(edit(pipeline, photograph(), after, None, None, settings).shows, after)  # type: ignore[arg-type]


def test_of_texts_and_of_different_parts_nothing_is_mixed() -> None:
    inside, text = torch.ones(4, 4, dtype=torch.bool), TextCondition()
    assert mixed(text, text.tokens("a"), text.tokens("b"), inside) is None
    both: Condition = several_pipeline().condition
    lines = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    one, two = both.load({"mask": mask(1)}), both.load({"mask": mask(1), "sketch": lines})
    assert mixed(both, one, two, inside) is None
    assert torch.equal(mixed(both, one, both.load({"mask": mask(2)}), ~inside), one)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [120, 240, 60])
def test_nothing_outside_a_thin_white_line_changes(side: int) -> None:
    """Whatever the sizes of image and region are; and the line itself does not vanish."""
    region, image = Image.new("L", (240, 240)), photograph(side, side)
    region.paste(255, (100, 0, 101, 240))
    result = edited(tiny_cascade(), image, region=region, keep_exact=True)
    kept = np.ones((side, side), bool)
    kept[:, 100 * side // 240] = False
    difference = apart(result.images[0], image)
    assert (difference[kept] == 0).all()
    assert difference[~kept].max() > 5
    assert result.outside == [math.inf]


def test_what_is_transparent_is_not_white() -> None:
    region = Image.new("RGBA", (80, 80), (255, 255, 255, 0))
    with pytest.raises(EditError, match="black everywhere, so"):
        edited(tiny_cascade(), region=region)
    region.paste((255, 255, 255, 255), (40, 0, 80, 80))
    assert edited(tiny_cascade(), region=region).share == pytest.approx(0.5, abs=0.03)


def test_images_are_seen_as_files_are() -> None:
    """Upright, and on white where they are transparent."""
    image = photograph().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 10))
    white = photograph()
    white.paste("white", (0, 0, 40, 10))
    turned = white.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    first, *others = (edited(tiny_cascade(), one, variety=0.0).images[0] for one in (white, image, turned))
    assert all(apart(first, other).max() == 0 for other in others)


def test_what_eight_bits_cannot_hold_is_not_kept_exactly() -> None:
    opaque = photograph().convert("RGBA")
    clear = opaque.copy()
    clear.putpixel((3, 3), (0, 0, 0, 254))
    assert edited(tiny_cascade(), opaque, keep_exact=True).outside == [math.inf]
    deep = Image.fromarray(np.full((40, 40), 700, np.uint16))
    for image, lost in ((clear, "its transparency"), (deep, "beyond 8 bits"), (opaque.convert("CMYK"), "as CMYK")):
        with pytest.raises(EditError, match=f"would lose .*{lost}.*leave keep_exact out"):
            edited(tiny_cascade(), image, keep_exact=True)


def test_nothing_kept_is_not_kept_exactly() -> None:
    with pytest.raises(EditError, match=r"the whole image would be repainted.*as from or from_text, or give a region"):
        edited(tiny_cascade(), unknown=True, keep_exact=True)
    with pytest.raises(EditError, match="paint less of the region white"):
        edited(tiny_cascade(), region=Image.new("L", (40, 40), 255), keep_exact=True)


def test_what_is_too_long_is_to_be_cut() -> None:
    before, after = two_masks(200, 40)
    with pytest.raises(EditError, match=r"200 x 40 pixels; at most 4:1 is supported; crop the image") as error:
        edit(tiny_pipeline(), photograph(200, 40), after, before)
    assert "square" not in str(error.value)


def test_the_variety_and_the_size_that_came_out_are_told() -> None:
    assert (edited(tiny_cascade()).variety, edited(tiny_cascade()).size) == (VARIETY, 32)
    result = edited(tiny_cascade(), unknown=True, base_only=True)
    assert (result.variety, result.size) == (0.0, 16)


def test_other_proportions_and_sizes() -> None:
    before, after = two_masks(64, 48)
    image = photograph(128, 96)
    for settings, size in (
        (EditSettings.from_flat(steps=2, upsampler_steps=2), (43, 32)),
        (EditSettings.from_flat(steps=2, upsampler_steps=2, size=48), (64, 48)),
        (EditSettings.from_flat(steps=2, base_only=True), (21, 16)),
        (EditSettings.from_flat(steps=2, base_only=True, keep_exact=True), (128, 96)),
    ):
        result = edit(tiny_cascade(), image, after, before, settings=settings)
        assert result.images[0].size == result.region.size == size
    larger = before.repeat_interleave(2, 1).repeat_interleave(2, 2)  # the same mask at twice the size
    first = edit(tiny_pipeline(), image, after, larger, settings=EditSettings.from_flat(steps=2), generator=seeded())
    second = edit(tiny_pipeline(), image, after, before, settings=EditSettings.from_flat(steps=2), generator=seeded())
    assert apart(first.images[0], second.images[0]).max() == 0


def test_the_same_condition_at_half_its_size_changes_nothing() -> None:
    slope = (torch.arange(40)[:, None] < torch.arange(40)).to(torch.uint8)[None]
    with pytest.raises(EditError, match="the two conditions are equal, so"):
        edit(tiny_pipeline(), photograph(), slope, slope[:, ::2, ::2], settings=EditSettings.from_flat(steps=2))


def test_steps_are_counted_and_an_error_ends_it() -> None:
    told: list[tuple[int, int, int]] = []

    def on_step(done: int, total: int, x0: Tensor) -> None:
        told.append((done, total, x0.shape[-1]))
        if len(told) == 12:
            raise KeyError("cancelled")

    with pytest.raises(KeyError):
        edited(tiny_cascade(), num=3, batch_size=2, on_step=on_step)
    sides = [16] * 3 + [32] * 2 + [16] * 3 + [32] * 2 + [16] * 2  # inverted, then two batches
    assert told == [(k + 1, 15, side) for k, side in enumerate(sides)]


def test_conditions_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_cascade(conditional=True)
    counts = []
    for network in (pipeline.base, pipeline.upsampler):
        encode = network.encode  # type: ignore[union-attr]
        monkeypatch.setattr(network, "encode", lambda c, encode=encode: counts.append(len(c)) or encode(c))
    edited(pipeline, num=4, batch_size=2)
    assert counts == [1, 1, 1, 1, 1]  # changed, null and own of the base; changed and own of the unguided upsampler


def test_the_inversion_is_under_the_own_condition_without_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, seen = tiny_pipeline(), []
    forward = pipeline.base.forward

    def watched(x_t: Tensor, t: Tensor, tokens: Any, low_res: Any = None) -> Any:
        seen.append((x_t, tokens))
        return forward(x_t, t, tokens, low_res)  # pyright: ignore[reportCallIssue]

    monkeypatch.setattr(pipeline.base, "forward", watched)
    edited(pipeline, guidance=2.0, num=2)
    assert [len(x_t) for x_t, _ in seen] == [1, 1, 1, 4, 4, 4]
    assert not torch.equal(seen[0][1].pooled[0], seen[3][1].pooled[0])
    assert torch.equal(seen[3][1].pooled[0], seen[3][1].pooled[1])


def test_an_inpainting_network_is_told_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = tiny_pipeline(), []
    torch.manual_seed(0)
    specs: Any = {"encoder_spec": TINY_MODEL["encoder"], "unet_spec": TINY_MODEL["unet"]}
    base = Translator(**specs, image_size=16, patch_size=2, inpaint=True).eval()
    pipeline = PITIPipeline(base, plain.scheduler, plain.condition)
    joined = base.join_low_res
    monkeypatch.setattr(base, "join_low_res", lambda x, low, t, known: seen.append(known) or joined(x, low, t, known))
    result = edited(pipeline, guidance=1.0)
    outside = torch.from_numpy(np.asarray(result.region) == 0)
    for known in seen:
        assert torch.equal(known[:, 3] == 1, outside.expand(len(known), -1, -1))
    assert {len(known) for known in seen} == {1, 2}


def test_texts_and_several_conditions() -> None:
    pipeline = text_pipeline()
    settings = EditSettings.from_flat(steps=2)
    result = edit(pipeline, photograph(64, 48), "the sea", "a wood", settings=settings)
    assert result.images[0].size == (21, 16)  # the image's proportions: a text has none
    turned = photograph(48, 64)
    turned.getexif()[0x0112] = 6
    assert edit(pipeline, turned, "the sea", settings=settings).images[0].size == (21, 16)
    assert result.share == 1
    with pytest.raises(EditError, match="the same"):
        edit(pipeline, photograph(), "the sea", "the sea", settings=settings)
    before, after = two_masks()
    both = several_pipeline()
    result = edit(both, photograph(), {"mask": after}, {"mask": before}, settings=settings)
    assert 0 < result.share < 0.5


def test_an_image_and_a_region_may_be_files_or_arrays(tmp_path: Path) -> None:
    pipeline, image, region = tiny_pipeline(), photograph(), Image.new("L", (40, 40))
    region.paste(255, (8, 8, 24, 24))
    whole = edited(pipeline, image, region=region, keep_exact=True).images[0]
    photo, white = tmp_path / "photo.png", tmp_path / "region.png"
    image.save(photo)
    region.save(white)
    for first, second in ((photo, str(white)), (np.asarray(image), np.asarray(region))):
        again = edited(pipeline, first, region=second, keep_exact=True).images[0]
        assert np.array_equal(np.asarray(again), np.asarray(whole))
    Image.new("RGBA", (40, 40)).save(photo)
    with pytest.raises(
        EditError, match=r"photo\.png: images are written as 8-bit RGB, which would lose its transparency"
    ):
        edited(pipeline, photo, region=region, keep_exact=True)
    levels = np.asarray(image).astype(np.float32) / 255
    mirrored = np.flip(np.flip(levels, 1).copy(), 1)  # whose rows run backwards in memory
    for numbers in (levels, mirrored, torch.from_numpy(levels).movedim(-1, 0)):  # as a pipeline gives images
        again = edited(pipeline, numbers, region=region, keep_exact=True).images[0]
        assert np.array_equal(np.asarray(again), np.asarray(whole))
    for odd, said in ((2 * levels - 1, "floats from -1 to 1; scale them to"), (torch.zeros(1, 3, 4, 4), r"got \[1, 3")):
        with pytest.raises(ImageError, match=f"the given image: .*{said}"):
            edited(pipeline, odd, region=region)
    with pytest.raises(EditError, match="image: expected an image, its file or an array, got int"):
        edited(pipeline, 7, region=region)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": photograph(60, 40)}, r"the image is 60 x 40 and the condition is 40 x 40.*the same aspect ratio"),
        ({"region": Image.new("L", (60, 40), 255)}, r"the region is 60 x 40 and the image is 40 x 40"),
        ({"region": Image.new("L", (40, 40))}, r"black everywhere, so"),
        ({"variety": 1.5}, "variety 1.5: is out of range"),
        ({"refinements": -1}, r"refinements -1"),
        ({"num": 0}, r"at least 1"),
        ({"num": 1.5}, r"num_images 1\.5: expected a whole number"),
        ({"refinements": 1.5}, r"refinements 1\.5"),
        ({"step": 3}, r"unknown key 'step'; did you mean 'steps'"),
        ({"steps": 0}, r"steps"),
        ({"upsampler_steps": 5000}, r"upsampler_steps 5000"),
        (
            {"upsampler_noise": 0.997},
            r"upsampler_noise 0\.997: .*starts from the noise .* inverted image.*leave it out",
        ),
    ],
)
def test_what_cannot_be_edited(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        edited(tiny_cascade(), **given)


def test_equal_conditions_change_nothing() -> None:
    before, _ = two_masks()
    with pytest.raises(EditError, match=r"equal, so nothing would change"):
        edit(tiny_pipeline(), photograph(), before, before.clone())
    with pytest.raises(EditError, match=r"own condition is 64 x 48 and the changed one is 40 x 40"):
        edit(tiny_pipeline(), photograph(), before, two_masks(64, 48)[0])


def test_a_baseline_inverts_nothing() -> None:
    before, after = two_masks()
    with pytest.raises(EditError, match="in one pass and cannot invert them"):
        edit(baseline_pipeline(NOISELESS), photograph(), after, before)
