"""Deciding whether a set of masks contains ids or colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from piti.conditions.base import ConditionError
from piti.conditions.class_table import Reading
from piti.conditions.mask_files import HOW_TO_DECIDE, Look, MaskReader, UndecidedMask, undecided
from piti.core.images import ImageError, Source, image_mode, open_image
from piti.core.system import cores


def reading_of(reader: MaskReader, files: Sequence[Source]) -> tuple[Reading | None, list[str]]:
    """The reading of a set of files, with notes; None if every file is unambiguous.

    Unreadable files are skipped here, and reported when they are read. Raises ConditionError if files fit both readings
    with different results, and no file of the set decides.
    """
    with ThreadPoolExecutor(cores()) as pool:
        found = list(zip(files, pool.map(partial(_looked, reader, True), files), strict=True))
        if any(look is not None and look.fits == ["colours"] for _, look in found):
            found = list(zip(files, pool.map(partial(_looked, reader, False), files), strict=True))
    looks = [(file, look) for file, look in found if look is not None]
    both = [(file, look) for file, look in looks if look.differ]
    alone: Counter[Reading] = Counter(look.fits[0] for _, look in looks if len(look.fits) == 1)
    if len(alone) > 1:
        _refuse_exchanged(alone, looks)
        return None, [
            f"{alone['ids']} masks hold ids and {alone['colours']} colours: each file is read by its contents"
        ]
    if not both:
        return None, []
    chosen: Reading | None = next(iter(alone), None)
    if chosen is None and _palettes_differ(look for _, look in looks):
        chosen = "colours"
    if chosen is None:
        doubtful = [(file, look) for file, look in both if not look.blank]
        if doubtful:
            file, look = doubtful[0]
            raise undecided(look, str(file), f" in {len(doubtful)} of {len(looks)} files")
        return None, []
    other = "colours" if chosen == "ids" else "ids"
    return chosen, [
        f"masks are read as {chosen}; {len(both)} of {len(looks)} files could also be {other} ({HOW_TO_DECIDE})"
    ]


def _refuse_exchanged(alone: Counter[Reading], looks: Sequence[tuple[Source, Look]]) -> None:
    """Raises UndecidedMask if images of one kind, such as grey ones, would be read in both ways in one set, so that a
    value would mean different classes."""
    for file, look in looks:
        if len(look.fits) == 1 and look.fits[0] != look.natural:
            raise UndecidedMask(
                f"of these masks {alone['ids']} hold ids and {alone['colours']} class colours, this one "
                f"{look.fits[0]}, though such images usually hold {look.natural}: a value would mean two classes",
                remedy="save all masks in the same way",
                source=str(file),
            )


def _looked(reader: MaskReader, quick: bool, file: Source) -> Look | None:
    """The possible readings of a file; None if it is unreadable. quick: do not decode files that are ids by their
    mode."""
    try:
        if quick and not reader.greys_differ:
            mode = image_mode(file)
            if mode in ("1", "L", "LA") or mode.startswith("I"):
                return Look("ids", frozenset(), None)
        return reader.look(open_image(file), str(file))
    except (ImageError, ConditionError, OSError):
        return None


def _palettes_differ(looks: Iterable[Look]) -> bool:
    """Whether one palette index has the colours of two classes, so that indices cannot be ids."""
    meant: dict[int, int] = {}
    return any(meant.setdefault(value, index) != index for look in looks for value, index in look.palette)
