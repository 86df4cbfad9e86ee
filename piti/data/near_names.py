"""Names that are almost the same: what a file without its other half was probably meant to match."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_ADDED = re.compile(
    r"masks?|labels?|label(train)?ids|seg|segmentation|semantic|gt|gtfine|groundtruth|anno|annotations?|colou?rs?|ids?"
    r"|images?|img|photo|rgb|leftimg8bit|depth|sketch|edges?|copy|final"
)  # words of a name that say what kind of file it is
_COPY = re.compile(r"[ _-]*\(\d+\)$")
_PARTS = re.compile(r"[^\w]+|_")


def nearest(key: str, others: Iterable[str]) -> str | None:
    """The one of the others that is almost the same key: but for case, a copy's `(1)`, or a word such as `_mask`."""
    loose = _loose(key)
    near = [other for other in others if _loose(other) == loose and other != key] if loose else []
    return near[0] if len(near) == 1 else None


def with_nearest(key: str, others: Collection[str]) -> str:
    """A key for a person, with its near miss among the others where there is one, and what the two differ in."""
    near = nearest(key, others)
    if near is None:
        return key
    same = key.casefold() == near.casefold()
    return f"{key} (almost the same: {near}, {'in other letters, large and small' if same else 'rename one'})"


def near_keys(lonely: Collection[str], others: Collection[str]) -> dict[str, str]:
    """What to say of keys without their other half, each with its near miss among the others; see `with_nearest`."""
    by_form: dict[str, list[str]] = {}
    for other in others:
        by_form.setdefault(_loose(other), []).append(other)
    return {key: with_nearest(key, by_form.get(_loose(key), [])) for key in lonely}


def _loose(key: str) -> str:
    """A key without what people add to names."""
    folder, _, name = key.casefold().rpartition("/")
    words = [word for word in _PARTS.split(_COPY.sub("", name)) if word]
    kept = [word for word in words if not _ADDED.fullmatch(word)]
    return f"{folder}/{'-'.join(kept or words)}"
