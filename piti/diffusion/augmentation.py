"""Differentiable augmentation of a discriminator's inputs (Zhao et al. 2020, arXiv 2006.10738, section 3.2).

An image and the maps aligned with it get the same augmentation, so that a discriminator that also sees a condition
cannot tell fake from real by a shift between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import choices

DRAWS = 7
"""Random numbers in [0, 1) per sample."""
SHIFT = 1 / 8
"""The largest shift, as a share of the side (Zhao et al., appendix)."""


def augmented(
    images: Float[Tensor, "b c h w"],
    over: Sequence[Float[Tensor, "b _ h w"]],
    kinds: Sequence[str],
    uniform: Float[Tensor, "b 7"],
) -> tuple[Tensor, list[Tensor]]:
    """Augment images and the maps aligned with them; differentiable in both.

    images: in [-1, 1]; over: maps of the same size, such as a condition or the enlarged small image, which are shifted
    and cut out too, but keep their colours; kinds: names in `KINDS`; uniform: [B, DRAWS]. Raises UserError for an
    unknown kind.
    """
    u = uniform.to(images)
    if "colour" in kinds:
        images = _coloured(images, u[:, :3])
    maps = [images, *over]
    for kind in (kind for kind in kinds if kind != "colour"):
        maps = _move_named(kind)(maps, u[:, 3:5] if kind == "shift" else u[:, 5:7])
    return maps[0], maps[1:]


def _coloured(x: Tensor, u: Tensor) -> Tensor:
    """Change brightness by ± 0.5, then saturation by a factor from 0 to 2, then contrast by one from 0.5 to 1.5."""
    brightness, saturation, contrast = (u[:, k].view(-1, 1, 1, 1) for k in range(3))
    x = x + brightness - 0.5
    grey = x.mean(dim=1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (x - mean)


def _shifted(maps: list[Tensor], u: Tensor) -> list[Tensor]:
    """Shift by up to `SHIFT` of the sides, in whole pixels; pixels from outside are 0."""
    height, width = maps[0].shape[-2:]
    most = (round(height * SHIFT), round(width * SHIFT))
    moves = [((2 * n + 1) * u[:, k]).floor().long() - n for k, n in enumerate(most)]
    rows = torch.arange(height, device=u.device) + moves[0].view(-1, 1)  # [B, H], of the source
    columns = torch.arange(width, device=u.device) + moves[1].view(-1, 1)  # [B, W]
    rows, columns = (rows.clamp(-1, height) + 1).unsqueeze(2), (columns.clamp(-1, width) + 1).unsqueeze(1)
    batch = torch.arange(len(u), device=u.device).view(-1, 1, 1)
    return [F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2) for x in maps]


def _cut_out(maps: list[Tensor], u: Tensor) -> list[Tensor]:
    """Set a square of half the sides (rounded up) at a random position, possibly across the border, to 0."""
    height, width = maps[0].shape[-2:]
    inside = []
    for k, side in enumerate((height, width)):
        cut = (side + 1) // 2
        # Zhao et al., DiffAugment: an odd square is centred on any pixel, an even one on any line between two pixels,
        # borders included
        first = (u[:, k] * (side + 1 - cut % 2)).floor().long().view(-1, 1) - cut // 2
        beyond = torch.arange(side, device=u.device) - first  # [B, side]
        inside.append((beyond >= 0) & (beyond < cut))
    kept = ~(inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)  # [B, 1, H, W]
    return [x * kept for x in maps]


_MOVES: dict[str, Callable[[list[Tensor], Tensor], list[Tensor]]] = {"shift": _shifted, "cutout": _cut_out}
KINDS = ("colour", *_MOVES)


def _move_named(kind: str) -> Callable[[list[Tensor], Tensor], list[Tensor]]:
    if kind not in _MOVES:
        raise UserError(f"unknown augmentation '{kind}'; {choices(kind, KINDS)}")
    return _MOVES[kind]
