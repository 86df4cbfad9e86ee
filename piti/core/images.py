"""Pictures in and out: decode safely, crop, resize, save.

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
"""Larger pictures are refused before they are decoded (a decompression bomb is a few kB on disk)."""

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
_RGB_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"})  # each value has one in 8-bit RGB
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height


PREFIX = "piti:"
"""The package's own texts in a picture have keys that begin with it."""


class ImageError(UserError):
    """A picture cannot be read, converted or written. The message names the file and the remedy."""


class LossyError(ImageError):
    """A picture's format changes values, where exact ones are needed."""


@runtime_checkable
class OpenedImage(Protocol):
    """A picture that is no file of its own, such as one inside an archive; its text names it in errors."""

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
    """Decode the picture at `path` completely, upright (EXIF orientation applied), in its own mode.

    The mode is kept, so that label maps (L, P, I;16) stay what they are. Of an animation, the first
    frame. exact: its values are to be those that were saved, of one picture. Raises ImageError if the file is missing,
    not a picture, damaged, above MAX_PIXELS, or of several pictures where it is to be exact; LossyError where its
    format changes values then.
    """
    return _decoded(path, exact)[0]


def _decoded(path: Source, exact: bool = False) -> tuple[Image.Image, bool]:
    """The picture, and whether its file holds colours of 16 bits, of which Pillow decodes the upper 8."""
    with _open_header(path) as image:
        if exact and (kind := lossy(image)):
            raise lossy_error(kind, path)
        if exact and (count := getattr(image, "n_frames", 1)) > 1:
            raise ImageError(f"{path}: holds {count} pictures (pages or frames); save the one that is meant as PNG")
        deep = image.mode[0] not in "IF" and bool(_bits_lost(image))
        try:
            image.load()
        except _DECODER_ERRORS as error:
            raise ImageError(f"{path}: damaged or incomplete ({error}); copy or export the file again") from error
        return upright(image), deep and image.mode in _RGB_MODES


def lossy_error(kind: str, source: object) -> LossyError:
    """What to say of a picture of a lossy kind, see `lossy`, where values are to be exact."""
    return LossyError(
        f"is {kind}, which changes values (it is lossy): ids, class colours and depth would be others",
        remedy="export it as PNG from where it was made (a lossy file that is saved as PNG stays wrong)",
        source=source,
    )


def image_of_array(values: Shaped[np.ndarray, "*any"], source: str) -> Image.Image:
    """The picture whose pixels an array holds, in the mode that a file of them would have.

    values: bool [h, w]; uint8 [h, w], [h, w, 1], RGB [h, w, 3] or RGBA [h, w, 4]; other integers or floats [h, w] or
    [h, w, 1]. Raises ImageError, naming `source`, for others, and for integers beyond 32 bits.
    """
    plane = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    pixels = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
    if not values.size or not (pixels or (plane.ndim == 2 and values.dtype.kind in "biuf")):
        raise ImageError(
            f"expected an array [h, w] of numbers, or of uint8 [h, w, 3] or [h, w, 4], got {list(values.shape)} of "
            f"{values.dtype}",
            remedy="give one such array a condition, several in a list",
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
        raise ImageError(f"{source}: holds integers from {low} to {high}; pixels have at most 32 bits")
    return Image.fromarray(plane.astype(np.int32))


def read_rgb(path: Source) -> Image.Image:
    """Decode a photograph as 8-bit RGB, in sRGB.

    Transparent parts are laid on white, 16-bit greys are scaled to 8 bits, colours of a profile converted. Raises
    ImageError, also for numbers that do not fill the range of their type, such as 12 bits in a file of 16.
    """
    image, deep = _decoded(path)
    if deep:
        try:
            check_sixteen_bits(image)
        except ColourError as error:
            raise _range_error(error, str(path)) from None
    return as_rgb(image, str(path))


def as_rgb(image: Image.Image, source: str, behind: str = "white") -> Image.Image:
    """A decoded picture as 8-bit RGB, upright, as `read_rgb` has it. behind: the colour under transparent parts.

    Raises ImageError, naming `source`, for floating-point pixels and for greys of a range that is not their type's.
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
    return ImageError(f"{source}: {error}; export it as 8-bit PNG or JPEG, or with its numbers scaled to 16 bits")


def loss_as_rgb(picture: Image.Image | Source) -> str:
    """A description of what `as_rgb` loses of an image; empty if every pixel keeps its value. Raises ImageError.

    Of a picture that is decoded already nobody can say how many bits its file had.
    """
    if not isinstance(picture, Image.Image):
        with _open_header(picture) as header:
            return _bits_lost(header) or loss_as_rgb(open_image(picture))
    lost = _bits_lost(picture) or ("the colours of its profile" if other_colours(picture) else "")
    if not lost and picture.has_transparency_data:
        lost = "" if picture.convert("RGBA").getchannel("A").getextrema() == (255, 255) else "its transparency"
    return lost


def _bits_lost(image: Image.Image) -> str:
    """What 8 bits of RGB cannot hold of an image of this mode, or of this file where it is not decoded yet."""
    raw = [tile[3] for tile in getattr(image, "tile", [])]  # how the file's pixels are stored, such as "RGB;16B"
    stored = [args[0] if isinstance(args, tuple) and args else args for args in raw]
    if image.mode[0] in "IF" or any(isinstance(mode, str) and ";16" in mode for mode in stored):
        return "what it has beyond 8 bits"
    return "" if image.mode in _RGB_MODES else f"its colours as {image.mode}"


def image_size(path: Source) -> tuple[int, int]:
    """(width, height) of the upright picture, from the file's header alone. Raises ImageError."""
    with _open_header(path) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in _TURNED  # PIL turns TIFFs itself
        return (height, width) if turned else (width, height)


def image_mode(path: Source) -> str:
    """The mode in which a picture is decoded, from the file's header alone. Raises ImageError."""
    with _open_header(path) as image:
        return image.mode


def orientation(path: Source) -> int:
    """The EXIF orientation of a picture's file, 1 where it is upright or does not say. Raises ImageError."""
    with _open_header(path) as image:
        return _orientation(image)


def png_text(path: Source) -> dict[str, str]:
    """The texts that `save_png` stored in a picture, from its file's header alone. Raises ImageError."""
    with _open_header(path) as image:
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def own_text(path: Source) -> dict[str, str]:
    """Of those texts the package's own, by their keys without `PREFIX`. Raises ImageError."""
    return {key.removeprefix(PREFIX): value for key, value in png_text(path).items() if key.startswith(PREFIX)}


def _open_header(path: Source) -> Image.Image:
    """Open without decoding; refuse what is missing, unknown or too large."""
    try:
        image = Image.open(path if isinstance(path, str | Path) else path.open(), formats=decoders(str(path)))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give a picture's file") from None
    except _BOMBS as error:
        raise ImageError(f"{path}: refused before decoding ({error}); make it smaller") from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: not a readable picture ({error}); save it as PNG or JPEG") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS} are decoded; make it smaller")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the tags are broken."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # PIL would decode the pixels to look behind them
    try:
        return image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """A picture as its EXIF orientation has it."""
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
    """Values in [-1, 1] to 0..255, rounded to nearest; what lies outside is clipped.

    Raises ImageError for NaN or infinite values: they have no colour.
    """
    if not torch.isfinite(tensor).all():
        raise ImageError("NaN or infinite values cannot be shown; the sampling or training diverged")
    return tensor.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def quantized(tensor: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Values in [-1, 1] to the nearest of the 256 levels that 8-bit pixels have there, float32.

    What an image is after it was saved and read again. Raises ImageError as `to_uint8` does.
    """
    return from_uint8(to_uint8(tensor))


def truncated(tensor: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Values in [-1, 1] to the next lower of the 256 levels of 8-bit pixels, float32, as PITI's release has it."""
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
    """Whether two sizes are of one picture, to the rounding of a pixel."""
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

    The filter never looks beyond the box (unlike PIL's `resize(box=...)`), so the result is that of
    `image.crop(...).resize(...)` to the pixel.
    """
    left, top, width, height = box
    if isinstance(image, Image.Image):
        cut = image.crop((left, top, left + width, top + height))
    else:
        cut = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    return cut.resize((size, size) if isinstance(size, int) else size, resample)


# Writing


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """A picture as a PNG file's contents; text: metadata, read back by `png_text`. Raises ValueError for odd modes."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, in_utf8(value))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(image: Image.Image, path: str | Path, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG so that `path` holds the whole new picture or what it held before, never half of one.

    text: metadata, stored as PNG text and read back as `PIL.Image.open(path).text`. Missing folders
    are made. Raises ImageError if the picture cannot be written; no temporary file remains.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: pictures are written as PNG; end the name in .png")
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
