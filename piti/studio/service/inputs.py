"""Untrusted images: only known formats, with the size checked in the header before decoding."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from piti.conditions import Condition, ConditionError, GeometryCondition, MaskCondition, SketchCondition
from piti.conditions.drawings import drawing_remedy
from piti.conditions.mask_files import UndecidedMask
from piti.core.errors import UserError, first_line
from piti.core.formats import ARRAYS, decoders
from piti.core.images import ImageError, Source, open_image, read_rgb
from piti.studio.service.palette_matching import snapped
from piti.studio.service.schema import TooLarge

_KNOWN = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000"
_DEPTH_BYTES = 24  # largest size of a pixel: depth in 64 bits, a mask, a normal of three times 32
_HEADERS = 1 << 16  # bytes other than arrays' values


class NoPicture(ImageError):
    """The data are not an image of a supported format."""


@dataclass(frozen=True)
class Upload:
    """An image file in memory; `str` names it in errors."""

    data: bytes
    name: str

    def open(self) -> BinaryIO:
        """Its bytes as a file."""
        return BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


Handed = Image.Image | Upload | bytes | Path
"""An image as given: decoded, checked, or neither."""


def checked_upload(data: bytes | Path, name: str, most: int) -> Upload:
    """Check an image's header before decoding. most: pixels.

    Raises NoPicture for other data, TooLarge for more pixels, ImageError for a file that cannot be read.
    """
    data = _bytes_of(data, name)
    if not data:
        raise NoPicture(f"{name}: is empty; choose an image ({_KNOWN})")
    try:
        with Image.open(BytesIO(data), formats=decoders()) as header:
            width, height = header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"{name}: has more pixels than can be decoded safely; make it smaller") from None
    except UnidentifiedImageError:
        raise NoPicture(f"{name}: is not a supported image; save it as PNG or JPEG") from None
    except Exception as error:  # noqa: BLE001  # decoders raise whatever comes to them of hostile headers
        raise _damaged(name, error) from None
    if width * height > most:
        raise TooLarge(f"{name}: has {width} x {height} pixels, at most {most} are allowed; make it smaller")
    return Upload(data, name)


def _bytes_of(data: bytes | Path, name: str) -> bytes:
    if not isinstance(data, Path):
        return data
    try:
        return data.read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); upload it again") from None


def read_arrays(condition: GeometryCondition, data: bytes | Path, name: str, most: int) -> Tensor | None:
    """Depth in a NumPy file, in raw form; None for other files. most: pixels.

    Raises TooLarge before unpacking more than this many pixels, NoPicture for an EXR, whose size cannot be limited
    before decoding, ImageError or ConditionError for other contents.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix == ".exr":
        raise NoPicture(
            f"{name}: EXR is not supported here; save depth as a 16-bit grey PNG, or in metres as .npy or .npz"
        )
    if suffix not in ARRAYS:
        return None
    upload = Upload(_bytes_of(data, name), name)
    raw = None if _unpacked(upload) > most * _DEPTH_BYTES + _HEADERS else condition.load(upload)
    if raw is None or raw.shape[-2] * raw.shape[-1] > most:
        raise TooLarge(f"{name}: has more than {most} pixels; make it smaller")
    return raw


def _unpacked(upload: Upload) -> int:
    """Unpacked size of a file in bytes. Raises ImageError for archives not written by `numpy.savez`."""
    if not zipfile.is_zipfile(upload.open()):
        return len(upload.data)
    try:
        with zipfile.ZipFile(upload.open()) as archive:
            members = archive.infolist()
    except Exception as error:  # noqa: BLE001  # of hostile archives, whatever comes
        raise ImageError(f"{upload}: is damaged ({error}); save it again with numpy.savez") from None
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ImageError(f"{upload}: uses another compression than NumPy; save it again with numpy.savez")
    return sum(member.file_size for member in members)


def opened(given: Handed, name: str, most: int) -> Image.Image:
    """An image decoded upright, in its own mode. Raises NoPicture, TooLarge, or ImageError for a damaged one."""
    return _safely(open_image, given, name, most)


def photograph(given: Handed, name: str, most: int) -> Image.Image:
    """The same as 8-bit RGB."""
    return _safely(read_rgb, given, name, most)


def _safely(read: Callable[[Source], Image.Image], given: Handed, name: str, most: int) -> Image.Image:
    if isinstance(given, Image.Image):
        if given.width * given.height > most:
            raise TooLarge(f"{name}: has {given.width} x {given.height} pixels, at most {most} are allowed")
        return given.convert("RGB") if read is read_rgb else given
    try:
        return read(given if isinstance(given, Upload) else checked_upload(given, name, most))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name}: is damaged ({first_line(error)[:100]}); copy or export the file again")


_INKED = 128  # darker pixels are lines, on a page known to be white


def read_picture(condition: Condition, picture: Image.Image, source: str) -> Tensor:
    """A condition in raw form, from a decoded image. Raises ConditionError.

    Inexact colours of a mask are mapped to the nearest class, see `snapped`; ids must be exact, and ambiguous masks are
    refused.
    """
    if not isinstance(condition, MaskCondition):
        return condition.read(picture, source)
    try:
        return condition.read(picture, source)
    except UndecidedMask:
        raise
    except ConditionError:
        if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I"):
            raise
    return _read_colours(condition, picture, source)


def read_painted(condition: Condition, picture: Image.Image, source: str) -> Tensor:
    """The same for an image from the painter, with masks in colours, and sketches of dark lines, however dense."""
    if isinstance(condition, MaskCondition):
        condition = replace(condition, reading="colours")
    if not isinstance(condition, SketchCondition):
        return read_picture(condition, picture, source)
    return torch.from_numpy((np.asarray(picture.convert("L")) < _INKED).astype(np.uint8))[None]


def shown(condition: Condition, raw: Tensor) -> Image.Image:
    """A condition as the painter shows it: RGB in class colours, or black on white."""
    if not isinstance(condition, SketchCondition):
        return condition.preview(raw)
    return Image.fromarray(np.where(raw[0].numpy() != 0, 0, 255).astype(np.uint8)).convert("RGB")


def _read_colours(condition: MaskCondition, picture: Image.Image, source: str) -> Tensor:
    """Read a mask with approximate colours; mostly transparent pixels are unlabelled."""
    table, unlabelled = condition.classes, condition.ignore_index
    colours, indices = list(table.colours), list(range(table.count))
    if table.ignore_colour is not None:
        colours.append(table.ignore_colour)
        indices.append(unlabelled)
    pixels = picture if picture.has_transparency_data else picture.convert("RGB")
    values = np.asarray(pixels.convert("RGBA"))
    hidden = values[..., 3] < 128
    filling = np.array(colours[-1], np.uint8)  # a known colour, so that invisible pixels are never refused
    try:
        near = snapped(np.where(hidden[..., None], filling, values[..., :3]), colours, source)
    except ConditionError as error:
        error.remedy = drawing_remedy(picture)
        raise
    found = np.where(hidden, unlabelled, np.array(indices)[near])
    raw = torch.from_numpy(found.astype(np.uint8 if unlabelled == 255 else np.int16))[None]
    return condition.checked(raw, source)
