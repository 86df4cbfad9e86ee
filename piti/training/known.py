"""The known part of the image in training an inpainting translator: all but a region, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from piti.core.seeding import uniform_for
from piti.core.spec import Spec


class KnownSpec(Spec):
    """The regions erased from photographs in training an inpainting translator.

    GLIDE erases random regions in finetuning (Nichol et al. 2021, arXiv 2112.10741) and does not state which; these
    rectangles are ours. Where nothing is known, the translator learns to generate whole images, as without `inpaint`.
    """

    nothing: float = Field(default=0.3, ge=0, le=1)
    """Share of samples with nothing known."""
    sides: tuple[float, float] = (0.2, 0.8)
    """Range of the erased rectangle's sides, as shares of the image's; each is drawn uniformly."""

    @field_validator("sides")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("expected [from, to] with 0 < from <= to <= 1, shares of the image's sides")
        return value

    def of(self, images: Float[Tensor, "b 3 h w"], seed: int, numbers: Sequence[int]) -> Float[Tensor, "b 4 h w"]:
        """The known part of images in [-1, 1]: the erased images, and a mask with 1 where they are known.

        numbers: the samples' numbers, which determine the erased region with the seed.
        """
        drawn = uniform_for(seed, "known", numbers, 5)  # [B, 5]
        low, high = self.sides
        height, width = images.shape[-2:]
        tall, wide = (low + (high - low) * drawn[:, 1:3]).unbind(dim=1)
        top, left = (1 - tall) * drawn[:, 3], (1 - wide) * drawn[:, 4]
        rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
        down = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # [B, H]
        across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # [B, W]
        known = ~(down[:, :, None] & across[:, None, :]) & (drawn[:, 0] >= self.nothing)[:, None, None]
        return torch.cat([images, known[:, None].to(images)], dim=1)
