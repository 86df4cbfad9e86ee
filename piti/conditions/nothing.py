"""No condition at all: for an upsampler, whose small image says everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Files, Size, register, sides_of
from piti.images import Box


@register
class NoCondition(Condition):
    """Nothing is read and nothing is said: raw and encoded tensors have no planes."""

    kind = "none"

    @property
    def channels(self) -> int:
        return 0

    def load(self, path: Files) -> Shaped[Tensor, "K h w"]:
        raise ConditionError(f"{path}: this model takes no condition; choose another --model, or an upsampler's base")

    def read(self, image: Image.Image, source: str) -> Shaped[Tensor, "K h w"]:
        return self.nothing(image.height, image.width)

    def nothing(self, height: int, width: int) -> Shaped[Tensor, "0 height width"]:
        """The raw tensor of this size."""
        return torch.empty(0, height, width, dtype=torch.uint8)

    def crop_resize(self, raw: Shaped[Tensor, "K h w"], box: Box, size: Size) -> Shaped[Tensor, "K h2 w2"]:
        return self.nothing(*sides_of(size))

    def checked(self, raw: Tensor, source: str) -> Shaped[Tensor, "K h w"]:
        if raw.ndim != 3 or len(raw):
            raise ConditionError(f"{source}: expected no planes, [0, h, w], got {list(raw.shape)}")
        return raw

    def encode(self, raw: Shaped[Tensor, "*batch K h w"]) -> Float[Tensor, "*batch C h w"]:
        return raw.float()

    def preview(self, raw: Shaped[Tensor, "K h w"]) -> Image.Image:
        return Image.new("RGB", (raw.shape[-1], raw.shape[-2]), "white")

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> NoCondition:
        unknown = config.keys() - {"kind"}
        if unknown:
            raise ConditionError(f"{source}: kind 'none' takes no {', '.join(sorted(unknown))}; remove it")
        return cls()
