"""Checks that existing images match the requested ones, by size and metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piti.core.errors import option, quoted
from piti.core.files import OutputError
from piti.core.images import PREFIX, ImageError, image_size, png_text
from piti.generation.metadata import EDIT, MADE_ON, NOISE_ON, numbers_of
from piti.generation.metadata_schema import is_png

_WORDS = {
    "condition_sha256": "from another condition",
    "edit_inputs_sha256": "from another image, condition or region",
    "weights": "with other weights",
}  # keys whose values are hashes
_LAST_BITS = (f"{PREFIX}version", MADE_ON)
_SIZE = f"{PREFIX}size"
_UNSAID = {NOISE_ON: "cpu", f"{PREFIX}square": "False", f"{PREFIX}upsampler_truncates": "False"}
"""Default values of keys that `made_with` omits."""
_SHOWN = 60  # largest number of characters of a value
_END = b"IEND\xaeB`\x82"  # how a PNG ends


@dataclass(frozen=True)
class RequestedImage:
    """An image to generate, unless its file exists."""

    target: Path
    size: tuple[int, int]
    """(width, height)."""
    text: Mapping[str, str]
    """Metadata that an existing image must have, see `difference`."""


def difference(path: Path, wanted: Mapping[str, str]) -> str:
    """The difference between an image's metadata and the requested one, as text; empty for none.

    wanted: metadata by key. Empty values are unknown and not compared, nor are versions and the device, which change at
    most an image's last bits, but the dtype is. A missing size means the model's own, and is compared by the images'
    pixels.
    """
    try:
        found = png_text(path)
    except ImageError as error:
        return f"and cannot be read ({error.problem})"
    if not any(key.startswith(PREFIX) for key in found):
        return "and has no record of how it was generated"
    wanted, found = _completed(wanted), _completed(found)
    left_out = _LAST_BITS if _SIZE in found else (*_LAST_BITS, _SIZE)
    compared = {key: value for key, value in wanted.items() if value and key not in left_out}
    differing = [key for key, value in compared.items() if found.get(key) != value]
    if not differing:
        then, now = numbers_of(found.get(MADE_ON, "")), numbers_of(wanted.get(MADE_ON, ""))
        return (
            f"generated in {then} ({option('dtype')}), but {now} is requested" if then and now and then != now else ""
        )
    first, *others = (key.removeprefix(PREFIX) for key in differing)
    more = f" (and {', '.join(others)} differ{'s' if len(others) == 1 else ''})" if others else ""
    if first in _WORDS and differing[0] in found:
        return f"generated {_WORDS[first]}{more}"
    said = quoted(found.get(differing[0], "not recorded"), _SHOWN)
    return f"generated with {first} = {said}, but {quoted(wanted[differing[0]], _SHOWN)} is requested{more}"


def _completed(said: Mapping[str, str]) -> dict[str, str]:
    """Metadata, completed by the defaults of `_UNSAID`, with each setting of an edit under its own key."""
    settings = {f"{PREFIX}{key}": _as_text(value) for key, value in _settings_of(said.get(EDIT, "")).items()}
    others = {key: value for key, value in said.items() if key != EDIT or not settings}
    return {**_UNSAID, **settings, **others}


def _settings_of(edit: str) -> dict[str, Any]:
    """The settings of an edit from its metadata, which is untrusted; empty if there are none."""
    try:
        found = json.loads(edit)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)


def check_kept(requested: Sequence[RequestedImage]) -> None:
    """Raise OutputError if an existing image is damaged, or differs from the requested one in size or metadata."""
    existing = [image for image in requested if image.target.exists()]
    _check_sizes(existing, _whole_sizes([image.target for image in existing]))
    for image in existing:
        text = image.text
        if text.get(f"{PREFIX}weights"):  # compared by weights, whatever the model's name
            text = {key: value for key, value in text.items() if key != f"{PREFIX}model"}
        differs = difference(image.target, text)
        if differs:
            raise _other(image.target, f", {differs}")


def _other(target: Path, how: str) -> OutputError:
    """The error for an existing image that differs from the requested one. how: continues "already exists"."""
    remedy = f"add {option('overwrite')} to replace it, or give another {option('out')}"
    return OutputError(f"already exists{how}", remedy=remedy, source=target)


def _whole_sizes(targets: Sequence[Path]) -> list[tuple[int, int]]:
    """(width, height) of existing images. Raises OutputError if one is truncated, for example by an interrupted
    copy."""
    sizes = [_whole_size(target) for target in targets]
    broken = [target for target, size in zip(targets, sizes, strict=True) if size is None]
    if broken:
        more = f", and so are {len(broken) - 1} more" if len(broken) > 1 else ""
        raise OutputError(
            f"already exists, but is truncated or not an image{more}",
            remedy=f"remove it to generate it again, or give another {option('out')}",
            source=broken[0],
        )
    return [size for size in sizes if size is not None]


def _whole_size(path: Path) -> tuple[int, int] | None:
    """An image's size; None if it cannot be opened, or is a truncated PNG."""
    try:
        size = image_size(path)
    except ImageError:
        return None
    with path.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return size if file.read() == _END or not is_png(path) else None


def _check_sizes(existing: Sequence[RequestedImage], sizes: Sequence[tuple[int, int]]) -> None:
    """Raise OutputError if one of these existing images has another size than requested."""
    for image, (width, height) in zip(existing, sizes, strict=True):
        if (width, height) != image.size:
            raise _other(image.target, f" with {width} x {height}, but {image.size[0]} x {image.size[1]} is requested")
