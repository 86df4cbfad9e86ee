"""Similar names: suggestions for files without a partner."""

from __future__ import annotations

import re
from collections.abc import Collection

_ADDED = re.compile(
    r"masks?|labels?|label(train)?ids|seg|segmentation|semantic|gt|gtfine|groundtruth|anno|annotations?|colou?rs?|ids?"
    r"|images?|img|photo|rgb|leftimg8bit|depth|sketch|edges?|copy|final"
)  # words in a name for the kind of file
_COPY = re.compile(r"[ _-]*\(\d+\)$")
_PARTS = re.compile(r"[^\w]+|_")


def near_misses(lonely: Collection[str], others: Collection[str]) -> dict[str, str]:
    """For each of these keys, the only similar one of the others: up to case, a copy's `(1)`, or a word such as
    `_mask`. Keys with no or several similar ones are omitted."""
    if not lonely:
        return {}
    by_form: dict[str, list[str]] = {}
    for other in others:
        by_form.setdefault(_loose(other), []).append(other)
    near = {key: [other for other in by_form.get(_loose(key), []) if other != key] for key in lonely}
    return {key: found[0] for key, found in near.items() if len(found) == 1}


def near_keys(lonely: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Descriptions of keys without a partner, each with a similar key among the others, see `near_misses`, and the
    difference."""
    near = near_misses(lonely, others)
    return {key: _with_near(key, near[key]) if key in near else key for key in lonely}


def _with_near(key: str, near: str) -> str:
    same = key.casefold() == near.casefold()
    return f"{key} (almost the same: {near}, {'in different case' if same else 'rename one'})"


def _loose(key: str) -> str:
    """A key without common additions to names."""
    folder, _, name = key.casefold().rpartition("/")
    words = [word for word in _PARTS.split(_COPY.sub("", name)) if word]
    kept = [word for word in words if not _ADDED.fullmatch(word)]
    return f"{folder}/{'-'.join(kept or words)}"
