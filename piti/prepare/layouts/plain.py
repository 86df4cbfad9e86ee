"""Plain folders: `images/`, `labels/`, `classes.json` and optionally `splits.json`, as used by training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from piti.conditions import ClassTable, ConditionError, MaskCondition
from piti.core.walk import by_key, key_of, walk
from piti.data.pairs import SPLITS_FILE, key_problems, read_splits, split_by_hash
from piti.data.problems import TWICE, DataError
from piti.prepare.layouts.base import Entry, Fault, Listing, MaskLayout, matched, place_of


class PlainFolder(MaskLayout):
    """Photographs and masks with matching names; masks may be ids or class colours."""

    name = "folder"

    def __init__(self, root: Path) -> None:
        super().__init__(place_of(root, ("images", "labels"), (), "images/, labels/ and classes.json"))
        try:
            self._condition = MaskCondition(ClassTable.read(self.root / "classes.json"))
        except ConditionError as error:
            raise DataError.like(error) from None

    def listing(self) -> Listing:
        """See `Layout`; keys in the splits file without files are problems too."""
        faults: list[Fault] = []
        images, labels = (self._files(folder, faults) for folder in ("images", "labels"))
        listing = matched(images, labels, lambda key: "")
        keys = [entry.key for entry in listing.entries]
        existing = images.keys() | labels.keys()
        splits = read_splits(self.root / SPLITS_FILE, existing)
        stated = {name for name, named in (splits or {}).items() if named}
        if splits is None:
            splits = split_by_hash(keys)
        elif "train" not in stated:
            faults.append(Fault(SPLITS_FILE, f"splits without pairs in {SPLITS_FILE} (list some)", "train"))
        faults += [Fault(*found) for found in key_problems(splits, existing, SPLITS_FILE)]
        split_of = {key: name for name, named in splits.items() for key in named}
        entries = [Entry(e.key, split_of.get(e.key, ""), e.image, e.condition) for e in listing.entries]
        return Listing(entries, faults + listing.faults, stated, splits)

    def _files(self, folder: str, faults: list[Fault]) -> dict[str, Path]:
        found = walk(self.root / folder)
        for kind, path in found.lost():
            faults.append(Fault(key_of(path, self.root / folder), kind, str(path)))
        files, twice = by_key(found.files, self.root / folder)
        faults += [Fault(key, TWICE, said) for key, said in twice.items()]
        return files

    def look(self, entries: Sequence[Entry]) -> list[str]:
        """See `Layout`: whether the masks are ids or colours."""
        try:
            condition, notes = self._condition.settled([entry.condition for entry in entries])
        except ConditionError as error:
            raise DataError.like(error) from None
        assert isinstance(condition, MaskCondition)
        self._condition = condition
        return notes

    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """See `MaskLayout`: masks as read by a mask condition, as ids. Raises ConditionError for others."""
        indices = self._condition.load(entry.condition)[0].numpy()
        return self._id_of_index[indices]

    @cached_property
    def _id_of_index(self) -> Integer[np.ndarray, "*indices"]:
        table = self._condition.classes
        ids = np.full(self._condition.ignore_index + 1, -1 if table.ignore is None else table.ignore)
        ids[: table.count] = table.ids
        return ids

    def known(self) -> set[int]:
        """See `MaskLayout`: the condition has refused all others."""
        return set(self._id_of_index.tolist())

    def classes(self) -> ClassTable:
        """The folder's class table, with the reading of its masks if all of them decided it."""
        reading = self._condition.reading or self._condition.classes.reading
        return self._condition.classes.model_copy(update={"reading": reading})

    def as_it_is(self, entry: Entry) -> bool:
        """See `Layout`: always."""
        return True
