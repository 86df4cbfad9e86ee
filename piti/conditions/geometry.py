"""Geometry: depth and surface normals per pixel, with holes where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Files, Size, register, sides_of
from piti.conditions.depth_files import CAMERA_AXES, DEPTH_SUFFIXES, Axes, depth_of_image, read_depth
from piti.conditions.mask import nearest_positions
from piti.conditions.normals import Camera, merged, normals_of_depth, towards_camera
from piti.core.images import Box
from piti.core.spec import Spec, SpecError

FIELD_OF_VIEW = 60.0
"""Default horizontal field of view in degrees without a camera: DIODE's, between those of sensors and phones."""

_SHARES = (0.02, 0.98)  # percentiles of an image's depths that become -1 and 1 without near and far
_LEAST_RANGE = 0.2  # smallest range of log depth, so that the noise of a flat wall is not amplified
_MEMBERS = 8  # largest number of rows and columns per downsampled pixel
_UNIT = 0.1  # largest deviation of normals' typical length from 1


class _GeometryConfig(Spec):
    """Saved configuration of a geometry condition."""

    kind: Literal["geometry"] = "geometry"
    unit: float = Field(0.001, gt=0, allow_inf_nan=False)
    near: float | None = Field(None, gt=0, allow_inf_nan=False)
    far: float | None = Field(None, gt=0, allow_inf_nan=False)
    camera: Camera | None = None
    field_of_view: float | None = Field(None, gt=0, lt=180)
    normal_axes: Axes = CAMERA_AXES
    jump: float = Field(0.05, gt=0)
    null_value: float = Field(0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> _GeometryConfig:
        if self.near is not None and (self.far is None or self.far <= self.near):
            raise ValueError(f"near = {self.near} needs a larger far, got {self.far}; both in metres")
        if self.camera is not None and self.field_of_view is not None:
            raise ValueError("camera and field_of_view are both given; remove field_of_view")
        return self


@register
@dataclass(frozen=True)
class GeometryCondition(Condition):
    """Depth and surface normals, with holes kept as holes.

    Files: what `read_depth` reads (16-bit PNG or TIFF, EXR, `.npy` and `.npz`; integers are counts of `unit` metres,
    floats are metres), by suffix. Holes are values that are not above 0, not finite, masked out, or beyond `far`.
    Missing normals are computed from depth and the pinhole camera, see `normals_of_depth`: that of `camera`, given for
    one image size and scaled to others, else one with a horizontal `field_of_view`, by default `FIELD_OF_VIEW`. Normals
    are in the camera's frame, x right, y down, z forward, and point towards the camera (n_z < 0 along its axis).
    normal_axes: signs that convert those of files, such as [1, -1, -1] for y up and z backward. (DIODE's files are
    recognised by their names and need none.) jump: the relative deviation from a plane between neighbours above which
    no normal is computed.

    Raw form: float16 [4, h, w]: normalised log depth in [-1, 1], then the normal. NaN is unknown: all four in a hole,
    only the normal if it cannot be computed. Normalised: near is -1 and far is 1 where both are given; else the 2nd and
    the 98th percentile of the whole image's log depth, before any crop, so that it does not depend on the crop or the
    unit; values outside are clipped. (The range is at least 22%, so that a flat wall stays flat.)

    Encoded, five channels in [-1, 1]: log depth, n_x, n_y, n_z, and 1 where depth is known, -1 in holes; unknown values
    are 0. The null condition, `null_value` everywhere, is 0, which no image has in its last channel.
    """

    kind: ClassVar[str] = "geometry"
    usual_folder: ClassVar[str | None] = "depth"
    suffixes: ClassVar[frozenset[str]] = DEPTH_SUFFIXES

    unit: float = 0.001
    near: float | None = None
    far: float | None = None
    camera: Camera | None = None
    field_of_view: float | None = None
    normal_axes: Axes = CAMERA_AXES
    jump: float = 0.05
    null_value: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConditionError for settings that are out of range or contradict each other."""
        _parsed(self._settings(), "GeometryCondition")

    @property
    def channels(self) -> int:
        """Log depth, three of the normal, and validity."""
        return 5

    @property
    def planes(self) -> int:
        """Log depth and three of the normal."""
        return 4

    @property
    def raw_dtype(self) -> torch.dtype:
        """float16."""
        return torch.float16

    # Reading

    def load(self, path: Files) -> Float[Tensor, "4 h w"]:
        """Read a file. Raises ImageError if it cannot be read, ConditionError if it has no depth."""
        if isinstance(path, Mapping) or str(path).lower().endswith(".txt"):
            return super().load(path)
        found = read_depth(path, self.unit, self.normal_axes)
        normal = None if found.normal is None else torch.from_numpy(found.normal).movedim(-1, 0)
        return self.from_depth(torch.from_numpy(found.depth), normal, str(path))

    def read(self, image: Image.Image, source: str) -> Float[Tensor, "4 h w"]:
        """Read a decoded image of 16 or 32 bits (modes I;16, I) in counts of `unit`, or of floats (F) in metres.

        Raises ConditionError for other images.
        """
        return self.from_depth(torch.from_numpy(depth_of_image(image, self.unit, source)), None, source)

    def from_depth(
        self, depth: Float[Tensor, "h w"], normal: Float[Tensor, "3 h w"] | None = None, source: str = "depth"
    ) -> Float[Tensor, "4 h w"]:
        """The raw form of depth in metres and, optionally, normals in the camera's frame (zero or NaN: unknown).

        Raises ConditionError if no depth is known, or if normals are not unit vectors or face away.
        """
        depth = depth.float().nan_to_num(0, 0, 0).clamp(min=0)
        depth = depth if self.far is None else torch.where(depth <= self.far, depth, 0)
        hole = depth <= 0
        if normal is not None and normal.shape != (3, *depth.shape):
            raise ConditionError(f"{source}: expected normals {[3, *depth.shape]}, got {list(normal.shape)}")
        if hole.all():
            reach = f"between 0 and far = {self.far:g} m" if self.far is not None else "above 0"
            raise ConditionError(f"{source}: no pixel has a depth {reach}; check the file, condition.unit and far")
        height, width = depth.shape
        camera = self._camera(width, height, source)
        if normal is None:
            normal = normals_of_depth(depth, camera, self.jump)
        else:
            normal = self._given(normal.float(), camera, source)
        raw = torch.cat([self._normalised(depth, hole)[None], normal])  # [4, h, w]
        return torch.where(hole, torch.nan, raw).half()

    def _camera(self, width: int, height: int, source: str) -> Camera:
        if self.camera is not None:
            return self.camera.scaled(width, height, source)
        return Camera.of_view(self.field_of_view or FIELD_OF_VIEW, width, height)

    def _normalised(self, depth: Float[Tensor, "h w"], hole: Bool[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """Log depth in [-1, 1]; undefined in holes."""
        if self.near is not None and self.far is not None:
            low, high = np.log(self.near), np.log(self.far)
        else:
            low, high = np.quantile(depth[~hole].log().numpy(), _SHARES)
        middle, half = (low + high) / 2, max(high - low, _LEAST_RANGE) / 2
        return ((depth.log() - float(middle)) / float(half)).clamp(-1, 1)

    def _given(self, normal: Float[Tensor, "3 h w"], camera: Camera, source: str) -> Float[Tensor, "3 h w"]:
        """A file's normals as unit vectors in the camera's frame, towards the camera; NaN for zero vectors."""
        length = normal.square().sum(0).sqrt()  # [h, w]
        known = length.isfinite() & (length > 0.5)
        typical = float(length[length.isfinite() & (length > 0)].median().nan_to_num(1))
        if abs(typical - 1) > _UNIT:
            raise ConditionError(
                f"{source}: normals have a typical length of {typical:.3g}, not 1; save unit vectors in [-1, 1]"
            )
        turned = torch.where(known, normal / length, torch.nan)
        turned, share = towards_camera(turned, camera.rays())
        if share > 0.5:
            raise ConditionError(
                f"{source}: {share:.0%} of the normals point away from the camera, so their axes are not x right, "
                "y down, z forward; set condition.normal_axes, [1, -1, -1] for y up and z backward"
            )
        return turned

    def checked(self, raw: Tensor, source: str) -> Float[Tensor, "4 h w"]:
        """Return raw planes [4, h, w], or convert depth in metres, [1, h, w].

        Raises ConditionError for another shape or dtype, or invalid values.
        """
        shape = f"{list(raw.shape)} of {raw.dtype}"
        if raw.ndim == 3 and len(raw) == 1 and raw.is_floating_point():
            return self.from_depth(raw[0].cpu(), None, source)
        if raw.ndim != 3 or len(raw) != 4 or raw.dtype != torch.float16:
            raise ConditionError(
                f"{source}: expected depth in metres, floats [1, h, w], or what `from_depth` returns, float16 "
                f"[4, h, w], got {shape}; convert it, or give a file"
            )
        if (raw.abs() > 1).any():
            raise ConditionError(
                f"{source}: values up to {float(raw.nan_to_num(0).abs().max()):g}; the four planes lie in [-1, 1] "
                "(NaN: unknown); make them with `from_depth`"
            )
        return raw

    # Use

    def crop_resize(self, raw: Float[Tensor, "4 h w"], box: Box, size: Size) -> Float[Tensor, "4 h2 w2"]:
        """Crop `box` and resize it to `size` without mixing surfaces.

        When downsampling, a pixel represents the source pixels that it covers (at most 8 x 8), see `merged`. Upsampling
        uses nearest neighbour.
        """
        height, width = sides_of(size)
        down, across = (min(-(-old // new), _MEMBERS) for old, new in ((box.height, height), (box.width, width)))
        rows = nearest_positions(box.top, box.height, height * down).to(raw.device)
        columns = nearest_positions(box.left, box.width, width * across).to(raw.device)
        cut = raw.index_select(1, rows).index_select(2, columns)  # [4, height · down, width · across]
        if down == across == 1:
            return cut
        cells = cut.view(4, height, down, width, across).transpose(2, 3).flatten(-2)
        return merged(cells).half()  # [4, height, width]

    def flip(self, raw: Float[Tensor, "*batch 4 h w"]) -> Float[Tensor, "*batch 4 h w"]:
        """Mirror left to right: n_x is negated."""
        return raw.flip(-1) * torch.tensor([1, -1, 1, 1], dtype=raw.dtype, device=raw.device)[:, None, None]

    def encode(self, raw: Float[Tensor, "*batch 4 h w"]) -> Float[Tensor, "*batch 5 h w"]:
        """Log depth, normal and validity in [-1, 1], float32; unknown values are 0."""
        known = raw[..., :1, :, :].isfinite()
        return torch.cat([raw.float().nan_to_num(0), known.float() * 2 - 1], dim=-3)

    def preview(self, raw: Float[Tensor, "4 h w"]) -> Image.Image:
        """Coloured depth, from light yellow (near) to dark violet (far), shaded by the normals; holes are grey."""
        planes = raw.float().cpu().numpy()
        return Image.fromarray(coloured(planes[0], planes[1:]))

    # Settings

    def to_config(self) -> dict[str, Any]:
        """All settings as plain data."""
        return _GeometryConfig.parse(self._settings(), "GeometryCondition").to_dict()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> GeometryCondition:
        """Build from `to_config`'s data. Raises ConditionError, naming source and key."""
        parsed = _parsed(config, source)
        return cls(**{field.name: getattr(parsed, field.name) for field in fields(cls)})

    def reads_like(self, other: Condition) -> bool:
        """Whether both normalise in the same way; units and cameras only concern files."""
        if not isinstance(other, GeometryCondition):
            return False
        fixed = (self.near, self.near and self.far) == (other.near, other.near and other.far)
        return fixed and self.null_value == other.null_value

    def _settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _parsed(config: Mapping[str, Any], source: str) -> _GeometryConfig:
    try:
        return _GeometryConfig.parse(config, source)
    except SpecError as error:
        raise ConditionError.like(error) from None


HOLE = (128, 128, 128)
"""Grey, which is not in the colour map."""

_LIGHT = (-0.45, -0.6, -0.66)  # from above and the left, behind the camera
_AMBIENT, _UNKNOWN = 0.5, 0.85  # brightness in shadow, and for unknown normals

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
    """Colours from near (0) to far (255): lightness falls in equal steps of Oklab, hue changes from yellow to
    violet."""
    t = np.linspace(0, 1, 256)
    lightness = 0.93 - 0.66 * t
    hue = np.radians(103 + 202 * t)
    chroma = 0.155 - 0.19 * t + 0.16 * t**2
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1)  # [256, 3]
    linear = (((lab @ _LMS_OF_LAB.T) ** 3) @ _RGB_OF_LMS.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def coloured(depth: Float[np.ndarray, "h w"], normal: Float[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """An image of depth in [-1, 1] (NaN: hole, `HOLE`), shaded by the normals (NaN: unknown)."""
    hole = np.isnan(depth)
    place = ((np.where(hole, 0, depth) + 1) * 127.5).round().astype(np.uint8)
    lit = np.einsum("c,chw->hw", np.array(_LIGHT) / np.linalg.norm(_LIGHT), normal)
    shade = np.where(np.isnan(lit), _UNKNOWN, _AMBIENT + (1 - _AMBIENT) * lit.clip(0, 1))
    picture = depth_colours()[place] * shade[..., None]
    return np.where(hole[..., None], np.array(HOLE), picture.round()).astype(np.uint8)
