"""Reading JSON files written by users, with or without a byte order mark, with readable errors."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from piti.core.errors import UserError, quoted

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonError(UserError):
    """A JSON file cannot be read. The message names it and what to do."""


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file. Raises JsonError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JsonError(f"cannot be read ({error.strerror or error})", remedy="check the path", source=path) from None
    return parse_json(data, str(path))


def parse_json(data: bytes, source: str) -> Any:
    """Parse a file's contents. source: its name in errors. Raises JsonError, also for duplicate keys."""
    if data.startswith(_WIDE) or b"\0" in data[:4]:
        raise JsonError(
            "is text in UTF-16, but UTF-8 is expected",
            remedy="save it again with the encoding UTF-8 (in PowerShell: -Encoding utf8)",
            source=source,
        )
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_of_pairs)
    except JsonError as error:
        raise error.about(source) from None
    except UnicodeDecodeError as error:
        raise JsonError(
            f"is not in UTF-8 (byte {error.start})", remedy="save it again with that encoding", source=source
        ) from None
    except (ValueError, RecursionError) as error:
        raise JsonError(f"not valid JSON ({error})", remedy="correct it there", source=source) from None


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Raises JsonError for duplicate keys, of which JSON parsers silently drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError(f"'{quoted(twice)}' occurs twice, and one would be lost", remedy="keep or rename one")
    return found
