"""Supported image formats, by contents and suffixes, and whether they are lossless."""

from __future__ import annotations

import struct
from typing import IO

from PIL import Image

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
    "SUN": (".ras",),
}
"""Pillow's names of the supported formats, each with its suffixes. All are decoded by Pillow itself; for some others it
would call external programs."""

_UNMARKED = "TGA"  # its files have no magic bytes
_WITHIN = "MPO"  # opened by JPEG's decoder


def decoders(name: str = "") -> list[str]:
    """The decoders that Pillow may try on a file with this name."""
    unmarked = name.lower().endswith(FORMATS[_UNMARKED])
    return [form for form in FORMATS if form != _WITHIN and (unmarked or form != _UNMARKED)]


IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

UNREAD_PICTURES = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
"""Suffixes of unsupported image formats."""

ARRAYS = frozenset({".npy", ".npz"})
"""Suffixes of NumPy arrays, which are only supported for depth."""

_LOSSY = {"JPEG": "a JPEG", "MPO": "a JPEG", "AVIF": "an AVIF", "JPEG2000": "a JPEG 2000"}
_LOSSY_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp", "tiff_jpeg2000"})


def lossy(image: Image.Image) -> str:
    """The format of an opened image, such as "a JPEG", if it is lossy; empty if it is lossless.

    For WebP this depends on the contents, before decoding or while the file exists. A decoded copy has no format.
    """
    if image.format == "WEBP":
        return "" if _webp_keeps(image) else "a lossy WebP"
    if image.format == "TIFF":
        return "a TIFF with JPEG compression" if image.info.get("compression") in _LOSSY_TIFF else ""
    return _LOSSY.get(image.format or "", "")


def _webp_keeps(image: Image.Image) -> bool:
    """Whether the first frame of a WebP is lossless; if it cannot be determined any more, it counts as lossy."""
    file = getattr(image, "fp", None)
    data = _start_of(file) if file is not None else b""
    name = getattr(image, "filename", "")
    if not data.startswith(b"RIFF") and name:
        try:
            with open(name, "rb") as again:
                data = again.read()
        except OSError:
            return False
    return _first_frame(data) == b"VP8L"


def _start_of(file: IO[bytes]) -> bytes:
    """The contents of an open file, without changing its position."""
    try:
        place = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(place)
    except (OSError, ValueError):
        return b""
    return data


def _first_frame(data: bytes) -> bytes:
    """The chunk name of a WebP's first frame: `VP8 ` is lossy, `VP8L` is not."""
    place = 12  # after "RIFF", the size, "WEBP"
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        if name in (b"VP8 ", b"VP8L"):
            return name
        place += 8 + (16 if name == b"ANMF" else size + size % 2)  # a frame of an animation contains chunks itself
    return b""
