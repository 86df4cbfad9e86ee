"""Errors of specifications: key, value, expectation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from piti.core.spec import Spec, SpecError


class Inner(Spec):
    size: int = Field(1, ge=1, le=9)
    share: float = 0.5


class Outer(Spec):
    kind: Literal["ids", "colours"] = "ids"
    pair: tuple[int, int] = (1, 2)
    flag: bool = True
    name: str = "a"
    folders: str | dict[str, str] = "labels"
    place: Path | None = None
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"kind": "x"},
            "'kind' = 'x': is not 'ids' or 'colours'; give one of them",
        ),
        ({"inner": {"size": "x"}}, "'inner.size' = 'x': is not a whole number; give one, such as 4"),
        ({"inner": {"size": 1.5}}, "'inner.size' = 1.5: is not a whole number; give one, such as 4"),
        ({"inner": {"size": 0}}, "'inner.size' = 0: is too small; give at least 1"),
        ({"inner": {"size": 10}}, "'inner.size' = 10: is too large; give at most 9"),
        ({"inner": {"share": "x"}}, "'inner.share' = 'x': is not a number; give one, such as 0.5"),
        ({"inner": {"share": float("nan")}}, "'inner.share' = nan: is not finite; give a number, such as 0.5"),
        ({"inner": {"share": float("inf")}}, "'inner.share' = inf: is not finite; give a number, such as 0.5"),
        ({"inner": 3}, "'inner' = 3: is not a mapping; give keys with values"),
        ({"inner": {"siz": 3}}, "unknown key 'inner.siz'; did you mean 'size'? known: size, share"),
        ({"pair": 3}, "'pair' = 3: is not a list; write [one, another]"),
        ({"pair": [1]}, "'pair.1' is missing; the list is short"),
        ({"flag": "maybe"}, "'flag' = 'maybe': is not true or false; give one of them"),
        ({"name": 3}, "'name' = 3: is not a string; write it in quotes"),
        ({"folders": 3}, "'folders' = 3: is not a string, and is not a mapping"),
        ({"place": 3}, "'place' = 3: is not a path; give that of a file or folder"),
        (
            {"several": [{"size": "x"}, {"size": "x"}]},
            "'several.0.size' = 'x': is not a whole number; give one, such as 4 (and in 1 more)",
        ),
    ],
)
def test_every_mistake_is_named_with_what_was_expected(values: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as error:
        Outer.parse(values, "file.json")
    assert str(error.value) == f"file.json:\n  {said}"
