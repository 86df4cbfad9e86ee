"""Names that are almost the same: what a file without its other half was probably meant to match."""

from __future__ import annotations

import re
from collections.abc import Collection

_ADDED = re.compile(
    r"masks?|labels?|label(train)?ids|seg|segmentation|semantic|gt|gtfine|groundtruth|anno|annotations?|colou?rs?|ids?"
    r"|images?|img|photo|rgb|leftimg8bit|depth|sketch|edges?|copy|final"
)  # words of a name that say what kind of file it is
_COPY = re.compile(r"[ _-]*\(\d+\)$")
_PARTS = re.compile(r"[^\w]+|_")


def near_misses(lonely: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Of each of these keys the one of the others that is almost the same: but for case, a copy's `(1)`, or a word such
    as `_mask`. Keys of which none is, or several are, have none."""
    if not lonely:
        return {}
    by_form: dict[str, list[str]] = {}
    for other in others:
        by_form.setdefault(_loose(other), []).append(other)
    near = {key: [other for other in by_form.get(_loose(key), []) if other != key] for key in lonely}
    return {key: found[0] for key, found in near.items() if len(found) == 1}


def near_keys(lonely: Collection[str], others: Collection[str]) -> dict[str, str]:
    """What to say of keys without their other half, each with its near miss among the others and what the two differ
    in, see `near_misses`."""
    near = near_misses(lonely, others)
    return {key: _with_near(key, near[key]) if key in near else key for key in lonely}


def _with_near(key: str, near: str) -> str:
    same = key.casefold() == near.casefold()
    return f"{key} (almost the same: {near}, {'in other letters, large and small' if same else 'rename one'})"


def _loose(key: str) -> str:
    """A key without what people add to names."""
    folder, _, name = key.casefold().rpartition("/")
    words = [word for word in _PARTS.split(_COPY.sub("", name)) if word]
    kept = [word for word in words if not _ADDED.fullmatch(word)]
    return f"{folder}/{'-'.join(kept or words)}"
