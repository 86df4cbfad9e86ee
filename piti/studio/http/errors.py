"""Errors for people who have no terminal."""

from __future__ import annotations

from piti.core.errors import UserError, spelled

NOWHERE = "there is nothing at this address; /docs lists what there is"
WRONG_METHOD = "use another method; see /docs"


def for_browser(error: UserError) -> str:
    """What an error says to people who have neither terminal nor files: options by their fields."""
    return spelled(error.text(local=False))
