"""Cost of pairing files."""

from __future__ import annotations

from pathlib import Path

from piti.conditions import NoCondition
from piti.data.pairs import FolderSpec, Pair, PairList


class Counted(str):
    """A key that counts how often it is looked up."""

    looked_up = 0

    def __hash__(self) -> int:
        Counted.looked_up += 1
        return super().__hash__()


def test_photographs_are_listed_in_time_in_proportion_to_their_number(monkeypatch) -> None:
    further = [Pair(Counted(f"photographs/{k}"), Path(f"{k}.jpg"), None) for k in range(300)]
    monkeypatch.setattr(PairList, "_further", lambda *_: further)
    found = PairList(FolderSpec(photographs=(Path("photographs"),)), NoCondition(), "train").pairs()
    assert 270 < len(found) < 300
    assert Counted.looked_up < 20 * len(further)
