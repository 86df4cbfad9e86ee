"""Filters of the BSR degradation: Gaussian kernels, blur, the resizes of OpenCV and MATLAB, L0 smoothing.

Functions on tensors; the linear ones take images in any range of values. Papers: BSRGAN (Zhang et al. 2021, arXiv
2103.14006), image smoothing via L0 gradient minimisation (Xu et al. 2011, doi 10.1145/2024156.2024208).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import choices

Images = Float[Tensor, "*batch c h w"]
Resized = Float[Tensor, "*batch c H W"]
Kernel = Float[Tensor, "k k"]

RESIZES = ("linear", "cubic", "area")
"""The kinds of `resize`."""

_SMALLEST = 1e-6  # smallest sigma or variance, at which a kernel is a single point


class FilterError(UserError):
    """A filter cannot be applied. The message names the value, the expectation and what to do."""


# Kernels: float64, with sum 1


def gaussian_kernel(size: int, sigma: float) -> Kernel:
    """An isotropic Gaussian sampled at the pixels' centres (MATLAB's `fspecial('gaussian', size, sigma)`).

    sigma: standard deviation in pixels. The sum is always 1.
    """
    square = _offsets(size).square()
    return _normalized(square[:, None] + square, max(sigma, _SMALLEST) ** 2)


def anisotropic_kernel(size: int, theta: float, l1: float, l2: float) -> Kernel:
    """A Gaussian of covariance R(θ) diag(l1, l2) R(θ)ᵀ (BSRGAN, section III-A).

    theta: angle of the first axis in radians, from rightwards to downwards; l1, l2: variances along the axes in
    pixels². The sum is always 1.
    """
    x = _offsets(size)
    y = x[:, None]
    first = x * math.cos(theta) + y * math.sin(theta)  # [k, k]
    second = x * math.sin(theta) - y * math.cos(theta)  # [k, k]
    l1, l2 = max(l1, _SMALLEST), max(l2, _SMALLEST)
    return _normalized(first.square() / l1 + second.square() / l2, 1.0)


def shifted_kernel(kernel: Kernel, scale: int) -> Kernel:
    """The kernel moved by (scale − 1)/2 pixels up and left, linearly interpolated (BSRGAN, section III-B).

    Sampling every scale-th pixel after this blur takes the centre of each scale × scale block, so the small image
    stays aligned with the large one.
    """
    n = len(kernel)
    place = (torch.arange(n, dtype=torch.float64) + (scale - 1) / 2).clamp(max=n - 1)
    low = place.floor().long()
    move = _taps_to_matrix(torch.stack([low, low + 1], 1), torch.stack([1 - place % 1, place % 1], 1), n)  # [k, k]
    moved = move @ kernel.double() @ move.T
    return moved / moved.sum()


def _offsets(size: int) -> Float[Tensor, " k"]:
    """Coordinates of `size` pixels relative to their centre."""
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _normalized(square: Float[Tensor, "k k"], variance: float) -> Kernel:
    """exp(−square / 2 variance) with sum 1; a softmax, so that no kernel underflows to zeros."""
    return torch.softmax(square.flatten() / (-2 * variance), 0).view(square.shape)


# Blur


def blur(image: Images, kernel: Kernel, stride: int = 1) -> Resized:
    """Convolve each channel, with borders mirrored about the outermost pixel (`scipy.ndimage.convolve`, mode mirror).

    stride: only every stride-th row and column of the result is computed. The centre of a kernel of even size is the
    pixel after its middle. Any range of values.
    """
    size = len(kernel)
    *batch, height, width = image.shape
    # Horizontal strips become channels, since a depthwise convolution is fast only with many of them.
    strip = math.ceil(height / (stride * _STRIPS))  # rows of the result in each
    rows = _windows(_STRIPS, strip, size, stride, height)  # [strips, r]
    columns = _windows(1, math.ceil(width / stride), size, stride, width)[0]
    padded = image.reshape(-1, height, width).index_select(-1, columns.to(image.device))
    planes = padded.index_select(-2, rows.flatten().to(image.device)).view(1, -1, rows.shape[1], len(columns))
    weight = kernel.flip(0, 1).to(image).expand(planes.shape[1], 1, size, size)  # convolution, not correlation
    blurred = F.conv2d(planes, weight, stride=stride, groups=planes.shape[1])  # [1, planes·strips, strip, w]
    return blurred.view(*batch, _STRIPS * strip, -1)[..., : math.ceil(height / stride), :].contiguous()


_STRIPS = 16


def _windows(count: int, length: int, size: int, stride: int, n: int) -> Int[Tensor, "count r"]:
    """The pixels under a kernel of `size` in `count` strips of `length` results each, mirrored into 0..n−1."""
    first = torch.arange(count)[:, None] * length * stride - (size - 1) // 2
    index = (first + torch.arange((length - 1) * stride + size)) % max(2 * (n - 1), 1)
    return torch.minimum(index, 2 * (n - 1) - index).clamp(min=0)


# Resizing: one matrix for rows and one for columns


def resize(image: Images, size: tuple[int, int], kind: str) -> Resized:
    """Resize to `size` (height, width) like OpenCV on float images; antialiased only with "area".

    kind: "linear", "cubic" (a = −0.75) or "area" (the mean over each new pixel's area; if either side grows, nearest
    neighbour with linear seams). Any range of values; "cubic" overshoots it. Raises FilterError for another kind.
    """
    if kind not in RESIZES:
        raise FilterError(f"unknown resize '{kind}'; {choices(kind, RESIZES)}")
    shrinks = size[0] <= image.shape[-2] and size[1] <= image.shape[-1]
    return _apply(image, size, kind if kind != "area" or shrinks else "area_enlarged")


def resize_antialiased(image: Images, size: tuple[int, int]) -> Resized:
    """Resize to `size` (height, width) like MATLAB's `imresize`: bicubic (a = −0.5), widened for downscaling.

    Any range of values, with slight overshoots at edges.
    """
    return _apply(image, size, "antialiased")


def _apply(image: Images, size: tuple[int, int], kind: str) -> Resized:
    height, width = image.shape[-2:]
    if size == (height, width):
        return image
    rows = _resize_matrix(height, size[0], kind).to(image)  # [H, h]
    columns = _resize_matrix(width, size[1], kind).to(image)  # [W, w]
    return rows @ (image @ columns.T)


@lru_cache(maxsize=512)
def _resize_matrix(n_in: int, n_out: int, kind: str) -> Float[Tensor, "n_out n_in"]:
    """The matrix for one axis; float32, must not be modified."""
    if min(n_in, n_out) < 1:
        raise FilterError(f"cannot resize {n_in} pixels to {n_out}; expected at least 1; use a larger image")
    return _MATRICES[kind](n_in, n_out).float()


def _linear(n_in: int, n_out: int) -> Tensor:
    place = _source_places(n_in, n_out)
    left, f = place.floor(), place % 1
    return _taps_to_matrix(left[:, None] + torch.arange(2), torch.stack([1 - f, f], 1), n_in)


def _cubic(n_in: int, n_out: int) -> Tensor:
    place = _source_places(n_in, n_out)
    index = place.floor()[:, None] + torch.arange(-1, 3)
    return _taps_to_matrix(index, _cubic_kernel(place[:, None] - index, -0.75), n_in)


def _area(n_in: int, n_out: int) -> Tensor:
    """The overlap of each new pixel with each old one."""
    edges = torch.arange(n_out + 1, dtype=torch.float64) * n_in / n_out
    old = torch.arange(n_in, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return overlap.clamp(min=0) * n_out / n_in


def _area_enlarged(n_in: int, n_out: int) -> Tensor:
    """Each new pixel is inside one old one, or across a seam between two. Rounding as in OpenCV."""
    ratio = n_out / n_in
    new = torch.arange(n_out, dtype=torch.float64)
    left = (new * (1 / ratio)).floor()
    f = (new + 1 - (left + 1) * ratio).float().double()
    f = torch.where(f > 0, f % 1, 0.0)
    return _taps_to_matrix(left[:, None] + torch.arange(2), torch.stack([1 - f, f], 1), n_in)


def _antialiased(n_in: int, n_out: int) -> Tensor:
    stretch = max(n_in / n_out, 1.0)
    place = _source_places(n_in, n_out)[:, None]
    index = (place - 2 * stretch).floor() + torch.arange(math.ceil(4 * stretch) + 2)
    weight = _cubic_kernel((place - index) / stretch, -0.5)
    index = index % (2 * n_in)  # mirrored at the border, with the outermost pixel repeated
    return _taps_to_matrix(torch.minimum(index, 2 * n_in - 1 - index), weight / weight.sum(1, keepdim=True), n_in)


_MATRICES: dict[str, Callable[[int, int], Tensor]] = {
    "linear": _linear,
    "cubic": _cubic,
    "area": _area,
    "area_enlarged": _area_enlarged,
    "antialiased": _antialiased,
}


def _source_places(n_in: int, n_out: int) -> Float[Tensor, " n_out"]:
    """Positions of the new pixels' centres among the old ones."""
    return (torch.arange(n_out, dtype=torch.float64) + 0.5) * n_in / n_out - 0.5


def _cubic_kernel(x: Tensor, a: float) -> Tensor:
    """Cubic convolution (Keys 1981, eq. 13 with its free parameter a)."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _taps_to_matrix(index: Tensor, weight: Float[Tensor, "n_out taps"], n_in: int) -> Float[Tensor, "n_out n_in"]:
    """Row i has weight[i, k] at column index[i, k], clamped to the border."""
    return torch.zeros(len(weight), n_in, dtype=torch.float64).scatter_add_(1, index.long().clamp(0, n_in - 1), weight)


# L0 smoothing


def l0_smooth(image: Images, weight: float, kappa: float = 2.0, beta_max: float = 1e5) -> Images:
    """Flatten all but the strongest edges: min_S ‖S − I‖² + λ·#{pixels with a gradient} (Xu et al. 2011, eq. 5).

    image in [0, 1] (the weight depends on the range), with periodic borders; the result may slightly exceed the range.
    weight: λ, about 1e-3 to 1e-1; kappa, beta_max: factor between rounds of half-quadratic splitting, and largest β.
    """
    if weight <= 0 or kappa <= 1:
        raise FilterError(
            f"L0 smoothing with weight {weight} and kappa {kappa}: expected weight > 0, kappa > 1; raise it"
        )
    spectrum = torch.fft.rfft2(image)
    smooth, beta = image, 2 * weight
    while beta < beta_max:
        dx, dy = smooth.roll(-1, -1) - smooth, smooth.roll(-1, -2) - smooth
        # eq. 12: keep gradients above the threshold, over all channels
        keep = (dx.square() + dy.square()).sum(-3, keepdim=True) >= weight / beta
        smooth = fit_gradients(spectrum, dx * keep, dy * keep, beta)
        beta *= kappa
    return smooth


def fit_gradients(spectrum: Complex[Tensor, "*batch c h f"], dx: Images, dy: Images, beta: float) -> Images:
    """argmin_S ‖S − I‖² + β (‖∂x S − dx‖² + ‖∂y S − dy‖²) with circular differences (Xu et al. 2011, eq. 8).

    spectrum: `rfft2` of I; dx, dy: target of S[x + 1] − S[x].
    """
    height, width = dx.shape[-2:]
    adjoint = torch.fft.rfft2(dx.roll(1, -1) - dx + dy.roll(1, -2) - dy)  # ∂xᵀ dx + ∂yᵀ dy
    adjoint[..., 0, 0] = 0  # exactly; rounding errors, times β, would shift the brightness
    power = _gradient_power(height, width).to(dx)
    return torch.fft.irfft2((spectrum + beta * adjoint) * (1 / (1 + beta * power)), s=(height, width))


@lru_cache(maxsize=64)
def _gradient_power(height: int, width: int) -> Float[Tensor, "h f"]:
    """|F(∂x)|² + |F(∂y)|² = 4 sin² πf_x + 4 sin² πf_y; float64, must not be modified."""
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(width, dtype=torch.float64)
    return 4 * (torch.pi * y).sin().square() + 4 * (torch.pi * x).sin().square()
