"""What a photograph's numbers mean: greys of more than 8 bits to 8, and colours of a profile to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_DEEP = 65535
_LEAST = 16384  # a 16-bit picture that does not reach this holds numbers of fewer bits (10, 12, 14)
_LEAST_BYTE = _LEAST >> 8
_STEPS = 9  # sides of the cube of colours on which a profile is compared with sRGB
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of profiles, with the mode that they are for


class ColourError(ValueError):
    """What the numbers of a picture mean cannot be told. The message says which numbers it has."""


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of 32 with numbers of 16, as one of 8.

    Raises ColourError where the numbers fill another range than 0..65535, such as 12 bits in a file of 16.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _DEEP or 0 < high < _LEAST:
        raise ColourError(f"its greys are {low}..{high}, and a picture of more than 8 bits is read as 0..{_DEEP}")
    return Image.fromarray((values // 257).astype(np.uint8))


def check_sixteen_bits(image: Image.Image) -> None:
    """Raises ColourError for colours of 16 bits, decoded to 8, that hold numbers of fewer bits."""
    extrema: Any = image.getextrema()
    colours = extrema[:3] if len(extrema) >= 3 else extrema[:1]
    high = max(band[1] for band in colours)
    if 0 < high < _LEAST_BYTE:
        raise ColourError(f"its 16-bit colours end at about {(high + 1) * 256 - 1}, and are read as 0..{_DEEP}")


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture of 8 bits with the colours that its ICC profile says, in sRGB; as it is without one, or for sRGB's.

    A profile that is damaged, or for another kind of picture, is left out, as viewers do.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image.convert("RGB") if image.mode in ("P", "PA", "RGBA", "RGBX") else image
    colours = colours.getchannel("L") if colours.mode == "LA" else colours
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    made = ImageCms.applyTransform(colours, transform)
    assert made is not None  # only in place there is none
    if alpha is not None:
        made.putalpha(alpha)
    made.info = {key: value for key, value in image.info.items() if key not in ("icc_profile", "transparency")}
    return made


def other_colours(image: Image.Image) -> bool:
    """Whether `to_srgb` changes a picture's colours."""
    mode = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "LA": "L"}.get(image.mode, image.mode)
    profile = image.info.get("icc_profile")
    return bool(profile) and _transform(profile, mode) is not None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; none where it does not fit pictures of this mode, or is sRGB by another name."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        profiled: Any = opened.profile
        space = profiled.xcolor_space.strip()
        if _SPACES.get(space) != mode:
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if mode == "RGB" and _changes_little(transform) else transform


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than a level."""
    steps = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    made = ImageCms.applyTransform(Image.fromarray(cube), transform)
    return int(np.abs(np.asarray(made).astype(int) - cube).max()) <= 1
