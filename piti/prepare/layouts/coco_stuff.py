"""COCO-Stuff 164k (Caesar et al. 2018): `images/{train2017,val2017}/*.jpg`, `annotations/{train2017,val2017}/*.png`.

The pixel maps contain 0 to 181 (one less than the label list) and 255 for unannotated pixels. Other tools add
`*_labelTrainIds.png`: 0 to 170, without the 11 classes that never occur, and 255 in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from piti.conditions import ClassTable, coco_stuff
from piti.prepare.layouts.base import (
    Entry,
    Listing,
    MaskLayout,
    files_below,
    grey_ids,
    matched_in,
    photographs_below,
    place_of,
)

_SPLITS = {"train2017": "train", "val2017": "val"}
_TRAIN_IDS = "_labelTrainIds"
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Ids of classes that never occur: street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender,
hair brush."""


class CocoStuff(MaskLayout):
    """182 classes, or 171 by their train ids."""

    name = "coco-stuff"

    def __init__(self, root: Path, train_ids: bool = False) -> None:
        super().__init__(
            place_of(
                root,
                ("images", "annotations"),
                ("*",),
                "images/{train2017,val2017} and annotations/{train2017,val2017}",
            )
        )
        self.train_ids = train_ids
        self._table = _by_train_ids(coco_stuff()) if train_ids else coco_stuff()

    def listing(self) -> Listing:
        """See `Layout`; files of the other numbering are skipped."""
        ending = f"{_TRAIN_IDS}.png" if self.train_ids else ".png"
        masks = files_below(self.root / "annotations", ending)
        own = {key: path for key, path in masks.items() if "_label" not in Path(key).name}
        return matched_in(photographs_below(self.root / "images"), own, _SPLITS)

    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """See `MaskLayout`: the pixel values."""
        return grey_ids(entry.condition)

    def known(self) -> set[int]:
        """See `MaskLayout`."""
        return {*self._table.ids, 255}

    def classes(self) -> ClassTable:
        """The table of the released mask models, 255 ignored."""
        return self._table

    def settings(self) -> dict[str, Any]:
        """See `Layout`."""
        return {"train_ids": self.train_ids}


def _by_train_ids(table: ClassTable) -> ClassTable:
    """The same classes, without the unused ones, numbered from 0."""
    used = [index for index, number in enumerate(table.ids) if number not in UNUSED]
    return ClassTable(
        names=tuple(table.names[index] for index in used),
        ids=tuple(range(len(used))),
        colours=tuple(table.colours[index] for index in used),
        ignore=255,
    )
