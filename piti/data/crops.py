"""From an image and its condition to a sample: read both, cut the same square out of both, mirror both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from piti.conditions import Condition
from piti.core.images import Box, crop_resize, read_rgb, to_tensor
from piti.data.pairs import FolderSpec, Pair


@dataclass
class Sample:
    """One training example: image in [-1, 1], raw condition (see Condition), and its key."""

    image: Float[Tensor, "3 s s"]
    condition: Shaped[Tensor, "K hc wc"]
    key: str
    low_res: Float[Tensor, "3 l l"] | None = None
    """A small image that a base generated: there is no photograph, and the image is grey."""


Decoded = tuple[UInt8[np.ndarray, "h w 3"], Shaped[Tensor, "K h2 w2"]]
"""An image's pixels and its raw condition."""


@dataclass(frozen=True)
class Cutter:
    """Makes samples of decoded pairs, as a spec says."""

    spec: FolderSpec
    condition: Condition

    def decode(self, pair: Pair) -> Decoded:
        """Read a pair's files. Raises ImageError or ConditionError."""
        image = np.asarray(read_rgb(pair.image))
        return image, self.condition_of(pair, image)

    def condition_of(self, pair: Pair, image: UInt8[np.ndarray, "h w 3"] | None) -> Shaped[Tensor, "K h2 w2"]:
        """The pair's raw condition; no planes for a photograph alone. Raises ImageError or ConditionError."""
        if pair.condition is not None:
            return self.condition.declared(self.condition.load(pair.condition))
        return torch.empty(0, *(image.shape[:2] if image is not None else (0, 0)), dtype=torch.uint8)

    def random(self, decoded: Decoded, key: str, generator: torch.Generator) -> Sample:
        """A random square crop, perhaps mirrored, the same for image and condition; of that lines may change."""
        image, raw = decoded
        box, mirrored = self.draw(image.shape[1], image.shape[0], generator)
        if self.spec.drawn is not None:
            drawn = self.spec.drawn
            raw = self.condition.redrawn(raw, lambda lines: drawn(lines, generator))
        return self.cut((image, raw), key, box, mirrored)

    def center(self, decoded: Decoded, key: str) -> Sample:
        """The centred square of the largest crop, not mirrored: the same every time."""
        height, width = decoded[0].shape[:2]
        side = max(1, round(min(width, height) * self.spec.crop_scale[1]))
        return self.cut(decoded, key, Box((width - side) // 2, (height - side) // 2, side, side), mirrored=False)

    def draw(self, width: int, height: int, generator: torch.Generator) -> tuple[Box, bool]:
        """A box, and whether to mirror. Always four numbers, so that a sample does not depend on what others used."""
        scale, x, y, mirror = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        low, high = self.spec.crop_scale
        side = max(1, round(min(width, height) * (low + (high - low) * scale)))
        box = Box(int(x * (width - side + 1)), int(y * (height - side + 1)), side, side)
        return box, self.spec.flip and mirror < 0.5

    def cut(self, decoded: Decoded, key: str, box: Box, mirrored: bool) -> Sample:
        """The sample of a box."""
        image, raw = decoded
        pixels = to_tensor(crop_resize(image, box, self.spec.size))  # [3, s, s]
        condition = self.condition.crop_resize(raw, box, self.spec.condition_side)  # [K, c, c]
        if mirrored:
            pixels, condition = pixels.flip(-1), self.condition.flip(condition)
        return Sample(pixels, condition, key)
