"""Plain words for people: no error speaks of a terminal."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from piti.core.errors import UserError

NOWHERE = "there is nothing at this address; /docs lists what there is"
WRONG_METHOD = "use another method; see /docs"
_REWORDED = (
    (re.compile(r"add the (class|colour) to classes\.json, or relabel these pixels"), "relabel these pixels"),
    (re.compile(r"add the (class|colour) to classes\.json, or "), ""),
    (re.compile(r"; give --text, or a \.txt file"), "; write what is to be seen"),
    (re.compile(r", or take the square at its centre \([^()]*--square\)"), ""),
    (re.compile(r", as --keep exact asks"), ", though the rest is to be kept exactly"),
    (re.compile(r"leave --keep exact out"), "do not ask for that"),
    (re.compile(r" \((?:[^()]*\W)?--[a-z][^()]*\)"), ""),
    (re.compile(r"(?<![\w-])--([a-z][a-z-]*)"), r"\1"),
)
"""What a command line's errors say, and what a person without one is told; in this order."""


def reworded(message: str) -> str:
    """A message without flags and files of a command line."""
    for found, instead in _REWORDED:
        message = found.sub(instead, message)
    return message


@contextlib.contextmanager
def in_plain_words() -> Iterator[None]:
    """UserErrors that pass through here speak to people who have no terminal; they stay of their kind."""
    try:
        yield
    except UserError as error:
        error.args = (reworded(str(error)),)
        raise
