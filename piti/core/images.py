"""Image input and output: safe decoding, cropping, resizing, saving.

The only place where uint8 pixels and tensors in [-1, 1] meet, and where files are decoded or written.
"""

from __future__ import annotations

import io
import os
import struct
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from piti.core.colour import ColourError, check_sixteen_bits, eight_bits, other_colours, to_srgb
from piti.core.errors import UserError, in_utf8
from piti.core.formats import decoders, lossy

MAX_PIXELS = 64_000_000
"""Larger images are refused before decoding (a decompression bomb is a few kB on disk)."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_RGB_MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"}
)  # modes whose values 8-bit RGB represents exactly
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


PREFIX = "piti:"
"""Key prefix of the package's own texts in an image."""


class ImageError(UserError):
    """An image cannot be read, converted or written. The message names the file and what to do."""


class LossyError(ImageError):
    """An image has a lossy format, but exact values are needed."""


@runtime_checkable
class OpenedImage(Protocol):
    """An image that is not a file, such as one inside an archive; `str` names it in errors."""

    def open(self) -> BinaryIO: ...


Source = str | Path | OpenedImage


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


# Reading


def open_image(path: Source, exact: bool = False) -> Image.Image:
    """Decode the image at `path` completely, with EXIF orientation applied, in its own mode.

    The mode is kept, so that label maps (L, P, I;16) are unchanged. For an animation, the first frame. exact: require
    exact values of a single image. Raises ImageError if the file is missing, not an image, damaged, above MAX_PIXELS,
    or with `exact` contains several images; LossyError for a lossy format with `exact`.
    """
    return _decoded(path, exact)[0]


def _decoded(path: Source, exact: bool = False) -> tuple[Image.Image, bool]:
    """The image, and whether its file has 16-bit colours, of which Pillow decodes the upper 8 bits."""
    with _open_header(path) as image:
        if exact and (kind := lossy(image)):
            raise lossy_error(kind, path)
        if exact and (count := getattr(image, "n_frames", 1)) > 1:
            raise ImageError(f"{path}: contains {count} images (pages or frames); save the right one as PNG")
        deep = image.mode[0] not in "IF" and bool(_bits_lost(image))
        try:
            image.load()
        except _DECODER_ERRORS as error:
            raise ImageError(f"{path}: damaged or incomplete ({error}); copy or export the file again") from error
        return upright(image), deep and image.mode in _RGB_MODES


def lossy_error(kind: str, source: object) -> LossyError:
    """The error for an image of a lossy format, see `lossy`, if exact values are needed."""
    return LossyError(
        f"is {kind}, a lossy format, which changes ids, class colours and depth",
        remedy="export it as PNG from its source (saving the lossy file as PNG does not restore it)",
        source=source,
    )


def image_of_array(values: Shaped[np.ndarray, "*any"], source: str) -> Image.Image:
    """The image with an array's pixels, in the mode of a corresponding file.

    values: bool [h, w]; uint8 [h, w], [h, w, 1], RGB [h, w, 3] or RGBA [h, w, 4]; other integers or floats [h, w] or
    [h, w, 1]. Raises ImageError, naming `source`, for others, and for integers beyond 32 bits.
    """
    plane = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    pixels = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
    if not values.size or not (pixels or (plane.ndim == 2 and values.dtype.kind in "biuf")):
        raise ImageError(
            f"expected an array [h, w] of numbers, or of uint8 [h, w, 3] or [h, w, 4], got {list(values.shape)} of "
            f"{values.dtype}",
            remedy="give one such array per condition, several in a list",
            source=source,
        )
    if plane.shape[0] * plane.shape[1] > MAX_PIXELS:
        raise ImageError(f"{source}: {list(values.shape)}, at most {MAX_PIXELS} pixels are read; make it smaller")
    if values.dtype in (np.bool_, np.uint8, np.uint16):
        return Image.fromarray(np.ascontiguousarray(plane))
    if values.dtype.kind == "f":
        return Image.fromarray(plane.astype(np.float32))
    low, high = int(plane.min()), int(plane.max())
    if low < -(2**31) or high >= 2**31:
        raise ImageError(f"{source}: contains integers from {low} to {high}; pixels have at most 32 bits")
    return Image.fromarray(plane.astype(np.int32))


def read_rgb(path: Source) -> Image.Image:
    """Decode a photograph as 8-bit RGB, in sRGB.

    Transparent parts become white, 16-bit greyscale is scaled to 8 bits, ICC profiles are converted. Raises ImageError,
    also for values that do not use the range of their type, such as 12 bits in a 16-bit file.
    """
    image, deep = _decoded(path)
    if deep:
        try:
            check_sixteen_bits(image)
        except ColourError as error:
            raise _range_error(error, str(path)) from None
    return as_rgb(image, str(path))


def as_rgb(image: Image.Image, source: str, behind: str = "white") -> Image.Image:
    """Convert a decoded image to upright 8-bit RGB, as in `read_rgb`. behind: the colour of transparent parts.

    Raises ImageError, naming `source`, for floating-point pixels and for greyscale of another range than its type's.
    """
    image = upright(image)
    if image.mode.startswith("I"):
        info = image.info
        try:
            image = eight_bits(image)
        except ColourError as error:
            raise _range_error(error, source) from None
        image.info = {key: value for key, value in info.items() if key == "icc_profile"}
    if image.mode == "F":
        raise ImageError(f"{source}: floating-point pixels have no fixed range; export as 8-bit PNG or JPEG")
    image = to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image)
    return image.convert("RGB")


def _range_error(error: ColourError, source: str) -> ImageError:
    return ImageError(f"{source}: {error}; export it as 8-bit PNG or JPEG, or with values scaled to 16 bits")


def loss_as_rgb(picture: Image.Image | Source) -> str:
    """A description of what `as_rgb` loses of an image; empty if every pixel keeps its value. Raises ImageError.

    For a decoded image, the number of bits in its file is unknown.
    """
    if not isinstance(picture, Image.Image):
        with _open_header(picture) as header:
            return _bits_lost(header) or loss_as_rgb(open_image(picture))
    lost = _bits_lost(picture) or ("the colours of its ICC profile" if other_colours(picture) else "")
    if not lost and picture.has_transparency_data:
        lost = "" if picture.convert("RGBA").getchannel("A").getextrema() == (255, 255) else "its transparency"
    return lost


def _bits_lost(image: Image.Image) -> str:
    """What 8-bit RGB loses of an image of this mode, or of this file if it is not decoded yet."""
    raw = [tile[3] for tile in getattr(image, "tile", [])]  # how the file's pixels are stored, such as "RGB;16B"
    stored = [args[0] if isinstance(args, tuple) and args else args for args in raw]
    if image.mode[0] in "IF" or any(isinstance(mode, str) and ";16" in mode for mode in stored):
        return "its precision beyond 8 bits"
    return "" if image.mode in _RGB_MODES else f"its colours as {image.mode}"


def image_size(path: Source) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header only. Raises ImageError."""
    with _open_header(path) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in _TURNED  # PIL turns TIFFs itself
        return (height, width) if turned else (width, height)


def image_mode(path: Source) -> str:
    """The mode in which an image is decoded, from the file's header only. Raises ImageError."""
    with _open_header(path) as image:
        return image.mode


def orientation(path: Source) -> int:
    """The EXIF orientation of an image file, 1 if it is upright or has none. Raises ImageError."""
    with _open_header(path) as image:
        return _orientation(image)


def png_text(path: Source) -> dict[str, str]:
    """The texts that `save_png` stored in an image, from its file's header only. Raises ImageError."""
    with _open_header(path) as image:
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def own_text(path: Source) -> dict[str, str]:
    """The package's own texts among these, by their keys without `PREFIX`. Raises ImageError."""
    return {key.removeprefix(PREFIX): value for key, value in png_text(path).items() if key.startswith(PREFIX)}


def _open_header(path: Source) -> Image.Image:
    """Open without decoding; refuse missing, unknown and too large files."""
    try:
        image = Image.open(path if isinstance(path, str | Path) else path.open(), formats=decoders(str(path)))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give an image file") from None
    except _BOMBS as error:
        raise ImageError(f"{path}: refused before decoding ({error}); make it smaller") from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: not a readable image ({error}); save it as PNG or JPEG") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS} are decoded; make it smaller")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the tags are broken."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # PIL would decode the pixels to read chunks after them
    try:
        return image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Apply an image's EXIF orientation."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


# uint8 <-> [-1, 1]


def to_tensor(image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Pixels 0..255 to float32 in [-1, 1]; `to_uint8` undoes it exactly."""
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"expected uint8 pixels [h, w, 3], got {image.dtype} {list(image.shape)}")
    pixels = torch.tensor(np.ascontiguousarray(image))  # [h, w, 3]
    return from_uint8(pixels.permute(2, 0, 1).contiguous())


def from_uint8(pixels: UInt8[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Values 0..255 to float32 in [-1, 1]; `to_uint8` undoes it exactly."""
    return pixels.float().div_(127.5).sub_(1)


def to_uint8(tensor: Float[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    """Values in [-1, 1] to 0..255, rounded to nearest; others are clipped.

    Raises ImageError for NaN or infinite values.
    """
    if not torch.isfinite(tensor).all():
        raise ImageError("NaN or infinite values cannot be shown; the sampling or training diverged")
    return tensor.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def quantized(tensor: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Round values in [-1, 1] to the nearest of the 256 levels of 8-bit pixels, float32.

    Equal to saving and reading the image. Raises ImageError as `to_uint8` does.
    """
    return from_uint8(to_uint8(tensor))


def truncated(tensor: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Round values in [-1, 1] down to the 256 levels of 8-bit pixels, float32, as in PITI's release."""
    return tensor.float().clamp(-1, 1).add(1).mul(127.5).int().float().div_(127.5).sub_(1)


def to_pil(tensor: Float[Tensor, "*batch 3 h w"]) -> Any:
    """[3, h, w] in [-1, 1] to one PIL image, [B, 3, h, w] to a list of them."""
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise ImageError(f"expected [3, h, w] or [B, 3, h, w], got {list(tensor.shape)}")
    if tensor.ndim == 4:
        return [to_pil(image) for image in tensor]
    return Image.fromarray(to_uint8(tensor.detach()).permute(1, 2, 0).cpu().numpy())


# Cropping


def same_proportions(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same aspect ratio, up to rounding to a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def center_box(width: int, height: int) -> Box:
    """The largest centred square."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def crop_resize(
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    box: Box,
    size: int | tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Cut `box` out, then resize it to `size` (a side, or width and height), antialiased.

    The filter does not use pixels outside the box (unlike PIL's `resize(box=...)`), so the result equals
    `image.crop(...).resize(...)`.
    """
    left, top, width, height = box
    if isinstance(image, Image.Image):
        cut = image.crop((left, top, left + width, top + height))
    else:
        cut = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    return cut.resize((size, size) if isinstance(size, int) else size, resample)


# Writing


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Encode an image as PNG. text: metadata, read back by `png_text`. Raises ValueError for unsupported modes."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, in_utf8(value))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(image: Image.Image, path: str | Path, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG atomically.

    text: metadata, stored as PNG text and read back as `PIL.Image.open(path).text`. Missing folders are created. Raises
    ImageError if the image cannot be written; no temporary file remains.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: images are written as PNG; end the name in .png")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        contents = png_bytes(image, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(contents)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | ValueError):
            raise
        what = getattr(error, "strerror", None) or error  # without the temporary file's name
        raise ImageError(f"{path}: cannot be written ({what}); check the folder and the free space") from error
