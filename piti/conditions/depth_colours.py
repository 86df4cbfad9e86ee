"""How depth is shown: light and yellow near, dark and violet far, evenly to the eye, and shaded by normals."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

HOLE = (128, 128, 128)
"""Grey, which is no colour of the map."""

_LIGHT = (-0.45, -0.6, -0.66)  # from above and the left, behind the camera
_AMBIENT, _UNKNOWN = 0.5, 0.85  # what is lit in shadow, and where the normal is not known

# Oklab (Ottosson 2020): linear sRGB from cubed cone responses, and these from lightness and two opponents.
_LMS_OF_LAB = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_RGB_OF_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def depth_colours() -> UInt8[np.ndarray, "256 3"]:
    """Colours from near (0) to far (255): lightness falls in equal steps of Oklab, hue turns from yellow to violet."""
    t = np.linspace(0, 1, 256)
    lightness = 0.93 - 0.66 * t
    hue = np.radians(103 + 202 * t)
    chroma = 0.155 - 0.19 * t + 0.16 * t**2
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1)  # [256, 3]
    linear = (((lab @ _LMS_OF_LAB.T) ** 3) @ _RGB_OF_LMS.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def coloured(depth: Float[np.ndarray, "h w"], normal: Float[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of depth in [-1, 1] (NaN: hole, `HOLE`), shaded by the normals (NaN: not known)."""
    hole = np.isnan(depth)
    place = ((np.where(hole, 0, depth) + 1) * 127.5).round().astype(np.uint8)
    lit = np.einsum("c,chw->hw", np.array(_LIGHT) / np.linalg.norm(_LIGHT), normal)
    shade = np.where(np.isnan(lit), _UNKNOWN, _AMBIENT + (1 - _AMBIENT) * lit.clip(0, 1))
    picture = depth_colours()[place] * shade[..., None]
    return np.where(hole[..., None], np.array(HOLE), picture.round()).astype(np.uint8)
