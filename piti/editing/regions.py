"""Which part of an image an edit repaints: where two conditions differ, grown and feathered.

A region is float32 [h, w] in [0, 1]. What is 0 is outside and is kept; what is 1 is repainted; between, a mixture.
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

_SAME = 0.02  # of the range of log depth and of normals, [-1, 1]: what differs by less is the same
_GAP = 0.06  # of the short side: lines of two sketches that are nearer to each other bound one change


class EditError(UserError):
    """An image cannot be edited as asked. The message says what was given and what to do."""


def changed(
    condition: Condition, before: Shaped[Tensor, "K h w"], after: Shaped[Tensor, "K h w"], within: int = 0
) -> Bool[Tensor, "h w"]:
    """Where two conditions in raw form and of one size differ.

    within: by how many pixels edges may be off, as they are where one of the two was resized.
    Of sketches also what lies between lines that went and lines that came close by, and what they enclose. Of several
    parts what is changed in any; everything, where a part is given in one alone. Of texts everything or nothing.
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
    """Where the value of either is not in the other, at most `within` pixels away in each direction."""
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

    No changed pixel is lost where the image is smaller. dilate: by how much it is grown, where it is still 1; feather:
    the width of the ramp around that; both as shares of the image's short side.
    """
    resized = resized_to(differs, size)
    grown, end = (_pixels(share, size) for share in (dilate, dilate + feather))
    return _smooth((end + 1 - distance(resized, end)) / (end + 1 - grown))


def white_of(region: Image.Image) -> Bool[Tensor, "h w"]:
    """Where a picture is white rather than black, at its own size; what is transparent is not. Raises ImageError."""
    return torch.from_numpy(np.asarray(as_rgb(region, "the region", behind="black").convert("L")) > 127)


def resized_to(inside: Bool[Tensor, "h w"], size: tuple[int, int]) -> Bool[Tensor, "h2 w2"]:
    """The same at another size (height, width): a smaller pixel is inside if anything in it is, so no line is lost."""
    if size[0] >= inside.shape[0] and size[1] >= inside.shape[1]:
        return F.interpolate(inside[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    return F.adaptive_max_pool2d(inside[None].float(), size)[0] > 0


def mixed(
    condition: Condition,
    before: Shaped[Tensor, "K h w"],
    after: Shaped[Tensor, "K h w"],
    inside: Bool[Tensor, "h2 w2"],
) -> Shaped[Tensor, "K h w"] | None:
    """`after` inside, at whatever size that is said, and `before` outside.

    None where that is no condition: of texts, and of different parts.
    """
    if not condition.spatial:
        return None
    if isinstance(condition, SeveralCondition) and not torch.equal(condition.given(before), condition.given(after)):
        return None
    whole = resized_to(inside, (after.shape[-2], after.shape[-1]))
    return torch.where(whole, after, before.to(after.dtype))


def softened(inside: Bool[Tensor, "h w"], width: int) -> Float[Tensor, "h w"]:
    """A region that is 0 where `inside` is not, and rises to 1 over `width` pixels inside.

    Where nothing is as deep as that, it reaches 1 where it is deepest. The image's border is no edge.
    """
    deep = distance(~inside, width + 1)  # 0 outside, then 1, …
    full = min(width + 1.0, float(deep.max()))
    return _smooth(deep / full if full > 0 else deep)


def _smooth(ramp: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """0 up to 0, 1 from 1 on, without a kink at either."""
    t = ramp.clamp(0, 1)
    return t * t * (3 - 2 * t)


def distance(inside: Bool[Tensor, "h w"], reach: int) -> Float[Tensor, "h w"]:
    """Euclidean distance of every pixel to the nearest that is `inside`; `reach` + 1 where it is more than `reach`.

    Exact: squared distances separate, so the least over columns follows from the least over rows.
    """
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
    """Lines, the narrow gaps between them, and what they go around."""
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
