"""Whether the numbers of a set of masks are ids or colours, decided once for all of its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from piti.conditions.base import ConditionError
from piti.conditions.class_table import Reading
from piti.conditions.mask_files import HOW_TO_DECIDE, Look, MaskReader, undecided
from piti.core.images import ImageError, Source, image_mode, open_image


def reading_of(reader: MaskReader, files: Sequence[Source]) -> tuple[Reading | None, list[str]]:
    """What the numbers of a set of files are, and what to say of it; none where every file says it by itself.

    Files that cannot be read are left out here: whoever reads them next names them. Raises ConditionError where files
    fit both ways, differ, and nothing in the set decides.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(zip(files, pool.map(partial(_looked, reader), files), strict=True))
    looks = [(file, look) for file, look in found if look is not None]
    both = [(file, look) for file, look in looks if look.differ]
    if not both:
        return None, []
    alone: set[Reading] = {look.fits[0] for _, look in looks if len(look.fits) == 1}
    chosen: Reading | None = next(iter(alone)) if len(alone) == 1 else None
    if not alone:
        ordered: set[Reading | None] = {look.chosen for _, look in both}
        chosen = "colours" if _palettes_differ(look for _, look in looks) else next(iter(ordered), None)
        if chosen is None or (len(ordered) > 1 and None in ordered):
            file, look = next((file, look) for file, look in both if look.chosen is None)
            raise undecided(look, str(file), f" in {len(both)} of {len(looks)} files")
    if chosen is None:
        return None, []
    other = "colours" if chosen == "ids" else "ids"
    return chosen, [
        f"masks are read as {chosen}; {len(both)} of {len(looks)} files could also be {other} ({HOW_TO_DECIDE})"
    ]


def _looked(reader: MaskReader, file: Source) -> Look | None:
    """How a file can be read; None where it cannot be read at all. What is clear by its mode is not decoded."""
    try:
        mode = image_mode(file)
        if (mode in ("1", "L", "LA") or mode.startswith("I")) and not reader.greys_differ:
            return Look("ids", frozenset(), None)
        return reader.look(open_image(file), str(file))
    except (ImageError, ConditionError, OSError):
        return None


def _palettes_differ(looks: Iterable[Look]) -> bool:
    """Whether one index stands for two classes' colours: then indices are no ids, and mean their colours."""
    meant: dict[int, int] = {}
    return any(meant.setdefault(value, index) != index for look in looks for value, index in look.palette)
