"""Error messages without a terminal."""

from __future__ import annotations

from piti.core.errors import option
from piti.studio.service.schema import LimitError, for_browser


def test_people_without_a_terminal_read_fields_and_what_they_can_do() -> None:
    error = LimitError(
        f"is wide: leave {option('base_only')} out",
        remedy=f"give {option('text')}",
        local_remedy="edit classes.json",
        option="size",
        value=5,
    )
    assert for_browser(error) == "size 5: is wide: leave base_only out; give text"


def test_foreign_words_stay() -> None:
    damaged = "my--photo.png: is damaged (at 5); copy it"
    assert for_browser(LimitError(damaged)) == damaged
