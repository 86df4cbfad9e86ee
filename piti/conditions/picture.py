"""Images that a network gets as they are, such as the release's images of normals and depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Size, register
from piti.conditions.mask import nearest
from piti.core.images import Box, as_rgb, from_uint8, to_tensor, to_uint8
from piti.core.spec import Spec, SpecError


class _PictureConfig(Spec):
    """Saved configuration of an image condition."""

    kind: Literal["picture"] = "picture"
    null_value: float = Field(1.0, allow_inf_nan=False)


@register
@dataclass(frozen=True)
class PictureCondition(Condition):
    """An image that the network gets as it is.

    Files: 8-bit images; greyscale is converted to RGB, transparent pixels become white. 16 and 32 bits are refused,
    since there is no unique conversion of depth to colours.

    Raw form and preview: RGB, uint8 [3, h, w]. Encoded: the same in [-1, 1]. null_value fills the null condition, ones
    in the release: a white image. Resized by nearest neighbour and mirrored without changing colours, both as in the
    release: the colours of mirrored normals are not adjusted.
    """

    kind: ClassVar[str] = "picture"

    null_value: float = 1.0

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    @property
    def planes(self) -> int:
        """Red, green and blue."""
        return 3

    def read(self, image: Image.Image, source: str) -> UInt8[Tensor, "3 h w"]:
        """RGB of a decoded image. Raises ConditionError for more than 8 bits."""
        if image.mode[0] in "IF":
            raise ConditionError(
                f"has more than 8 bits per channel (mode {image.mode}), but this model reads 8-bit images",
                remedy="export it as 8-bit images like those the model was trained with",
                source=source,
            )
        return to_uint8(to_tensor(as_rgb(image, source)))

    def checked(self, raw: Tensor, source: str) -> UInt8[Tensor, "3 h w"]:
        """Return RGB [3, h, w]. Raises ConditionError for another shape or dtype."""
        if raw.ndim != 3 or len(raw) != 3 or raw.dtype != torch.uint8:
            raise ConditionError(
                f"{source}: expected RGB [3, h, w] of torch.uint8, got {list(raw.shape)} of {raw.dtype}; convert it, "
                "or give an image"
            )
        return raw

    def crop_resize(self, raw: UInt8[Tensor, "3 h w"], box: Box, size: Size) -> UInt8[Tensor, "3 h2 w2"]:
        """Crop `box` and resize it, nearest neighbour, equal to PIL's NEAREST."""
        return nearest(raw, box, size)

    def encode(self, raw: UInt8[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """Colours in [-1, 1], float32: colour / 127.5 - 1."""
        return from_uint8(raw)

    def preview(self, raw: UInt8[Tensor, "3 h w"]) -> Image.Image:
        """The image itself; `read` of the result gives `raw` again."""
        return Image.fromarray(raw.movedim(0, -1).contiguous().cpu().numpy())

    def to_config(self) -> dict[str, Any]:
        """Kind and null value as plain data."""
        return _PictureConfig(null_value=self.null_value).to_dict()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> PictureCondition:
        """Build from `to_config`'s data. Raises ConditionError, naming source and key."""
        try:
            return cls(_PictureConfig.parse(config, source).null_value)
        except SpecError as error:
            raise ConditionError.like(error) from None
