"""How the files of a run are read: by the class tables beside them, and alike within each set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from piti.conditions import Condition, ConditionError, MaskCondition
from piti.core.images import OpenedImage
from piti.data.archives import Archived

Item = TypeVar("Item", bound=Hashable)


def readers_of(condition: Condition, items: Sequence[Item]) -> tuple[dict[Item, Condition], list[str]]:
    """The condition that reads each file or set of parts, where that is not `condition`, and what to say of it.

    A classes.json beside or above masks that numbers them otherwise is mapped by the classes' names. Whether masks of
    one table are ids or colours is decided for all of them together; where nothing decides, each says so when it is
    read. Raises ConditionError for a class table that is damaged.
    """
    groups: list[tuple[Condition, list[Item]]] = []
    for item in items:
        files: Any = item
        if not isinstance(item, Path | OpenedImage) and not hasattr(item, "keys"):
            continue  # a text, or what is in memory
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
    """What to say of one file, or of parts, that the class table beside it numbers; see `readers_of`."""
    return [] if isinstance(given, str) else _mapped(condition.beside(given))


def _mapped(reader: Condition) -> list[str]:
    """That a table beside the files was taken, and what for."""
    parts = [part for part in reader.named_parts().values() if isinstance(part, MaskCondition)]
    if not any(part.table for part in parts):
        return []
    return ["the classes.json beside the masks numbers classes otherwise than the model: they are matched by name"]
