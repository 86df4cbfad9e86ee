"""Geometry with a pinhole camera: normals from depth, depth discontinuities, downsampling without mixing surfaces.

The camera's frame: x right, y down, z forward. Normals are unit vectors that point out of the surface, so that of a
wall facing the camera is (0, 0, -1); mirroring an image negates their x. NaN is unknown.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from pydantic import Field
from torch import Tensor

from piti.conditions.base import ConditionError
from piti.core.spec import Spec

_ASPECT = 0.02  # largest difference in aspect ratio of a scaled copy
_SAME = 0.05  # largest difference of depths (in a range of 2) on one surface


class Camera(Spec):
    """A pinhole camera for images of a given size, in pixels; pixel centres have integer coordinates."""

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    width: int = Field(ge=1)
    height: int = Field(ge=1)

    @classmethod
    def of_view(cls, degrees: float, width: int, height: int) -> Camera:
        """The camera with this horizontal field of view, square pixels, and its axis through the centre."""
        focal = width / 2 / math.tan(math.radians(degrees) / 2)
        return cls(fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2, width=width, height=height)

    def scaled(self, width: int, height: int, source: str) -> Camera:
        """The camera for images resized to this size. Raises ConditionError for another aspect ratio."""
        x, y = width / self.width, height / self.height
        if abs(x / y - 1) > _ASPECT:
            raise ConditionError(
                f"{source}: {width} x {height} is not a scaled copy of the {self.width} x {self.height} for which "
                "condition.camera is given; set the camera of these images"
            )
        cx, cy = (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5
        return Camera(fx=self.fx * x, fy=self.fy * y, cx=cx, cy=cy, width=width, height=height)

    def matrix(self) -> Float[Tensor, "3 3"]:
        """The intrinsics K, float32."""
        return torch.tensor([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=torch.float32)

    def rays(self) -> Float[Tensor, "3 h w"]:
        """The ray of every pixel, with z = 1."""
        x = (torch.arange(self.width, dtype=torch.float32) - self.cx) / self.fx
        y = (torch.arange(self.height, dtype=torch.float32) - self.cy) / self.fy
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, torch.ones_like(x)])


def normals_of_depth(depth: Float[Tensor, "h w"], camera: Camera, jump: float) -> Float[Tensor, "3 h w"]:
    """Unit normals towards the camera from depth in metres, 0 in holes.

    The cross product of Sobel derivatives of the unprojected points; exact for planes. NaN where the 3 x 3
    neighbourhood touches a hole or a jump (see `jumps`), and everywhere in an image one pixel wide.
    """
    from kornia.geometry.depth import depth_to_normals

    height, width = depth.shape
    if min(height, width) < 2:
        return torch.full((3, height, width), torch.nan)
    hole = depth <= 0
    filled = torch.where(hole, 1, depth)
    away = depth_to_normals(filled[None, None], camera.matrix()[None])[0]  # [3, h, w], from the camera
    unknown = _near(hole, 3, 3) | jumps(filled, jump)
    return torch.where(unknown, torch.nan, -away)


def jumps(depth: Float[Tensor, "h w"], share: float) -> Bool[Tensor, "h w"]:
    """Depth discontinuities within the 3 x 3 neighbourhood.

    On any plane, 1 / depth is linear in pixels; a jump is where its second difference along a row or column exceeds
    `share` of it. depth: above 0 everywhere.
    """
    inverse = 1 / depth
    broken = torch.zeros_like(depth, dtype=torch.bool)
    for axis, reach in ((-1, (3, 1)), (-2, (1, 3))):
        if depth.shape[axis] >= 3:
            broken |= _near(_bends(inverse, axis) > share, *reach)
    return broken


def _bends(inverse: Float[Tensor, "h w"], axis: int) -> Float[Tensor, "h w"]:
    """|second difference| / value along an axis; replicated at its ends."""
    inner = inverse.diff(2, axis).abs() / inverse.narrow(axis, 1, inverse.shape[axis] - 2)
    padding = (1, 1, 0, 0) if axis == -1 else (0, 0, 1, 1)
    return F.pad(inner[None, None], padding, mode="replicate")[0, 0]


def _near(mask: Bool[Tensor, "h w"], height: int, width: int) -> Bool[Tensor, "h w"]:
    """Whether any pixel in a window of this odd size is True."""
    window, padding = (height, width), (height // 2, width // 2)
    return F.max_pool2d(mask[None].float(), window, 1, padding)[0] > 0


def towards_camera(
    normal: Float[Tensor, "3 h w"], rays: Float[Tensor, "3 h w"]
) -> tuple[Float[Tensor, "3 h w"], float]:
    """Normals, negated if they point away from the camera, which visible surfaces do not; and the negated share."""
    away = (normal * rays).sum(0) > 0
    known = int(normal[0].isfinite().sum())
    return torch.where(away, -normal, normal), int(away.sum()) / max(known, 1)


# Resizing


def merged(cells: Shaped[Tensor, "4 h w members"]) -> Float[Tensor, "4 h w"]:
    """Merge pixels: depth and normal of the surface that most of them show, float32.

    Depth is the (lower) median of valid ones, so never between two surfaces; the normal is the normalised mean of those
    at about that depth. All NaN if fewer than half are valid, so that holes neither grow nor shrink; NaN for the normal
    if none at that depth has one.
    """
    depth, normal = cells[0].float(), cells[1:].float()
    middle = depth.nanmedian(-1).values  # [h, w]
    known = ((depth - middle[..., None]).abs() <= _SAME) & normal[0].isfinite()  # [h, w, members]
    total = torch.where(known, normal, 0).sum(-1)  # [3, h, w]
    length = total.square().sum(0).sqrt()
    unit = torch.where(length > 1e-3, total / length, torch.nan)
    enough = 2 * depth.isfinite().sum(-1) >= depth.shape[-1]
    return torch.where(enough, torch.cat([middle[None], unit]), torch.nan)
