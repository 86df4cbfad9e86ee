"""Pictures that were made, kept for a while under names that nobody can guess."""

from __future__ import annotations

import re
import secrets
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError
from piti.core.images import png_bytes
from piti.generation.generate import MadeImage
from piti.pipelines.cascade import Prepared


class NotKept(UserError):
    """A picture is not kept any longer, or never was."""


@dataclass(frozen=True)
class Picture:
    """A picture that was made."""

    png: bytes
    """With what it takes to make it again, as PNG text."""
    number: int
    width: int
    height: int
    model: str
    raw: Tensor | None = None
    """The condition that it was made of, in raw form."""
    seed: int = 0
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @classmethod
    def of(cls, made: MadeImage, model: str, raw: Tensor | None, seed: int) -> Picture:
        """Of an image that was made, as the file that it is saved as."""
        return cls(png_bytes(made.image, made.text), made.number, *made.image.size, model, raw, seed)

    @property
    def file(self) -> str:
        """What it is called where it is saved, such as `street-7-0.png`: by model, seed and number."""
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.")
        return f"{model or 'piti'}-{self.seed}-{self.number}.png"

    def image(self) -> Image.Image:
        """Its pixels, RGB."""
        return Image.open(BytesIO(self.png)).convert("RGB")

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.png) + (0 if self.raw is None else self.raw.nbytes)


class Store:
    """The newest pictures, at most so many and so many bytes, from whatever thread."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, pictures: Sequence[Picture]) -> None:
        """Keep the pictures of a job; the oldest go where there is no room, these stay."""
        with self._lock:
            for picture in pictures:
                self._kept[picture.id] = picture
                self._bytes += picture.size
            while len(self._kept) > len(pictures) and self._full:
                self._bytes -= self._kept.popitem(last=False)[1].size

    @property
    def _full(self) -> bool:
        return len(self._kept) > self._most or self._bytes > self._most_bytes

    def get(self, picture_id: str) -> Picture:
        """The picture. Raises NotKept."""
        with self._lock:
            found = self._kept.get(picture_id)
        if found is None:
            raise NotKept("this picture is not kept any longer; make it again, or upload the file that you saved")
        return found

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)


T = TypeVar("T")

_QUICK = 1  # zlib's level: conditions are areas and lines, which it makes small at any


@dataclass(frozen=True)
class Held(Generic[T]):
    """Something that is put away until it is needed."""

    size: int
    """Bytes that it takes meanwhile."""
    out: Callable[[], T]
    """It again, equal to the bit."""


def held_tensor(raw: Tensor) -> Held[Tensor]:
    """A condition in raw form, packed."""
    values = raw.cpu().contiguous().numpy()
    data, dtype, shape = zlib.compress(values.tobytes(), _QUICK), values.dtype, values.shape
    return Held(
        len(data), lambda: torch.from_numpy(np.frombuffer(bytearray(zlib.decompress(data)), dtype).reshape(shape))
    )


def held_image(image: Image.Image) -> Held[Image.Image]:
    """A picture without noise, such as a region, packed."""
    data, mode, size = zlib.compress(image.tobytes(), _QUICK), image.mode, image.size
    return Held(len(data), lambda: Image.frombytes(mode, size, zlib.decompress(data)))


def held_prepared(prepared: Prepared) -> Held[Prepared]:
    """A prepared condition, its raw tensor packed."""
    bare, raw = prepared.bare(), held_tensor(prepared.raw)
    return Held(raw.size, lambda: bare.with_raw(raw.out()))
