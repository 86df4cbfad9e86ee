"""Segmentation masks as RGB images of class colours, as in the released models; COCO-Stuff's table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from piti.conditions.base import register
from piti.conditions.class_table import ClassTable
from piti.conditions.mask import MaskCondition
from piti.core.images import from_uint8


@cache
def coco_stuff() -> ClassTable:
    """The 182 classes of COCO-Stuff in the colours of the released mask models; unlabelled is 255, black.

    Ids are the pixel values of COCO-Stuff's pixel maps, 0 ('person') to 181 ('wood'): one less than the ids of
    its label list, 1 to 182, so subtract 1 from maps in those. (The list's 0, 'unlabeled', is 255 in the
    maps.) 11 of the first 91 classes, such as 'hat' and 'shoe', have a colour but occur in no annotation.
    """
    return ClassTable.read(Path(__file__).with_name("coco_stuff.json"))


@register
@dataclass(frozen=True)
class PaletteCondition(MaskCondition):
    """A segmentation mask that is encoded as an image of its class colours, as in the released models.

    Files, raw form and preview are `MaskCondition`'s. Encoded: the class colours in [-1, 1], three channels;
    unlabelled pixels in the table's colour for them, black where it has none. Such a model has learned these colours,
    so its class table must keep them. null_value fills the null condition; 1 in the release, a white image, which
    cannot be confused with a mask unless a class is white.
    """

    kind: ClassVar[str] = "palette"
    usual_folder: ClassVar[str | None] = "labels"

    null_value: float = 1.0

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def encode(self, raw: Integer[Tensor, "*batch 1 h w"]) -> Float[Tensor, "*batch C h w"]:
        """Class colours in [-1, 1], float32: colour / 127.5 - 1."""
        colours = from_uint8(torch.from_numpy(self._colour_of_index)).to(raw.device)  # [indices, 3]
        return colours[raw.squeeze(-3).long()].movedim(-1, -3)  # [..., 3, h, w]
