"""The region that an edit repaints: where two conditions differ, dilated and feathered.

A region is float32 [h, w] in [0, 1]: 0 is kept, 1 is repainted, values between are blended.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor

from piti.conditions import Condition, GeometryCondition, SeveralCondition, SketchCondition
from piti.core.connected_components import connected
from piti.core.errors import UserError
from piti.core.images import as_rgb

_SAME = 0.02  # smaller differences of log depth and of normals, in [-1, 1], are ignored
_GAP = 0.06  # of the short side: largest gap between lines of two sketches that bound one change


class EditError(UserError):
    """An image cannot be edited as requested. The message says what was given and what to do."""


def changed(
    condition: Condition, before: Shaped[Tensor, "K h w"], after: Shaped[Tensor, "K h w"], within: int = 0
) -> Bool[Tensor, "h w"]:
    """Where two raw conditions of the same size differ.

    within: tolerance for edges in pixels, for conditions that were resized. For sketches also the areas between removed
    lines and new ones near by, and areas enclosed by them. For several parts, where any of them differs; everything if
    a part is given in only one. For texts everything or nothing.
    """
    if not condition.spatial:
        return torch.full((1, 1), not torch.equal(before, after))
    if isinstance(condition, SeveralCondition):
        return _any_part_changed(condition, before, after, within)
    if isinstance(condition, SketchCondition):
        return _enclosed(_apart(before, after, within))
    if isinstance(condition, GeometryCondition):
        near = torch.isclose(before.float(), after.float(), rtol=0, atol=_SAME, equal_nan=True)
        return ~near.all(dim=0)
    return _apart(before, after, within)


def _apart(one: Shaped[Tensor, "K h w"], other: Shaped[Tensor, "K h w"], within: int) -> Bool[Tensor, "h w"]:
    """Where a value of either does not occur in the other within `within` pixels in each direction."""
    height, width = one.shape[-2:]
    found = torch.zeros(2, height, width, dtype=torch.bool)
    padded = [F.pad(x[None].double(), (within,) * 4, mode="replicate")[0].to(x.dtype) for x in (one, other)]
    for row, column in product(range(2 * within + 1), repeat=2):
        nearby = [x[:, row : row + height, column : column + width] for x in padded]
        found |= torch.stack([(one == nearby[1]).all(dim=0), (other == nearby[0]).all(dim=0)])
    return ~found.all(dim=0)


def derived(
    differs: Bool[Tensor, "h w"], size: tuple[int, int], dilate: float, feather: float
) -> Float[Tensor, "h2 w2"]:
    """The region of an image of `size` (height, width) for a change in its condition.

    No changed pixel is lost if the image is smaller. dilate: distance by which the change is grown, with value 1;
    feather: width of the ramp around that; both as shares of the image's short side.
    """
    resized = resized_to(differs, size)
    grown, end = (_pixels(share, size) for share in (dilate, dilate + feather))
    return _smooth((end + 1 - distance(resized, end)) / (end + 1 - grown))


def white_of(region: Image.Image) -> Bool[Tensor, "h w"]:
    """Where an image is white rather than black, at its own size; transparent pixels count as black. Raises
    ImageError."""
    return torch.from_numpy(np.asarray(as_rgb(region, "the region", behind="black").convert("L")) > 127)


def resized_to(inside: Bool[Tensor, "h w"], size: tuple[int, int]) -> Bool[Tensor, "h2 w2"]:
    """Resize to (height, width): when reducing, a pixel is inside if any of its pixels is, so that no line is lost."""
    if size[0] >= inside.shape[0] and size[1] >= inside.shape[1]:
        return F.interpolate(inside[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    return F.adaptive_max_pool2d(inside[None].float(), size)[0] > 0


def mixed(
    condition: Condition,
    before: Shaped[Tensor, "K h w"],
    after: Shaped[Tensor, "K h w"],
    inside: Bool[Tensor, "h2 w2"],
) -> Shaped[Tensor, "K h w"] | None:
    """`after` inside the region (of any size), and `before` outside. None if they cannot be combined: for texts, and
    for different parts."""
    if not condition.spatial:
        return None
    if isinstance(condition, SeveralCondition) and not torch.equal(condition.given(before), condition.given(after)):
        return None
    whole = resized_to(inside, (after.shape[-2], after.shape[-1]))
    return torch.where(whole, after, before.to(after.dtype))


def softened(inside: Bool[Tensor, "h w"], width: int) -> Float[Tensor, "h w"]:
    """A region that is 0 outside `inside`, and rises to 1 over `width` pixels inside. In narrower areas it reaches 1
    where they are deepest. The image's border does not count as an edge."""
    deep = distance(~inside, width + 1)  # 0 outside, then 1, …
    full = min(width + 1.0, float(deep.max()))
    return _smooth(deep / full if full > 0 else deep)


def _smooth(ramp: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Smoothstep from 0 to 1."""
    t = ramp.clamp(0, 1)
    return t * t * (3 - 2 * t)


def distance(inside: Bool[Tensor, "h w"], reach: int) -> Float[Tensor, "h w"]:
    """Euclidean distance of every pixel to the nearest one `inside`; `reach` + 1 beyond `reach`. Exact, since squared
    distances are separable."""
    squared = torch.where(inside, 0.0, math.inf)
    for axis in (0, 1):
        lowest, length = squared.clone(), squared.shape[axis]
        for offset in range(1, min(reach, length - 1) + 1):
            for here, there in ((offset, 0), (0, offset)):
                mine, other = (
                    x.narrow(axis, start, length - offset) for x, start in ((lowest, here), (squared, there))
                )
                mine.copy_(torch.minimum(mine, other + offset**2))
        squared = lowest
    far = squared.sqrt()
    return torch.where(far <= reach, far, reach + 1.0)


def _pixels(share: float, size: tuple[int, int]) -> int:
    return round(share * min(size))


def _any_part_changed(
    condition: SeveralCondition, before: Shaped[Tensor, "K h w"], after: Shaped[Tensor, "K h w"], within: int
) -> Bool[Tensor, "h w"]:
    first, second = (condition.given(raw) for raw in (before, after))
    if not torch.equal(first, second):
        return torch.ones(before.shape[-2:], dtype=torch.bool)
    found = torch.zeros(before.shape[-2:], dtype=torch.bool)
    parts = condition.parts.values()
    edges = [len(parts)]
    for part in parts:
        edges.append(edges[-1] + part.planes)
    for part, given, (start, stop) in zip(parts, first.tolist(), pairwise(edges), strict=True):
        if given:
            own, other = (raw[start:stop].to(part.raw_dtype) for raw in (before, after))
            found |= changed(part, own, other, within)
    return found


def _enclosed(lines: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Lines, the narrow gaps between them, and the areas they enclose."""
    if not lines.any():
        return lines
    half = max(1, _pixels(_GAP / 2, (lines.shape[0], lines.shape[1])))
    padded = F.pad(lines[None].float(), (half, half, half, half), mode="replicate")[0] > 0
    grown = distance(padded, half) <= half
    numbers = connected(grown.long())
    border = torch.cat([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]]).unique()
    filled = grown | ~torch.isin(numbers, border)
    closed = (distance(~filled, half) > half) | padded
    return closed[half:-half, half:-half]
