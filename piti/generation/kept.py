"""Checks that existing images match the requested ones, by size and metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from piti.core.errors import option, quoted
from piti.core.images import PREFIX, ImageError, image_size, png_text
from piti.generation.metadata import MADE_ON, NOISE_ON, numbers_of
from piti.generation.metadata_schema import is_png
from piti.generation.plan import TranslationJob
from piti.generation.recreate import Record
from piti.generation.sources import TranslationError

_WORDS = {"condition_sha256": "from another condition", "weights": "with other weights"}  # keys whose values are hashes
_LAST_BITS = (f"{PREFIX}version", MADE_ON)
_SIZE = f"{PREFIX}size"
_UNSAID = {NOISE_ON: "cpu", f"{PREFIX}square": "False", f"{PREFIX}upsampler_truncates": "False"}
"""Default values of keys that `made_with` omits."""
_SHOWN = 60  # largest number of characters of a value
_END = b"IEND\xaeB`\x82"  # how a PNG ends


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
    """Metadata, completed by the defaults of `_UNSAID`."""
    return {**said, **{key: value for key, value in _UNSAID.items() if key not in said}}


def check_kept(jobs: list[TranslationJob], common: Mapping[str, str], like: Record | None) -> None:
    """Raises TranslationError if an existing image differs from the requested one.

    common: requested metadata of all images, see `image_text`.
    """
    existing = [job for job in jobs if job.target.exists()]
    _check_sizes(existing, _whole_sizes(existing))
    _check_not_itself(existing, like)
    if common.get(f"{PREFIX}weights"):  # compared by weights, whatever the model's name
        common = {key: value for key, value in common.items() if key != f"{PREFIX}model"}
    for job in existing:
        own = {f"{PREFIX}number": str(job.number), f"{PREFIX}condition_sha256": job.condition_sha256}
        odd = difference(job.target, {**common, **own})
        if odd:
            raise TranslationError(
                f"already exists, {odd}",
                remedy=f"add {option('overwrite')} to replace it, or give another {option('out')}",
                source=job.target,
            )


def _check_not_itself(jobs: list[TranslationJob], like: Record | None) -> None:
    """Raises TranslationError if the image of `--like` itself would be kept as the result."""
    if like is not None and Path(like.file).resolve() in {job.target.resolve() for job in jobs}:
        raise TranslationError(
            "the new image would replace this one",
            remedy=f"give another {option('out')}, or add {option('overwrite')}",
            source=like.file,
        )


def _whole_sizes(jobs: list[TranslationJob]) -> list[tuple[int, int]]:
    """(width, height) of these existing images. Raises TranslationError if one is truncated, for example by an
    interrupted copy."""
    sizes = [_whole_size(job.target) for job in jobs]
    broken = [job.target for job, size in zip(jobs, sizes, strict=True) if size is None]
    if broken:
        more = f", and so are {len(broken) - 1} more" if len(broken) > 1 else ""
        raise TranslationError(
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


def _check_sizes(jobs: list[TranslationJob], sizes: list[tuple[int, int]]) -> None:
    """Raises TranslationError if one of these existing images has another size."""
    for job, (width, height) in zip(jobs, sizes, strict=True):
        canvas = job.prepared.canvas
        wanted = (canvas.image_width, canvas.image_height)
        if (width, height) != wanted:
            raise TranslationError(
                f"already exists with {width} x {height}, but {wanted[0]} x {wanted[1]} is requested",
                remedy=f"add {option('overwrite')} to replace it, or give another {option('out')}",
                source=job.target,
            )
