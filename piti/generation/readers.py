"""Readers of a translation's files: by the class tables beside them, consistently within each set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from piti.conditions import Condition, ConditionError, MaskCondition
from piti.core.images import OpenedImage
from piti.data.archives import Archived

Item = TypeVar("Item", bound=Hashable)


def readers_of(condition: Condition, items: Sequence[Item]) -> tuple[dict[Item, Condition], list[str]]:
    """The reader of each file or set of parts, if it is not `condition`, and notes.

    A classes.json beside or above masks with other ids is mapped by class names. Whether masks of one table are ids or
    colours is determined for all of them together; if ambiguous, reading each raises an error. Raises ConditionError
    for a damaged class table.
    """
    groups: list[tuple[Condition, list[Item]]] = []
    for item in items:
        files: Any = item
        if not isinstance(item, Path | OpenedImage) and not hasattr(item, "keys"):
            continue  # a text, or in memory
        reader = condition.beside(files.archive if isinstance(files, Archived) else files)
        group = next((found for found in groups if found[0] == reader), None)
        if group is None:
            groups.append((reader, [item]))
        else:
            group[1].append(item)
    readers: dict[Item, Condition] = {}
    notes: list[str] = []
    for reader, of_group in groups:
        try:
            settled, said = reader.settled(of_group)  # type: ignore[arg-type]  # these are files
        except ConditionError:
            settled, said = reader, []
        notes += [*_mapped(settled), *said]
        readers |= {item: settled for item in of_group if settled is not condition}
    return readers, notes


def mapped_note(condition: Condition, given: object) -> list[str]:
    """Notes on one file, or parts, with a class table beside it; see `readers_of`."""
    return [] if isinstance(given, str) else _mapped(condition.beside(given))


def _mapped(reader: Condition) -> list[str]:
    """A note if a table beside the files is used."""
    parts = [part for part in reader.named_parts().values() if isinstance(part, MaskCondition)]
    if not any(part.table for part in parts):
        return []
    return ["the classes.json beside the masks has other class ids than the model: classes are matched by name"]
