"""The degradation: random parameters, effects on images, and results for real photographs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from piti.core.images import quantized, read_rgb, to_tensor, to_uint8
from piti.core.seeding import generator_for
from piti.core.spec import SpecError
from piti.core.walk import list_images
from piti.data.degrade import (
    AnisotropicBlur,
    AntialiasedResize,
    BlurredSubsampling,
    ColourNoise,
    CorrelatedNoise,
    Degradation,
    DegradationError,
    DegradationSpec,
    GreyNoise,
    IsotropicBlur,
    Jpeg,
    Resize,
    Smooth,
    degrade,
    downsample,
    draw_plan,
)
from piti.data.filters import resize
from tests.data.degradations import KINDS, SPEC, psnr

log = logging.getLogger(__name__)


def random_image(*shape: int, seed: int = 0) -> Tensor:
    """Smooth colours with edges and some texture, in [-1, 1]."""
    height, width = shape
    coarse = torch.rand(3, height // 8 + 2, width // 8 + 2, generator=generator_for(seed)) * 2 - 1
    return (resize(coarse, (height, width), "cubic").sign() * 0.4 + resize(coarse, (height, width), "linear")) / 1.4


class TestPlan:
    COUNT = 2500

    @pytest.fixture(scope="class")
    def plans(self) -> list[tuple[Degradation, ...]]:
        return [draw_plan((256, 256), 4, SPEC, generator_for("plan", k)) for k in range(self.COUNT)]

    def expect(self, hits: int, total: int, probability: float) -> None:
        """Assert that it is within four standard deviations of the binomial."""
        assert abs(hits - total * probability) < 4 * math.sqrt(total * probability * (1 - probability))

    def resizes(self, plan: tuple[Degradation, ...]) -> list[Degradation]:
        return [step for step in plan if isinstance(step, Resize | AntialiasedResize | BlurredSubsampling)]

    def test_probabilities(self, plans):
        counts = Counter(type(step) for plan in plans for step in plan)
        blurs = counts[IsotropicBlur] + counts[AnisotropicBlur]
        halved = [plan[0] for plan in plans if len(self.resizes(plan)) == 3]
        self.expect(blurs, self.COUNT, 0.8)
        self.expect(counts[IsotropicBlur], blurs, 0.5)
        self.expect(counts[Jpeg], self.COUNT, 0.5)
        self.expect(counts[Smooth], self.COUNT, 0.2)
        self.expect(counts[BlurredSubsampling], self.COUNT, 0.2)
        self.expect(len(halved), self.COUNT, 0.25)
        self.expect(counts[AntialiasedResize], len(halved), 0.5)
        for noise, share in ((ColourNoise, 0.4), (GreyNoise, 0.4), (CorrelatedNoise, 0.2)):
            self.expect(counts[noise], self.COUNT, share)
        kinds = Counter(step.kind for plan in plans for step in plan if isinstance(step, Resize))
        for kind in KINDS:
            self.expect(kinds[kind], kinds.total(), 1 / 3)

    def test_other_probabilities_are_told_from_these(self, plans):
        """The bounds above are narrow enough to tell a share that is 0.05 off."""
        blurs = sum(isinstance(step, IsotropicBlur | AnisotropicBlur) for plan in plans for step in plan)
        for wrong in (0.75, 0.85):
            with pytest.raises(AssertionError):
                self.expect(blurs, self.COUNT, wrong)

    def test_the_final_resize_comes_after_the_shrinking(self, plans):
        for plan in plans:
            *first, shrinking, last = self.resizes(plan)
            assert isinstance(last, Resize)
            assert last.size == (64, 64)
            if first:
                assert first == [plan[0]]
                assert isinstance(plan[0], Resize | AntialiasedResize)
                assert plan[0].size == (128, 128)
            side, scale = (128, 2) if first else (256, 4)
            if isinstance(shrinking, BlurredSubsampling):
                assert shrinking.scale == scale
                assert 0.1 <= shrinking.sigma <= 0.6 * scale
            else:
                assert isinstance(shrinking, Resize)
                assert 32 <= shrinking.size[0] == shrinking.size[1] <= side

    def test_the_order_is_random(self, plans):
        """Of three, blur comes before both resizes in a third; noise and JPEG each first in half of the plans."""

        def place(plan: tuple[Degradation, ...], *kinds: type) -> int | None:
            return next((k for k, step in enumerate(plan) if isinstance(step, kinds)), None)

        blur_first, noise_first = [], []
        for plan in plans:
            blurred = place(plan, IsotropicBlur, AnisotropicBlur)
            noise, jpeg = place(plan, ColourNoise, GreyNoise, CorrelatedNoise), place(plan, Jpeg)
            assert noise is not None
            if blurred is not None:
                blur_first.append(blurred < plan.index(self.resizes(plan)[-2]))
            if jpeg is not None:
                noise_first.append(noise < jpeg)
        self.expect(sum(blur_first), len(blur_first), 1 / 3)
        self.expect(sum(noise_first), len(noise_first), 1 / 2)

    def test_ranges(self, plans):
        steps = [step for plan in plans for step in plan]
        sigmas = {kind: {s.sigma for s in steps if isinstance(s, kind)} for kind in (ColourNoise, GreyNoise)}
        assert sigmas == {ColourNoise: {1.0, 2.0}, GreyNoise: {1.0, 2.0}}
        assert {s.sigma for s in steps if isinstance(s, CorrelatedNoise)} == {2.0}
        assert {s.quality for s in steps if isinstance(s, Jpeg)} == set(range(80, 96))
        assert {s.size for s in steps if isinstance(s, IsotropicBlur)} == {5, 6, 7}
        assert {s.size for s in steps if isinstance(s, AnisotropicBlur)} == set(range(5, 15))
        assert all(s.sigma <= 0.7 for s in steps if isinstance(s, IsotropicBlur))
        assert all(max(s.l1, s.l2) <= 2 and 0 <= s.theta <= math.pi for s in steps if isinstance(s, AnisotropicBlur))
        assert all(1.2e-3 <= s.weight <= 4e-3 for s in steps if isinstance(s, Smooth))

    def test_only_a_factor_of_four_is_halved_first(self):
        spec = DegradationSpec(halve=1)
        for scale, count in ((2, 2), (3, 2), (4, 3)):
            for k in range(20):
                assert len(self.resizes(draw_plan((48, 48), scale, spec, generator_for(k)))) == count

    def test_a_spec_can_leave_everything_out(self):
        spec = DegradationSpec(halve=0, blur=0, jpeg=0, smooth=0, noise=(0,))
        for k in range(20):
            plan = draw_plan((64, 64), 4, spec, generator_for(k))
            assert len(plan) == 3
            assert len(self.resizes(plan)) == 2


class TestDegrade:
    def test_the_seed_decides_every_bit(self):
        image = random_image(64, 64)
        results = [degrade(image, 4, SPEC, generator_for(seed)) for seed in (*range(12), *range(12))]
        assert all(torch.equal(one, other) for one, other in zip(results[:12], results[12:], strict=True))
        assert len({result.numpy().tobytes() for result in results}) == 12

    def test_the_input_stays(self):
        image = random_image(32, 32)
        before = image.clone()
        for seed in range(20):
            degrade(image, 4, SPEC, generator_for(seed))
        assert torch.equal(image, before)

    def test_global_randomness_is_neither_used_nor_changed(self):
        image = random_image(32, 32)
        torch.manual_seed(0)
        state = torch.get_rng_state()
        one = degrade(image, 4, SPEC, generator_for(7))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert torch.equal(degrade(image, 4, SPEC, generator_for(7)), one)

    @pytest.mark.parametrize(
        ("shape", "scale"), [((40, 64), 4), ((30, 18), 3), ((64, 64), 8), ((4, 4), 4), ((8, 4), 1)]
    )
    def test_sides_range_and_levels(self, shape, scale):
        for seed in range(25):
            small = degrade(random_image(*shape), scale, SPEC, generator_for(seed))
            assert small.shape == (3, shape[0] // scale, shape[1] // scale)
            assert small.dtype == torch.float32
            assert torch.equal(to_tensor(to_uint8(small).permute(1, 2, 0).numpy()), small)

    @pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
    def test_flat_images_keep_their_colour(self, value):
        for seed in range(40):
            small = degrade(torch.full((3, 32, 32), value), 4, SPEC, generator_for(seed))
            assert (small - value).abs().mean() < 4 / 255

    def test_each_step_keeps_the_brightness(self):
        """Smoothing too: the released code's comes out black."""
        image = random_image(64, 64, seed=3)
        for step in (
            IsotropicBlur(6, 0.0),
            AnisotropicBlur(14, 0.7, 1.5, 1e-9),
            Resize((23, 31), "cubic"),
            AntialiasedResize((32, 32)),
            BlurredSubsampling(4, 1.0),
            ColourNoise(2.0),
            GreyNoise(2.0),
            CorrelatedNoise(2.0),
            Jpeg(80),
            Smooth(4e-3),
        ):
            assert step(image, generator_for(0)).mean().item() == pytest.approx(image.mean().item(), abs=0.02), step

    def test_sides_must_be_multiples(self):
        message = r"a 30 x 64 image cannot be made 4 times smaller: expected sides that are multiples of 4; crop"
        image = torch.zeros(3, 64, 30)
        with pytest.raises(DegradationError, match=message):
            downsample(image, 4)
        with pytest.raises(DegradationError, match=message):
            degrade(image, 4, SPEC, generator_for(0))
        with pytest.raises(DegradationError, match="0 times smaller"):
            downsample(image, 0)


class TestDownsample:
    def test_batches_are_their_images(self):
        images = torch.rand(2, 2, 3, 16, 24) * 2 - 1
        small = downsample(images, 4)
        assert small.shape == (2, 2, 3, 4, 6)
        assert torch.equal(small[1, 0], downsample(images[1, 0], 4))

    def test_overshoot_is_clipped_and_levels_are_whole(self):
        image = torch.ones(3, 32, 32)
        image[..., 14:] = -1
        small = downsample(image, 4)
        assert small.min() == -1
        assert small.max() == 1
        assert torch.equal(quantized(small), small)

    def test_a_factor_of_one_only_rounds(self):
        image = random_image(8, 8)
        assert torch.equal(downsample(image, 1), quantized(image))


class TestSpec:
    @pytest.mark.parametrize(
        "values",
        [{"blur": 1.5}, {"smooth": -0.1}, {"noise": []}, {"noise": [-1]}, {"jpeg_quality": [90, 80]}, {"jpg": 0.5}],
    )
    def test_mistakes_name_the_key(self, values):
        with pytest.raises(SpecError, match=f"degrade: *\n.*{next(iter(values))}"):
            DegradationSpec.parse(values, "degrade")

    def test_plain_data_and_back(self):
        spec = DegradationSpec(noise=(0.5, 3), jpeg_quality=(40, 60))
        assert DegradationSpec.parse(spec.to_dict(), "degrade") == spec


def crops(camvid, side: int, count: int) -> Iterator[Tensor]:
    """Random crops of real photographs, ten of each."""
    files = list_images(camvid / "images")
    for k in range(count // 10):
        photo = to_tensor(read_rgb(files[k * len(files) * 10 // count]))
        generator = generator_for("crops", k)
        for _ in range(10):
            top, left = (int(torch.randint(0, n - side + 1, (), generator=generator)) for n in photo.shape[-2:])
            yield photo[:, top : top + side, left : left + side]


def test_hundreds_of_photographs(camvid):
    """None comes out dark, all resemble the clean small image, and not all to the same degree."""
    decibels, brightness = [], []
    for k, crop in enumerate(crops(camvid, side=96, count=400)):
        clean, small = downsample(crop, 4), degrade(crop, 4, SPEC, generator_for("photographs", k))
        decibels.append(psnr(small, clean))
        brightness.append(((small + 1).mean() / (clean + 1).mean()).item())
    mean, spread = np.mean(decibels), np.std(decibels)
    log.info("PSNR to the clean downsample: %.2f ± %.2f dB, from %.1f", mean, spread, min(decibels))
    log.info("brightness: %.3f to %.3f of the clean downsample's", min(brightness), max(brightness))
    assert min(brightness) > 0.8
    assert max(brightness) < 1.25
    assert min(decibels) > 12
    assert 22 < mean < 34
    assert spread > 2
