"""Which picture formats are read, by their contents and by their names, and which keep values exactly."""

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
"""Pillow's names of the formats that are read, each with how its files are named. All are decoded by Pillow itself;
it would hand some others to programs of the system."""

_UNMARKED = "TGA"  # its files begin with nothing that tells them from others
_WITHIN = "MPO"  # opened by JPEG's decoder


def decoders(name: str = "") -> list[str]:
    """What Pillow is to try on a file, of this name."""
    unmarked = name.lower().endswith(FORMATS[_UNMARKED])
    return [form for form in FORMATS if form != _WITHIN and (unmarked or form != _UNMARKED)]


IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

UNREAD_PICTURES = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
"""How files of formats end that hold pictures and are not read."""

ARRAYS = frozenset({".npy", ".npz"})
"""How files of NumPy's arrays end; depth alone is read from them."""

_LOSSY = {"JPEG": "a JPEG", "MPO": "a JPEG", "AVIF": "an AVIF", "JPEG2000": "a JPEG 2000"}
_LOSSY_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp", "tiff_jpeg2000"})


def lossy(image: Image.Image) -> str:
    """What a picture that was opened is, such as "a JPEG", if its format changes values; empty if it keeps them.

    A WebP is told apart by its contents, before it is decoded or while its file is there. A decoded copy has no format.
    """
    if image.format == "WEBP":
        return "" if _webp_keeps(image) else "a lossy WebP"
    if image.format == "TIFF":
        return "a TIFF of JPEG's compression" if image.info.get("compression") in _LOSSY_TIFF else ""
    return _LOSSY.get(image.format or "", "")


def _webp_keeps(image: Image.Image) -> bool:
    """Whether the first frame of a WebP is coded without loss; what cannot be seen any more counts as lossy."""
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
    """All that an open file holds; its position stays."""
    try:
        place = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(place)
    except (OSError, ValueError):
        return b""
    return data


def _first_frame(data: bytes) -> bytes:
    """The name of the chunk that codes a WebP's first frame: `VP8 ` is lossy, `VP8L` is not."""
    place = 12  # after "RIFF", the size, "WEBP"
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        if name in (b"VP8 ", b"VP8L"):
            return name
        place += 8 + (16 if name == b"ANMF" else size + size % 2)  # a frame of an animation holds chunks itself
    return b""
