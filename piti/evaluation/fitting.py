"""Resizing and normalisation of images for networks, as in the reference implementation of each metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from piti.core.images import center_box, crop_resize

BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Fitting:
    """A resizing method, and its description in results."""

    words: str
    apply: Callable[[Image.Image], Image.Image]


def shorter_side(short: int, crop: int, resample: Image.Resampling = BICUBIC) -> Fitting:
    """The shorter side to `short`, then the centre square of `crop` (black beyond the image), as in CLIP."""

    def apply(image: Image.Image) -> Image.Image:
        width, height = image.size
        least = min(width, height)
        image = image.resize((int(short * width / least), int(short * height / least)), resample)
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        return image.crop((left, top, left + crop, top + crop))

    return Fitting(f"shorter side to {short} px, {_named(resample)}, then the centred square of {crop} px", apply)


def centre_square(side: int, resample: Image.Resampling = BICUBIC) -> Fitting:
    """Resize the largest centred square."""
    return Fitting(
        f"largest centred square, to {side} px, {_named(resample)}",
        lambda image: crop_resize(image, center_box(*image.size), side, resample),
    )


def stretched(side: int, resample: Image.Resampling = BICUBIC) -> Fitting:
    """Resize both sides to `side`, ignoring the aspect ratio."""
    return Fitting(
        f"both sides to {side} px, {_named(resample)}",
        lambda image: image.resize((side, side), resample),
    )


def as_it_is(words: str) -> Fitting:
    """For a network that resizes by itself, as described by `words`."""
    return Fitting(words, lambda image: image)


def levels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Pixels as float32 in [0, 255]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def normalised(
    images: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Float[Tensor, "b 3 h w"]:
    """RGB images of one size, scaled to [0, 1], minus `mean`, divided by `std`."""
    x = torch.stack([levels(image) for image in images]).to(device) / 255
    return (x - torch.tensor(mean, device=device).view(3, 1, 1)) / torch.tensor(std, device=device).view(3, 1, 1)


def _named(resample: Image.Resampling) -> str:
    return f"{resample.name.lower()} with antialiasing, 8 bits"
