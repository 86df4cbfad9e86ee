"""Whether images that are there already are those that are asked for, by their sizes and what their own PNGs say."""

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

_WORDS = {"condition_sha256": "of another condition", "weights": "with other weights"}  # whose values say nothing
_LAST_BITS = (f"{PREFIX}version", MADE_ON)
_SIZE = f"{PREFIX}size"
_UNSAID = {NOISE_ON: "cpu", f"{PREFIX}square": "False", f"{PREFIX}upsampler_truncates": "False"}
"""Values of keys that `made_with` writes only where they are others."""
_SHOWN = 60  # characters of a value
_END = b"IEND\xaeB`\x82"  # how a PNG ends


def difference(path: Path, wanted: Mapping[str, str]) -> str:
    """How an image was made otherwise than is asked for; nothing if its PNG says just that.

    wanted: metadata by key. An empty value is not known here, and not compared. Versions and the device, which change
    an image's last bits at most, are not compared either, but the type of numbers is. A size that is not said is the
    model's own: then the pixels of the two images tell whether it differs.
    """
    try:
        found = png_text(path)
    except ImageError as error:
        return f"and cannot be read ({error.problem})"
    if not any(key.startswith(PREFIX) for key in found):
        return "and does not say how it was made"
    wanted, found = _completed(wanted), _completed(found)
    left_out = _LAST_BITS if _SIZE in found else (*_LAST_BITS, _SIZE)
    compared = {key: value for key, value in wanted.items() if value and key not in left_out}
    differing = [key for key, value in compared.items() if found.get(key) != value]
    if not differing:
        then, now = numbers_of(found.get(MADE_ON, "")), numbers_of(wanted.get(MADE_ON, ""))
        return f"made in {then} ({option('dtype')}), and {now} is asked for" if then and now and then != now else ""
    first, *others = (key.removeprefix(PREFIX) for key in differing)
    more = f" (and {', '.join(others)} differ{'s' if len(others) == 1 else ''})" if others else ""
    if first in _WORDS and differing[0] in found:
        return f"made {_WORDS[first]} than is asked for{more}"
    said = quoted(found.get(differing[0], "nothing said"), _SHOWN)
    return f"made with {first} = {said}, and {quoted(wanted[differing[0]], _SHOWN)} is asked for{more}"


def _completed(said: Mapping[str, str]) -> dict[str, str]:
    """What is said, and the values of `_UNSAID` where nothing is."""
    return {**said, **{key: value for key, value in _UNSAID.items() if key not in said}}


def check_kept(jobs: list[TranslationJob], common: Mapping[str, str], like: Record | None) -> None:
    """Raises TranslationError if an image that would be kept is another than the one that is asked for.

    common: what all images are to say, see `image_text`.
    """
    existing = [job for job in jobs if job.target.exists()]
    _check_sizes(existing, _whole_sizes(existing))
    _check_not_itself(existing, like)
    if common.get(f"{PREFIX}weights"):  # they say it, whatever the model is called
        common = {key: value for key, value in common.items() if key != f"{PREFIX}model"}
    for job in existing:
        own = {f"{PREFIX}number": str(job.number), f"{PREFIX}condition_sha256": job.condition_sha256}
        odd = difference(job.target, {**common, **own})
        if odd:
            raise TranslationError(
                f"is there already, {odd}",
                remedy=f"add {option('overwrite')} to make it anew, or give another {option('out')}",
                source=job.target,
            )


def _check_not_itself(jobs: list[TranslationJob], like: Record | None) -> None:
    """Raises TranslationError if an image would be kept as the result that `--like` was to be made of."""
    if like is not None and Path(like.file).resolve() in {job.target.resolve() for job in jobs}:
        raise TranslationError(
            "the image would be made in the place of this one",
            remedy=f"give another {option('out')}, or add {option('overwrite')}",
            source=like.file,
        )


def _whole_sizes(jobs: list[TranslationJob]) -> list[tuple[int, int]]:
    """(width, height) of each of these images, which are there. Raises TranslationError if one breaks off, as a copy or
    a machine that went down leaves it."""
    sizes = [_whole_size(job.target) for job in jobs]
    broken = [job.target for job, size in zip(jobs, sizes, strict=True) if size is None]
    if broken:
        more = f", and so do {len(broken) - 1} more" if len(broken) > 1 else ""
        raise TranslationError(
            f"is there already, and breaks off or is no picture{more}",
            remedy=f"remove it, and it is made anew, or give another {option('out')}",
            source=broken[0],
        )
    return [size for size in sizes if size is not None]


def _whole_size(path: Path) -> tuple[int, int] | None:
    """A picture's size; none of one that cannot be opened, or is a PNG without its end."""
    try:
        size = image_size(path)
    except ImageError:
        return None
    with path.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return size if file.read() == _END or not is_png(path) else None


def _check_sizes(jobs: list[TranslationJob], sizes: list[tuple[int, int]]) -> None:
    """Raises TranslationError if one of these images, which are there, has another size."""
    for job, (width, height) in zip(jobs, sizes, strict=True):
        canvas = job.prepared.canvas
        wanted = (canvas.image_width, canvas.image_height)
        if (width, height) != wanted:
            raise TranslationError(
                f"is there already, {width} x {height}, where {wanted[0]} x {wanted[1]} are to be made",
                remedy=f"add {option('overwrite')} to make it anew, or give another {option('out')}",
                source=job.target,
            )
