"""Small images for training an upsampler: clean, or degraded (PITI, section 3.3).

The BSR degradation (Zhang et al. 2021, arXiv 2103.14006) in the light form that PITI uses, with L0 smoothing (Xu et
al. 2011). `draw_plan` draws the sequence of degradations of an image, as data; `degrade` applies it. Images
are in [−1, 1] throughout, noise and sigma in the units that each step names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from piti.core.errors import UserError
from piti.core.images import quantized, to_pil, to_tensor
from piti.core.spec import Spec
from piti.data.filters import (
    RESIZES,
    anisotropic_kernel,
    blur,
    gaussian_kernel,
    l0_smooth,
    resize,
    resize_antialiased,
    shifted_kernel,
)

Picture = Float[Tensor, "3 h w"]
Probability = Annotated[float, Field(ge=0, le=1)]


class DegradationError(UserError):
    """An image cannot be downscaled. The message names its sides, the expectation and what to do."""


class DegradationSpec(Spec):
    """Probabilities of the degradations. The two resizes and the noise are always applied."""

    halve: Probability = 0.25
    """First halve the sides; only if the image becomes 4 times smaller."""
    blur: Probability = 0.8
    """Gaussian blur, anisotropic in half of the cases."""
    jpeg: Probability = 0.5
    """JPEG compression."""
    smooth: Probability = 0.2
    """L0 smoothing, which removes texture and keeps strong edges."""
    noise: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0, 2.0), min_length=1)
    """Standard deviations of the noise in 8-bit levels, one of which is drawn; [0] for none. Colour-correlated noise
    uses the largest."""
    jpeg_quality: tuple[int, int] = (80, 95)
    """Range of the JPEG quality."""

    @field_validator("jpeg_quality")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        low, high = value
        if not 1 <= low <= high <= 100:
            raise ValueError("expected [from, to] with 1 <= from <= to <= 100")
        return value


def downsample(image: Float[Tensor, "*batch 3 h w"], scale: int) -> Float[Tensor, "*batch 3 h//{scale} w//{scale}"]:
    """The clean small image: antialiased bicubic (MATLAB's `imresize`), on the 256 8-bit levels.

    image in [−1, 1], and so is the result. Raises DegradationError if the sides are not multiples of `scale`.
    """
    height, width = small_size(image, scale)
    return quantized(resize_antialiased(image, (height, width)))


def degrade(
    image: Picture, scale: int, spec: DegradationSpec, generator: torch.Generator
) -> Float[Tensor, "3 h//{scale} w//{scale}"]:
    """A small degraded image, like those of poor cameras, web pages or messengers (BSRGAN, section III).

    image in [−1, 1], and so is the result, on the 256 8-bit levels. All randomness comes from the generator. Raises
    DegradationError if the sides are not multiples of `scale`.
    """
    small_size(image, scale)
    for step in draw_plan((image.shape[-2], image.shape[-1]), scale, spec, generator):
        image = step(image, generator).clamp(-1, 1)
    return quantized(image)


def small_size(image: Float[Tensor, "*batch 3 h w"], scale: int) -> tuple[int, int]:
    """Height and width of an image downscaled by `scale`. Raises DegradationError if they are not whole numbers."""
    height, width = image.shape[-2:]
    if scale < 1 or height < scale or width < scale or height % scale or width % scale:
        raise DegradationError(
            f"a {width} x {height} image cannot be made {scale} times smaller: expected sides that are multiples of "
            f"{max(scale, 1)}; crop the image, or choose another scale"
        )
    return height // scale, width // scale


# Steps: degradations of an image in [−1, 1], with their drawn parameters


@runtime_checkable
class Degradation(Protocol):
    """Degrade an image in [−1, 1]; the result may slightly exceed that range."""

    def __call__(self, image: Picture, generator: torch.Generator) -> Float[Tensor, "3 H W"]: ...


@dataclass(frozen=True)
class IsotropicBlur:
    """Gaussian blur; sigma in pixels."""

    size: int
    sigma: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        return blur(image, gaussian_kernel(self.size, self.sigma))


@dataclass(frozen=True)
class AnisotropicBlur:
    """Gaussian blur along a slanted axis; theta in radians, l1 and l2 variances in pixels²."""

    size: int
    theta: float
    l1: float
    l2: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        return blur(image, anisotropic_kernel(self.size, self.theta, self.l1, self.l2))


@dataclass(frozen=True)
class Resize:
    """OpenCV's resize to (height, width)."""

    size: tuple[int, int]
    kind: str

    def __call__(self, image: Picture, generator: torch.Generator) -> Float[Tensor, "3 H W"]:
        return resize(image, self.size, self.kind)


@dataclass(frozen=True)
class AntialiasedResize:
    """MATLAB's bicubic resize to (height, width)."""

    size: tuple[int, int]

    def __call__(self, image: Picture, generator: torch.Generator) -> Float[Tensor, "3 H W"]:
        return resize_antialiased(image, self.size)


@dataclass(frozen=True)
class BlurredSubsampling:
    """A Gaussian blur, then the middle of every scale × scale block; sigma in pixels."""

    scale: int
    sigma: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Float[Tensor, "3 H W"]:
        return blur(image, shifted_kernel(gaussian_kernel(25, self.sigma), self.scale), stride=self.scale)


@dataclass(frozen=True)
class ColourNoise:
    """Independent Gaussian noise in each channel; sigma in 8-bit levels."""

    sigma: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        return image + _normal(image, 3, self.sigma, generator)


@dataclass(frozen=True)
class GreyNoise:
    """The same Gaussian noise in all channels; sigma in 8-bit levels."""

    sigma: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        return image + _normal(image, 1, self.sigma, generator)


@dataclass(frozen=True)
class CorrelatedNoise:
    """Gaussian noise of a random 3 × 3 covariance between the channels; sigma in 8-bit levels."""

    sigma: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        uniform = torch.rand(4, 3, generator=generator, device=generator.device)
        eigenvalues, vectors = torch.linalg.eigh(colour_covariance(uniform[0], uniform[1:]))
        root = vectors * eigenvalues.clamp(min=0).sqrt()  # [3, 3], root rootᵀ is the covariance
        noise = _normal(image, 3, self.sigma, generator)
        return image + (root.to(image) @ noise.flatten(1)).view_as(image)


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file written and read in memory, colours at half the resolution."""

    quality: int

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        file = io.BytesIO()
        to_pil(image).save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return to_tensor(Image.open(file)).to(image)


@dataclass(frozen=True)
class Smooth:
    """L0 smoothing; the weight is for values in [0, 1]."""

    weight: float

    def __call__(self, image: Picture, generator: torch.Generator) -> Picture:
        return 2 * l0_smooth((image + 1) / 2, self.weight) - 1


def colour_covariance(values: Float[Tensor, 3], mixing: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """|Uᵀ diag(values) U|, entrywise absolute, U an orthonormal basis of mixing's columns (BSRGAN, section III-C).

    With values and mixing uniform in [0, 1), a random covariance between colours.
    """
    basis = torch.linalg.svd(mixing).U
    return ((basis.T * values) @ basis).abs()


def _normal(image: Picture, channels: int, sigma: float, generator: torch.Generator) -> Float[Tensor, "c h w"]:
    """White noise of `sigma` 8-bit levels in the units of [−1, 1]."""
    noise = torch.randn(channels, *image.shape[-2:], generator=generator, device=generator.device)
    return noise.to(image).mul_(sigma / 127.5)


# The plan


def draw_plan(
    size: tuple[int, int], scale: int, spec: DegradationSpec, generator: torch.Generator
) -> tuple[Degradation, ...]:
    """The sequence of steps from an image of `size` (height, width) to one `scale` times smaller.

    Possibly halved first; then a random subset of blur, downscaling, resizing to the final size, noise, JPEG and
    smoothing in random order, except that resizing follows downscaling (BSRGAN, section III-D, light form).
    """
    final = (size[0] // scale, size[1] // scale)
    steps: list[Degradation] = []
    if _chance(spec.halve, generator) and scale == 4:
        size, scale = (size[0] // 2, size[1] // 2), 2
        antialiased = _chance(0.5, generator)
        steps.append(AntialiasedResize(size) if antialiased else Resize(size, _one_of(RESIZES, generator)))
    drawn: list[Degradation | None] = [
        _draw_blur(scale, generator) if _chance(spec.blur, generator) else None,
        _draw_shrinking(size, scale, generator),
        Resize(final, _one_of(RESIZES, generator)),
        _draw_noise(spec.noise, generator),
        Jpeg(_integer(*spec.jpeg_quality, generator)) if _chance(spec.jpeg, generator) else None,
        Smooth(_uniform(1.2e-3, 4e-3, generator)) if _chance(spec.smooth, generator) else None,
    ]
    order = torch.randperm(len(drawn), generator=generator, device=generator.device).tolist()
    shrinking, resizing = sorted((order.index(1), order.index(2)))
    order[shrinking], order[resizing] = 1, 2
    return (*steps, *(step for step in (drawn[k] for k in order) if step is not None))


def _draw_blur(scale: int, generator: torch.Generator) -> Degradation:
    if _chance(0.5, generator):
        widest = (4 + scale) / 4
        return AnisotropicBlur(
            size=_integer(5, 14, generator),
            theta=_uniform(0, math.pi, generator),
            l1=_uniform(0, widest, generator),
            l2=_uniform(0, widest, generator),
        )
    return IsotropicBlur(size=_integer(5, 7, generator), sigma=_uniform(0, (2 + 0.2 * scale) / 4, generator))


def _draw_shrinking(size: tuple[int, int], scale: int, generator: torch.Generator) -> Degradation:
    if _chance(0.2, generator):
        return BlurredSubsampling(scale, _uniform(0.1, 0.6 * scale, generator))
    factor = _uniform(1, 2 * scale, generator)
    shrunk = (max(int(size[0] / factor), 1), max(int(size[1] / factor), 1))
    return Resize(shrunk, _one_of(RESIZES, generator))


def _draw_noise(levels: Sequence[float], generator: torch.Generator) -> Degradation:
    sigma, mode = _one_of(levels, generator), _uniform(0, 1, generator)
    if mode < 0.4:
        return ColourNoise(sigma)
    return GreyNoise(sigma) if mode < 0.8 else CorrelatedNoise(max(levels))


_Option = TypeVar("_Option")


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A random integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return _uniform(0, 1, generator) < probability


def _one_of(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    return options[_integer(0, len(options) - 1, generator)]
