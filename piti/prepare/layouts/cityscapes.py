"""Cityscapes (Cordts et al. 2016): `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and, in the same way in `gtFine/`,
`*_gtFine_labelIds.png`.

From the published list of labels: 34 ids, 0 to 33, of which 19 have train ids; the others are 255. Colours are the
published ones, except for duplicates, since every class of a table needs its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from piti.conditions import ClassTable
from piti.conditions.class_table import Colour
from piti.prepare.layouts.base import Entry, Listing, MaskLayout, files_below, grey_ids, matched_in, place_of

_SPLITS = {"train": "train", "val": "val"}
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"

LABELS: dict[int, tuple[str, Colour]] = {
    1: ("ego vehicle", (10, 10, 10)),
    2: ("rectification border", (20, 20, 20)),
    3: ("out of roi", (30, 30, 30)),
    4: ("static", (40, 40, 40)),
    5: ("dynamic", (111, 74, 0)),
    6: ("ground", (81, 0, 81)),
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    9: ("parking", (250, 170, 160)),
    10: ("rail track", (230, 150, 140)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    14: ("guard rail", (180, 165, 180)),
    15: ("bridge", (150, 100, 100)),
    16: ("tunnel", (150, 120, 90)),
    17: ("pole", (153, 153, 153)),
    18: ("polegroup", (163, 163, 163)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    29: ("caravan", (0, 0, 90)),
    30: ("trailer", (0, 0, 110)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
"""Label ids with their names and colours; 0 is unlabelled. Published as black: 1 to 4; as pole's grey: 18."""

TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The evaluated label ids, in the order of their train ids 0 to 18."""


class Cityscapes(MaskLayout):
    """33 classes by label id, or the 19 evaluated ones by train id."""

    name = "cityscapes"

    def __init__(self, root: Path, train_ids: bool = False) -> None:
        super().__init__(place_of(root, ("leftImg8bit", "gtFine"), ("*",), "leftImg8bit/ and gtFine/ side by side"))
        self.train_ids = train_ids
        ids = TRAIN_IDS if train_ids else tuple(LABELS)
        self._table = ClassTable(
            names=tuple(LABELS[number][0] for number in ids),
            ids=tuple(range(len(ids))) if train_ids else ids,
            colours=tuple(LABELS[number][1] for number in ids),
            ignore=255 if train_ids else 0,
        )
        self._train_id = np.full(len(LABELS) + 1, 255)
        self._train_id[list(TRAIN_IDS)] = np.arange(len(TRAIN_IDS))

    def listing(self) -> Listing:
        """See `Layout`; the test split has no public labels and is skipped."""
        images, masks = files_below(self.root / "leftImg8bit", _IMAGE), files_below(self.root / "gtFine", _LABELS)
        return matched_in(images, masks, _SPLITS)

    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """See `MaskLayout`: label ids, or their train ids; unknown ones as 1000 + id."""
        ids = grey_ids(entry.condition)
        if not self.train_ids:
            return ids
        return np.where(ids < len(self._train_id), self._train_id[ids.clip(max=len(self._train_id) - 1)], 1000 + ids)

    def known(self) -> set[int]:
        """See `MaskLayout`."""
        return {*self._table.ids, 255 if self.train_ids else 0}

    def classes(self) -> ClassTable:
        """0 ignored among label ids, 255 among train ids."""
        return self._table

    def as_it_is(self, entry: Entry) -> bool:
        """See `Layout`: the files do not contain train ids."""
        return not self.train_ids and super().as_it_is(entry)

    def settings(self) -> dict[str, Any]:
        """See `Layout`."""
        return {"train_ids": self.train_ids}
