"""What is wrong with a data set, gathered whole before it is told."""

from __future__ import annotations

from pathlib import Path

from piti.errors import UserError

_NAMED = 5  # how many files of each kind of problem a report names


class DataError(UserError):
    """A data set cannot be used. The message lists the problems, the files and the remedies."""


class Problems:
    """What is wrong, by kind, in the order of discovery."""

    def __init__(self, others: Problems | None = None) -> None:
        self._by_kind = {kind: list(found) for kind, found in others._by_kind.items()} if others else {}

    def add(self, kind: str, what: str) -> None:
        self._by_kind.setdefault(kind, []).append(what)

    def raise_if_any(self, root: Path) -> None:
        """One DataError with every kind, its count and its first few."""
        if not self._by_kind:
            return
        lines = [f"{root}: the data set has problems"]
        for kind, found in self._by_kind.items():
            lines.append(f"  {len(found)} {kind}:")
            lines += [f"    {what}" for what in found[:_NAMED]]
            if len(found) > _NAMED:
                lines.append(f"    … and {len(found) - _NAMED} more")
        raise DataError("\n".join(lines))
