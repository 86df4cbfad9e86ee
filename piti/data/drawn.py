"""Augmentation of extracted lines in training to resemble hand drawings: thinned, warped and incomplete."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from piti.core.spec import Spec
from piti.data.edges import thinned

BENDS = 6
"""Control points of the warp along each side; it is smooth between them."""
STROKES = 16
"""Resolution of the gaps: they are about as long as a side divided by this."""
HIT = 0.35
"""Coverage above which a pixel belongs to a warped line; below a half, so that lines stay connected."""


class DrawnSpec(Spec):
    """Augmentation that makes training sketches (edges of photographs) resemble hand drawings. A model that has seen
    only complete and exact edges takes every gap for an end and every bend for a shape. Neither the paper nor the
    released code does this."""

    share: float = Field(default=0.5, ge=0, le=1)
    """Share of samples that are augmented."""
    thin: float = Field(default=0.5, ge=0, le=1)
    """Share of these that are first thinned to one pixel."""
    wobble: float = Field(default=0.02, ge=0, le=0.05)
    """Standard deviation of the warp as a share of the short side, drawn uniformly from 0 to this."""
    gaps: float = Field(default=0.3, ge=0, lt=1)
    """Share of the lines that is removed, drawn uniformly from 0 to this."""

    def __call__(self, lines: Bool[Tensor, "h w"], generator: torch.Generator) -> Bool[Tensor, "h w"]:
        """Augment the lines of one sample, True on lines, with the configured probability."""
        chosen, thin, wobble, gaps = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        bends = torch.randn(2, BENDS, BENDS, generator=generator)
        strokes = torch.randn(1, STROKES, STROKES, generator=generator)
        if chosen >= self.share or not lines.any():
            return lines
        if thin < self.thin:
            lines = thinned(lines)
        lines = bent(lines, wobble * self.wobble * min(lines.shape) * _smooth(bends, lines))
        return with_gaps(lines, _smooth(strokes, lines)[0], gaps * self.gaps)


def bent(lines: Bool[Tensor, "h w"], shift: Float[Tensor, "2 h w"]) -> Bool[Tensor, "h w"]:
    """Warp by `shift` rows and columns per pixel, with replicated borders."""
    sides = torch.tensor(lines.shape)
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in lines.shape)
    place = torch.stack([rows[:, None] + shift[0], columns + shift[1]])  # [2, h, w]
    scaled = 2 * place / (sides - 1).clamp(min=1)[:, None, None] - 1
    grid = scaled.flip(0).permute(1, 2, 0)[None]  # [1, h, w, (x, y)]
    covered = F.grid_sample(lines[None, None].float(), grid, padding_mode="border", align_corners=True)
    return covered[0, 0] > HIT


def with_gaps(lines: Bool[Tensor, "h w"], noise: Float[Tensor, "h w"], share: float) -> Bool[Tensor, "h w"]:
    """Remove that share of the lines' pixels where the noise is lowest."""
    on_lines = noise[lines]
    left_out = int(share * len(on_lines))
    if not left_out:
        return lines
    return lines & (noise > on_lines.kthvalue(left_out).values)


def _smooth(noise: Float[Tensor, "k n n"], over: Bool[Tensor, "h w"]) -> Float[Tensor, "k h w"]:
    return F.interpolate(noise[None], size=over.shape, mode="bicubic", align_corners=True)[0]
