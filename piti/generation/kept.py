"""Whether an image that is there already is the one that is asked for, by what its own PNG says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from piti.core.errors import quoted
from piti.core.images import PREFIX, ImageError, png_text

_WORDS = {"condition_sha256": "of another condition", "weights": "with other weights"}  # whose values say nothing
_SHOWN = 60  # characters of a value


def difference(path: Path, wanted: Mapping[str, str]) -> str:
    """How an image was made otherwise than is asked for; nothing if its PNG says just that.

    wanted: metadata by key. An empty value is not known here, and not compared.
    """
    try:
        found = png_text(path)
    except ImageError as error:
        return f"and cannot be read ({error.problem})"
    if not any(key.startswith(PREFIX) for key in found):
        return "and does not say how it was made"
    differing = [key for key, value in wanted.items() if value and found.get(key) != value]
    if not differing:
        return ""
    first, *others = (key.removeprefix(PREFIX) for key in differing)
    more = f" (and {', '.join(others)} differ{'s' if len(others) == 1 else ''})" if others else ""
    if first in _WORDS and differing[0] in found:
        return f"made {_WORDS[first]} than is asked for{more}"
    said = quoted(found.get(differing[0], "nothing said"), _SHOWN)
    return f"made with {first} = {said}, and {quoted(wanted[differing[0]], _SHOWN)} is asked for{more}"
