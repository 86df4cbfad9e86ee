"""Pictures that were made, kept for a while under names that nobody can guess."""

from __future__ import annotations

import secrets
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError
from piti.core.images import png_bytes, same_proportions
from piti.editing import EditInput
from piti.generation.generate import MadeImage
from piti.pipelines.cascade import Prepared
from piti.studio.service.inputs import Upload, photograph

if TYPE_CHECKING:
    from piti.studio.service.edits import Edit


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
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @classmethod
    def of(cls, made: MadeImage, model: str, raw: Tensor | None) -> Picture:
        """Of an image that was made, as the file that it is saved as."""
        return cls(png_bytes(made.image, made.text), made.number, *made.image.size, model, raw)

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

    def add(self, picture: Picture) -> Picture:
        """Keep a picture; the oldest go where there is no room, the new one stays."""
        with self._lock:
            self._kept[picture.id] = picture
            self._bytes += picture.size
            while len(self._kept) > 1 and (len(self._kept) > self._most or self._bytes > self._most_bytes):
                self._bytes -= self._kept.popitem(last=False)[1].size
        return picture

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

_NONE = Image.new("RGB", (1, 1))
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


def held_edit(edit: Edit, upload: Upload | None = None) -> Held[Edit]:
    """An edit that is put away. upload: see `held_photograph`."""
    given = edit.given
    image, to = held_photograph(edit, upload), held_prepared(given.to)
    before = None if given.from_ is None else held_tensor(given.from_)
    region = None if given.region is None else held_image(given.region)
    bare = replace(edit, given=EditInput(_NONE, given.to.bare()))

    def out() -> Edit:
        own = None if before is None else before.out()
        white = None if region is None else region.out()
        return replace(bare, given=EditInput(image.out(), to.out(), own, white))

    return Held(sum(part.size for part in (image, to, before, region) if part is not None), out)


def held_photograph(edit: Edit, upload: Upload | None = None) -> Held[Image.Image]:
    """The photograph of an edit. upload: the file that it was read from, where it was.

    Where its size is to be kept it stays as it came, an upload as compressed as it is. Else it is brought to the size
    at which it is edited, as editing itself would bring it there; one of other proportions than its condition is
    left for editing to refuse.
    """
    image, raw, canvas = edit.given.image, edit.given.to.raw, edit.given.to.canvas
    size = (canvas.image_width, canvas.image_height)
    pixels = image.width * image.height
    if edit.request.keep_exact and upload is not None:
        return Held(len(upload.data), lambda: photograph(upload, upload.name, pixels))
    large = pixels > size[0] * size[1] and image.mode == "RGB"
    over = edit.loaded.condition.spatial and same_proportions(image.size, (raw.shape[-1], raw.shape[-2]))
    if large and over and not edit.request.keep_exact:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return Held(image.width * image.height * len(image.getbands()), lambda: image)
