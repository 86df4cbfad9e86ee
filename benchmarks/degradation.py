"""Degradation speed: images per second on one core, clean, degraded, and for each operation.

    python benchmarks/degradation.py [--images FOLDER] [--scale 4] [--rounds 3]

Measured in processor time of one thread, so that other work on the machine has little influence; the fastest round
counts. Without --images, images are synthetic: random colours with edges. The degradation blurs one image at a time,
because each has its own kernel, size and order of operations; the last three rows compare that (in strips, as in
`blur`) with a plain convolution of one image, and with one grouped convolution over a batch of sixteen whose images
share size and kernel size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from piti.core.images import center_box, crop_resize, read_rgb, to_tensor
from piti.core.seeding import generator_for
from piti.core.walk import list_images
from piti.data.degrade import (
    AnisotropicBlur,
    AntialiasedResize,
    BlurredSubsampling,
    ColourNoise,
    CorrelatedNoise,
    DegradationSpec,
    GreyNoise,
    IsotropicBlur,
    Jpeg,
    Resize,
    Smooth,
    degrade,
    downsample,
)
from piti.data.filters import anisotropic_kernel, blur, resize

SIDES = (256, 128)
COUNT = 100
"""Images per round: enough for every branch of the degradation."""


def pictures(folder: Path | None, side: int) -> list[Tensor]:
    """Up to sixteen images [3, side, side] in [-1, 1]."""
    if folder is not None:
        photos = (read_rgb(path) for path in list_images(folder, recursive=True)[:16])
        return [to_tensor(crop_resize(photo, center_box(*photo.size), side)) for photo in photos]
    coarse = torch.rand(16, 3, side // 16, side // 16, generator=generator_for("pictures")) * 2 - 1
    images = resize(coarse, (side, side), "cubic").sign() * 0.4 + resize(coarse, (side, side), "linear") * 0.6
    return list(images.clamp(-1, 1))


def rate(work: Callable[[], object], images: int, rounds: int) -> float:
    """Images per second of the fastest round, after a warm-up."""
    work()
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return images / min(seconds)


def operations(side: int, scale: int, images: list[Tensor]) -> dict[str, Callable[[int], object]]:
    """Operations on the k-th image, by name."""
    specs = {
        "degrade": DegradationSpec(),
        "degrade, no smoothing": DegradationSpec(smooth=0),
        "degrade, no smoothing, no JPEG": DegradationSpec(smooth=0, jpeg=0),
    }
    middle, small = int(side / (0.5 + scale)), side // scale
    steps = {
        "blur, isotropic 6": IsotropicBlur(6, 0.5),
        "blur, anisotropic 10": AnisotropicBlur(10, 0.7, 1.5, 0.6),
        "blur and subsampling": BlurredSubsampling(scale, 1.2),
        "resize, linear": Resize((middle, middle), "linear"),
        "resize, cubic": Resize((middle, middle), "cubic"),
        "resize, area": Resize((small, small), "area"),
        "resize, antialiased by half": AntialiasedResize((side // 2, side // 2)),
        "noise, colour": ColourNoise(2.0),
        "noise, grey": GreyNoise(2.0),
        "noise, correlated": CorrelatedNoise(2.0),
        "JPEG 88": Jpeg(88),
        "L0 smoothing": Smooth(2.5e-3),
    }

    def image(k: int) -> Tensor:
        return images[k % len(images)]

    work: dict[str, Callable[[int], object]] = {"downsample": lambda k: downsample(image(k), scale)}
    for name, spec in specs.items():
        work[name] = lambda k, spec=spec: degrade(image(k), scale, spec, generator_for(k))
    for name, step in steps.items():
        work[name] = lambda k, step=step: step(image(k), generator_for(k))
    return work


def plain_blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur an image [3, h, w] per channel with a kernel [k, k] of odd size."""
    padded = F.pad(image, (len(kernel) // 2,) * 4, mode="reflect")
    return F.conv2d(padded[:, None], kernel.flip(0, 1)[None, None])[:, 0]


def grouped_blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Blur images [B, 3, h, w], each with its own kernel [B, k, k] of odd size, in one convolution."""
    padded = F.pad(images.transpose(0, 1), (kernels.shape[-1] // 2,) * 4, mode="reflect")  # [3, B, h+k−1, w+k−1]
    return F.conv2d(padded, kernels.flip(1, 2)[:, None], groups=len(kernels)).transpose(0, 1)


def compare_blurs(images: list[Tensor], rounds: int) -> dict[str, float]:
    """Images per second of three ways to blur, which must give equal results."""
    kernels = [anisotropic_kernel(11, 0.2 * k, 1.5, 0.6).float() for k in range(len(images))]
    pairs = list(zip(images, kernels, strict=True))
    batch, stacked = torch.stack(images), torch.stack(kernels)
    ways: dict[str, Callable[[], Tensor]] = {
        "blur 11, one image in strips": lambda: torch.stack([blur(*pair) for pair in pairs]),
        "blur 11, one image, plain": lambda: torch.stack([plain_blur(*pair) for pair in pairs]),
        "blur 11, one grouped batch": lambda: grouped_blur(batch, stacked),
    }
    for way in ways.values():
        torch.testing.assert_close(way(), grouped_blur(batch, stacked))
    return {name: rate(way, len(images), rounds) for name, way in ways.items()}


def measure(side: int, scale: int, folder: Path | None, rounds: int) -> dict[str, float]:
    """Images per second, by name of the operation."""
    images = pictures(folder, side)
    rates = {}
    for name, work in operations(side, scale, images).items():
        count = COUNT if name.startswith("degrade") else 20
        rates[name] = rate(lambda work=work, count=count: [work(k) for k in range(count)], count, rounds)
    return rates | compare_blurs(images, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [measure(side, options.scale, options.images, options.rounds) for side in SIDES]
    print(f"{'images per second, 1/' + str(options.scale):<34}" + "".join(f"{side:>8} px" for side in SIDES))
    for name in columns[0]:
        print(f"{name:<34}" + "".join(f"{column[name]:>11,.0f}" for column in columns))


if __name__ == "__main__":
    main()
