"""Operations of the degradation, each compared with the released code and with closed forms."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from piti.core.images import to_tensor, to_uint8
from piti.core.seeding import generator_for
from piti.data.degrade import (
    ColourNoise,
    CorrelatedNoise,
    Degradation,
    GreyNoise,
    Jpeg,
    colour_covariance,
    degrade,
    downsample,
)
from piti.data.filters import (
    FilterError,
    anisotropic_kernel,
    blur,
    fit_gradients,
    gaussian_kernel,
    l0_smooth,
    resize,
    resize_antialiased,
    shifted_kernel,
)
from tests.data.degradations import KINDS, SPEC, psnr

SIZES = {"64": (32, 32), "odd": (37, 45), "up": (150, 150)}  # names of the recorded resizes
WIDE = gaussian_kernel(25, 1.7)
SLANTED = anisotropic_kernel(11, 0.7, 1.5, 0.6)


@pytest.fixture(scope="module")
def recorded(golden) -> dict[str, Tensor]:
    return load_file(golden / "bsr_ops.safetensors")


def channels_first(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)


class TestRecordedOperations:
    """float32 against float32 in another order of summation: a few units in the last place; kernels in float64."""

    @pytest.mark.parametrize(
        ("name", "kernel"),
        [
            ("aniso_k11_t0.7_l1.5_0.6", SLANTED),
            ("fspecial_g25_1.7", WIDE),
            ("fspecial_g7_0.65", gaussian_kernel(7, 0.65)),
            ("shifted_g25_1.7_sf2", shifted_kernel(WIDE, 2)),
            ("shifted_g25_1.7_sf4", shifted_kernel(WIDE, 4)),
        ],
    )
    def test_kernels(self, recorded, name, kernel):
        torch.testing.assert_close(kernel, recorded[name], rtol=0, atol=1e-15)

    @pytest.mark.parametrize(
        ("name", "operation"),
        [
            ("blur_mirror_aniso", lambda image: blur(image, SLANTED)),
            ("ds2_shift_sf4", lambda image: blur(image, shifted_kernel(WIDE, 4), stride=4)),
            ("imresize_np_half", lambda image: resize_antialiased(image, (64, 64))),
            *(
                (f"cv2_resize_{name}_{kind}", lambda image, size=size, kind=kind: resize(image, size, kind))
                for name, size in SIZES.items()
                for kind in KINDS
            ),
        ],
    )
    def test_filters(self, recorded, name: str, operation: Callable[[Tensor], Tensor]):
        result = operation(channels_first(recorded["img_f32"]))
        torch.testing.assert_close(result, channels_first(recorded[name]), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("seed", range(3))
    def test_jpeg(self, recorded, seed):
        """The same library behind both: every pixel's 8-bit level is the same."""
        quality = random.Random(seed).randint(80, 95)
        result = Jpeg(quality)(channels_first(recorded["img_f32"]) * 2 - 1, generator_for(0))
        assert torch.equal(to_uint8(result), to_uint8(channels_first(recorded[f"jpeg_seed{seed}"]) * 2 - 1))

    @pytest.mark.parametrize("seed", range(3))
    def test_correlated_noise(self, recorded, seed):
        """The recorded noise has the covariance that ours has for the same random numbers (sampled, so to 5%)."""
        draws = np.random.RandomState(seed)
        assert 0.4 < draws.rand() < 0.6  # the released code's share of correlated noise
        covariance = colour_covariance(torch.tensor(draws.rand(3)), torch.tensor(draws.rand(3, 3))) * 2**2
        image = recorded["img_f32"]
        inside = ((image > 0.05) & (image < 0.95)).all(-1)  # where nothing was clipped
        noise = (recorded[f"gauss_noise_1_2_seed{seed}"] - image)[inside].double() * 255
        assert len(noise) > 5000
        torch.testing.assert_close(noise.T.cov(), covariance, rtol=0, atol=0.05 * covariance.max().item())

    def test_l0_smoothing(self, recorded):
        """The released code divides by 256, smooths, multiplies and cuts off the fraction; a value next to a whole
        number may fall on its other side (complex64 there, our order of summation here)."""
        weight = np.random.RandomState(0).uniform(1.2, 4.0) * 1e-3
        smooth = l0_smooth(channels_first(recorded["img_u8"]).float() / 256, weight) * 256
        levels = smooth.clamp(0, 255).to(torch.uint8).int()
        difference = (levels - channels_first(recorded["l0_smooth_on_uint8_seed0"]).int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 2e-3

    def test_whole_degradations_lie_among_ours(self, recorded):
        """Four recorded ones of one photograph: as far from the clean small image as ours are."""
        image = to_tensor(recorded["big_u8"].numpy())
        clean = downsample(image, 4)
        ours = [psnr(degrade(image, 4, SPEC, generator_for(seed)), clean) for seed in range(40)]
        theirs = [psnr(to_tensor(recorded[f"e2e_seed{seed}"].numpy()), clean) for seed in range(4)]
        assert min(ours) - 1 < min(theirs)
        assert max(theirs) < max(ours) + 1


class TestKernels:
    @pytest.mark.parametrize("size", [5, 6, 14])
    @pytest.mark.parametrize("narrow", [0.0, 1e-9, 0.01])
    def test_the_narrowest_still_sum_to_one(self, size, narrow):
        """Of an even size no pixel lies in the middle; exp(−r²/2σ²) alone would underflow, and the image be black."""
        for kernel in (gaussian_kernel(size, narrow), anisotropic_kernel(size, 0.7, narrow, narrow)):
            assert kernel.sum().item() == pytest.approx(1)
        assert anisotropic_kernel(size, 0.7, narrow, 1.0).sum().item() == pytest.approx(1)

    def test_equal_variances_make_it_isotropic(self):
        torch.testing.assert_close(anisotropic_kernel(9, 1.1, 1.7**2, 1.7**2), gaussian_kernel(9, 1.7))

    def test_covariance(self):
        theta, l1, l2 = 0.4, 4.0, 1.0
        kernel = anisotropic_kernel(41, theta, l1, l2)
        x = torch.arange(-20, 21, dtype=torch.float64)
        moments = [(kernel * a * b).sum().item() for a, b in ((x, x), (x[:, None], x[:, None]), (x, x[:, None]))]
        c, s = math.cos(theta), math.sin(theta)
        expected = [l1 * c * c + l2 * s * s, l1 * s * s + l2 * c * c, (l1 - l2) * c * s]
        assert moments == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_shifting_moves_the_middle(self, scale):
        x = torch.arange(-12, 13, dtype=torch.float64)
        kernel = shifted_kernel(WIDE, scale)
        assert (kernel.sum(0) @ x).item() == pytest.approx(-(scale - 1) / 2, abs=1e-6)
        assert (kernel.sum(1) @ x).item() == pytest.approx(-(scale - 1) / 2, abs=1e-6)


class TestBlur:
    def test_convolves_with_mirrored_borders(self):
        """Against sums written out in NumPy, whose `reflect` is the same mirror; kernels of odd and even size."""
        image = torch.rand(2, 9, 12, dtype=torch.float64)
        for size in (1, 2, 5, 6):
            kernel = torch.rand(size, size, dtype=torch.float64)
            margins = ((0, 0), *[((size - 1) // 2, size // 2)] * 2)
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, margins, "reflect"), (size, size), (1, 2))
            expected = torch.tensor(np.einsum("chwij,ij->chw", windows, kernel.flip(0, 1).numpy()))
            torch.testing.assert_close(blur(image, kernel), expected)
            torch.testing.assert_close(blur(image, kernel, stride=3), expected[:, ::3, ::3])

    @pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 40)])
    def test_images_smaller_than_the_kernel(self, shape):
        blurred = blur(torch.full((3, *shape), 0.3), WIDE)
        torch.testing.assert_close(blurred, torch.full((3, *shape), 0.3))

    def test_batches(self):
        images = torch.rand(2, 5, 3, 16, 20)
        torch.testing.assert_close(blur(images, SLANTED)[1, 3], blur(images[1, 3], SLANTED))


class TestResize:
    @pytest.mark.parametrize("kind", [*KINDS, "antialiased"])
    @pytest.mark.parametrize("size", [(5, 7), (24, 40), (61, 83), (24, 13), (48, 20)])
    def test_constants_stay(self, kind, size):
        image = torch.full((3, 24, 40), 0.3)
        result = resize_antialiased(image, size) if kind == "antialiased" else resize(image, size, kind)
        torch.testing.assert_close(result, torch.full((3, *size), 0.3))

    @pytest.mark.parametrize("kind", ["linear", "cubic", "area", "antialiased"])
    def test_a_ramp_keeps_its_place(self, kind):
        """No shift: inside, a ramp's values are those at the new pixels' centres."""
        ramp = torch.arange(64.0).expand(1, 64, 64)
        result = resize_antialiased(ramp, (16, 16)) if kind == "antialiased" else resize(ramp, (16, 16), kind)
        torch.testing.assert_close(result[0, 0, 3:-3], (torch.arange(16.0) * 4 + 1.5)[3:-3])

    def test_area_is_the_mean_of_blocks(self):
        image = torch.rand(3, 24, 36)
        torch.testing.assert_close(resize(image, (8, 12), "area"), image.view(3, 8, 3, 12, 3).mean((2, 4)))

    def test_area_repeats_pixels_where_it_enlarges(self):
        image = torch.rand(3, 5, 7)
        expected = image.repeat_interleave(3, 1).repeat_interleave(4, 2)
        torch.testing.assert_close(resize(image, (15, 28), "area"), expected)

    def test_the_same_size_is_the_same_image(self):
        image = torch.rand(3, 5, 7)
        assert all(torch.equal(resize(image, (5, 7), kind), image) for kind in KINDS)

    def test_mistakes(self):
        with pytest.raises(FilterError, match=r"unknown resize 'cubik'; did you mean 'cubic'\?"):
            resize(torch.rand(3, 4, 4), (2, 2), "cubik")
        with pytest.raises(FilterError, match="cannot resize 4 pixels to 0; expected at least 1"):
            resize(torch.rand(3, 4, 4), (0, 2), "area")


class TestL0Smoothing:
    @pytest.mark.parametrize("shape", [(3, 16, 20), (3, 17, 21), (2, 3, 8, 5)])
    @pytest.mark.parametrize("beta", [0.01, 3.0, 1e4])
    def test_the_quadratic_step_is_optimal(self, shape, beta):
        """Its gradient (S − I) + β (∂xᵀ(∂x S − dx) + ∂yᵀ(∂y S − dy)) vanishes, in circular differences."""
        image, dx, dy = torch.randn(3, *shape, dtype=torch.float64, generator=generator_for(1))
        s = fit_gradients(torch.fft.rfft2(image), dx, dy, beta)
        x_error, y_error = s.roll(-1, -1) - s - dx, s.roll(-1, -2) - s - dy
        adjoint = x_error.roll(1, -1) - x_error + y_error.roll(1, -2) - y_error
        torch.testing.assert_close((s - image) / beta + adjoint, torch.zeros(shape, dtype=torch.float64))

    def test_noise_goes_and_the_step_stays(self):
        step = torch.full((3, 64, 64), 0.3)
        step[..., 32:] = 0.7
        noise = 0.02 * torch.randn(3, 64, 64, generator=generator_for(2))
        smooth = l0_smooth(step + noise, 0.02)
        for half, level in ((smooth[..., :32], 0.3), (smooth[..., 32:], 0.7)):
            assert half.std() < 0.1 * noise.std()
            assert half.mean().item() == pytest.approx(level, abs=2e-3)

    def test_a_flat_patchwork_is_left_alone(self):
        """What has few and strong edges is its own smoothing."""
        image = torch.rand(3, 4, 4, generator=generator_for(3)).repeat_interleave(16, 1).repeat_interleave(16, 2)
        torch.testing.assert_close(l0_smooth(image, 1e-3), image, rtol=0, atol=1e-3)

    def test_brightness_stays_to_the_last_round(self):
        image = torch.rand(3, 256, 256, generator=generator_for(4)) * 0.1 + 0.6
        assert l0_smooth(image, 4e-3).mean().item() == pytest.approx(image.mean().item(), abs=1e-5)

    def test_heavier_weights_leave_less_variation(self):
        image = 0.2 * torch.rand(3, 32, 32, generator=generator_for(5))
        smooth = [l0_smooth(image, weight) for weight in (1e-3, 1e-2, 1e-1, 1.0)]
        variation = [(one.roll(-1, -1) - one).abs().sum().item() for one in smooth]
        assert variation == sorted(variation, reverse=True)
        assert variation[-1] < variation[0] / 4

    @pytest.mark.parametrize("settings", [{"weight": 0.0}, {"weight": 1e-3, "kappa": 1.0}])
    def test_settings_without_an_end(self, settings):
        with pytest.raises(FilterError, match=r"expected weight > 0, kappa > 1; raise it"):
            l0_smooth(torch.rand(3, 4, 4), **settings)


class TestNoise:
    def noise_of(self, step: Degradation, seed: int = 0) -> Tensor:
        """[3, n] in 8-bit levels."""
        return step(torch.zeros(3, 200, 200), generator_for(seed)).flatten(1) * 127.5

    def test_colour(self):
        torch.testing.assert_close(self.noise_of(ColourNoise(2.0)).cov(), 4 * torch.eye(3), rtol=0, atol=0.15)

    def test_grey(self):
        noise = self.noise_of(GreyNoise(1.0))
        assert noise.std().item() == pytest.approx(1, rel=0.02)
        assert torch.equal(noise[0], noise[1])
        assert torch.equal(noise[0], noise[2])

    def test_correlated(self):
        """The covariance that the generator's first twelve numbers make, and another for another seed."""
        seen = []
        for seed in range(3):
            uniform = torch.rand(4, 3, generator=generator_for(seed))
            expected = 4 * colour_covariance(uniform[0], uniform[1:])
            torch.testing.assert_close(self.noise_of(CorrelatedNoise(2.0), seed).cov(), expected, rtol=0, atol=0.15)
            seen.append(expected)
        assert not torch.allclose(seen[0], seen[1], atol=0.3)

    def test_none(self):
        assert self.noise_of(ColourNoise(0.0)).abs().max() == 0
