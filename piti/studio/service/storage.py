"""Temporary storage of generated images under unguessable names."""

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
    """An image is no longer kept, or never was."""


@dataclass(frozen=True)
class Picture:
    """A generated image."""

    png: bytes
    """The PNG file, with metadata for recreating it."""
    number: int
    width: int
    height: int
    model: str
    raw: Tensor | None = None
    """Its condition, in raw form."""
    seed: int = 0
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @classmethod
    def of(cls, made: MadeImage, model: str, raw: Tensor | None, seed: int) -> Picture:
        """Encode a generated image as the file that is saved."""
        return cls(png_bytes(made.image, made.text), made.number, *made.image.size, model, raw, seed)

    @property
    def file(self) -> str:
        """Its file name, such as `street-7-0.png`, from model, seed and number."""
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.")
        return f"{model or 'piti'}-{self.seed}-{self.number}.png"

    def image(self) -> Image.Image:
        """Its pixels, RGB."""
        return Image.open(BytesIO(self.png)).convert("RGB")

    @property
    def size(self) -> int:
        """Size in memory in bytes."""
        return len(self.png) + (0 if self.raw is None else self.raw.nbytes)


class Store:
    """The newest images, limited in number and bytes. Thread-safe."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, pictures: Sequence[Picture]) -> None:
        """Store the images of a job, removing the oldest others if necessary."""
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
            raise NotKept("this image is no longer kept; generate it again, or upload the saved file")
        return found

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)


T = TypeVar("T")

_QUICK = 1  # zlib level; conditions consist of areas and lines, which compress well at any


@dataclass(frozen=True)
class Held(Generic[T]):
    """An object packed until it is needed."""

    size: int
    """Its packed size in bytes."""
    out: Callable[[], T]
    """Unpacks it, bit-identical."""


def held_tensor(raw: Tensor) -> Held[Tensor]:
    """Pack a raw condition."""
    values = raw.cpu().contiguous().numpy()
    data, dtype, shape = zlib.compress(values.tobytes(), _QUICK), values.dtype, values.shape
    return Held(
        len(data), lambda: torch.from_numpy(np.frombuffer(bytearray(zlib.decompress(data)), dtype).reshape(shape))
    )


def held_image(image: Image.Image) -> Held[Image.Image]:
    """Pack an image without noise, such as a region."""
    data, mode, size = zlib.compress(image.tobytes(), _QUICK), image.mode, image.size
    return Held(len(data), lambda: Image.frombytes(mode, size, zlib.decompress(data)))


def held_prepared(prepared: Prepared) -> Held[Prepared]:
    """Pack a prepared condition's raw tensor."""
    bare, raw = prepared.bare(), held_tensor(prepared.raw)
    return Held(raw.size, lambda: bare.with_raw(raw.out()))
