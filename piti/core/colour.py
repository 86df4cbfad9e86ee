"""Colour conversion of photographs: greyscale of more than 8 bits to 8, and ICC profiles to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_DEEP = 65535
_LEAST = 16384  # a 16-bit image below this has values of fewer bits (10, 12, 14)
_LEAST_BYTE = _LEAST >> 8
_STEPS = 9  # grid size of the colour cube on which a profile is compared with sRGB
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # profiles' colour spaces, with the mode that they apply to


class ColourError(ValueError):
    """The range of an image's values is ambiguous. The message gives the values."""


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert a 16-bit grey image, or a 32-bit one with 16-bit values, to 8 bits.

    Raises ColourError if the values have another range than 0..65535, such as 12 bits in a 16-bit file.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _DEEP or 0 < high < _LEAST:
        raise ColourError(f"its grey values are {low}..{high}, but images of more than 8 bits are read as 0..{_DEEP}")
    return Image.fromarray((values // 257).astype(np.uint8))


def check_sixteen_bits(image: Image.Image) -> None:
    """Raises ColourError for 16-bit colours, decoded to 8 bits, whose values have fewer bits."""
    extrema: Any = image.getextrema()
    colours = extrema[:3] if len(extrema) >= 3 else extrema[:1]
    high = max(band[1] for band in colours)
    if 0 < high < _LEAST_BYTE:
        raise ColourError(f"its 16-bit colours end at about {(high + 1) * 256 - 1}, but they are read as 0..{_DEEP}")


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image from its ICC profile to sRGB; unchanged without a profile, or with sRGB's.

    A damaged profile, or one for another mode, is ignored, as viewers do.
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
    assert made is not None  # only the in-place conversion drops the profile
    if alpha is not None:
        made.putalpha(alpha)
    made.info = {key: value for key, value in image.info.items() if key not in ("icc_profile", "transparency")}
    return made


def other_colours(image: Image.Image) -> bool:
    """Whether `to_srgb` changes an image's colours."""
    mode = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "LA": "L"}.get(image.mode, image.mode)
    profile = image.info.get("icc_profile")
    return bool(profile) and _transform(profile, mode) is not None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it does not apply to this mode, or is equivalent to sRGB."""
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
    """Whether no colour changes by more than one level."""
    steps = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    made = ImageCms.applyTransform(Image.fromarray(cube), transform)
    return int(np.abs(np.asarray(made).astype(int) - cube).max()) <= 1
