"""ADE20K (Zhou et al. 2017): SceneParse150's class ids, and the full release's masks in red and green.

SceneParse150: `images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png` with 0 for everything
outside the 150 classes, 1 to 150 for these, `objectInfo150.txt` with their names.

Full release (2016_07_26 and 2021_17_01): every `NAME.jpg` in `images/` has a `NAME_seg.png` whose label is red // 10 ·
256 + green (blue numbers the instances), 0 for unannotated pixels; since 2021 also a `NAME.json` with the names of the
labels ("name_ndx", "name").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from piti.conditions import ClassTable, ConditionError, bit_colours
from piti.core.errors import count_of, option
from piti.core.images import open_image
from piti.data.problems import DataError
from piti.prepare.layouts.base import (
    Entry,
    Examined,
    Listing,
    MaskLayout,
    files_below,
    grey_ids,
    labels_seen,
    matched,
    matched_in,
    photographs_below,
    place_of,
)

_SPLITS = {"training": "train", "validation": "val"}
_LARGEST = 25 * 256 + 255  # largest label encoded by red and green


def ade20k(root: Path, top: int | None = None) -> MaskLayout:
    """The layout of `root`; top: as for `Ade20k`. Raises DataError if it is neither of the two."""
    if any((place / "annotations").is_dir() for place in (root, root / "ADEChallengeData2016")):
        if top is not None:
            raise DataError(
                "SceneParse150 has its 150 classes", remedy=f"{option('top')} is for the full release", source=root
            )
        return SceneParse(root)
    return Ade20k(root, top)


class SceneParse(MaskLayout):
    """The 150 classes of the scene parsing challenge."""

    name = "ade20k"

    def __init__(self, root: Path) -> None:
        super().__init__(
            place_of(
                root,
                ("images", "annotations"),
                ("ADEChallengeData2016",),
                "images/{training,validation} and annotations/{training,validation}",
            )
        )
        self._table = _table(_object_info(self.root / "objectInfo150.txt"), range(1, 151))

    def listing(self) -> Listing:
        """See `Layout`; the test split has no annotations and is skipped."""
        images, masks = photographs_below(self.root / "images"), files_below(self.root / "annotations", ".png")
        return matched_in(images, masks, _SPLITS)

    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """See `MaskLayout`: the pixel values."""
        return grey_ids(entry.condition)

    def known(self) -> set[int]:
        """See `MaskLayout`."""
        return set(range(151))

    def classes(self) -> ClassTable:
        """150 classes, 0 ignored."""
        return self._table


class Ade20k(MaskLayout):
    """Every class of the full release that occurs, or the most frequent of them.

    top: number of classes to keep, those with the most pixels; the rest is unlabelled.
    """

    name = "ade20k"

    def __init__(self, root: Path, top: int | None = None) -> None:
        super().__init__(
            place_of(root, ("images",), ("ADE20K_*",), "images/ with NAME.jpg and NAME_seg.png side by side")
        )
        self.top = top
        self._kept = np.arange(_LARGEST + 1)  # new id of every label
        self._seen: dict[int, str] | None = None

    def listing(self) -> Listing:
        """See `Layout`; keys are paths below `images/`."""
        images = self.root / "images"
        listing = matched(photographs_below(images), files_below(images, "_seg.png"), _split_of_path)
        for index, entry in enumerate(listing.entries):
            said = entry.image.with_suffix(".json")
            if said.is_file():
                listing.entries[index] = Entry(entry.key, entry.split, entry.image, entry.condition, (said,))
        return listing

    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """See `MaskLayout`: red // 10 · 256 + green. Raises ConditionError if red is not a multiple of 10."""
        image = open_image(entry.condition, exact=True)
        if image.mode not in ("RGB", "RGBA"):
            raise ConditionError(f"{entry.condition}: a {image.mode} image, expected RGB; download the file again")
        red, green = (np.asarray(image)[..., channel].astype(np.int64) for channel in (0, 1))
        odd = int((red % 10 != 0).sum())
        if odd:
            raise ConditionError(
                f"{entry.condition}: {count_of(odd, 'pixel')} without a label (red is not a multiple of 10); download "
                "the file again"
            )
        return self._kept[red // 10 * 256 + green]

    def known(self) -> set[int]:
        """See `MaskLayout`: every number that the colours can encode."""
        return set(range(_LARGEST + 1))

    def names(self, entry: Entry) -> Mapping[int, str]:
        """See `MaskLayout`: from the photograph's JSON, if readable."""
        try:
            text = entry.further[0].read_text(encoding="utf-8", errors="replace") if entry.further else "{}"
            objects = json.loads(text)["annotation"]["object"]
            return {int(each["name_ndx"]): str(each["name"]) for each in objects}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def settle(self, examined: Iterable[Examined]) -> None:
        """See `Layout`: the classes are those that occur, the most frequent `top` of them."""
        examined = list(examined)
        seen = labels_seen(examined)
        del seen[0]
        names: dict[int, Counter[str]] = {}
        for one in examined:
            for label, name in one.names.items():
                names.setdefault(label, Counter())[name] += 1
        kept = sorted(label for label, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))[: self.top])
        if not kept:
            raise DataError(f"{self.root}: no mask has a label; download the data set again")
        self._seen = {
            label: names[label].most_common(1)[0][0] if label in names else f"class {label}" for label in kept
        }
        self._kept = np.where(np.isin(np.arange(_LARGEST + 1), kept), np.arange(_LARGEST + 1), 0)

    def classes(self) -> ClassTable:
        """The classes that `settle` found, under the release's numbers; 0 ignored."""
        if self._seen is None:
            raise DataError(f"{self.root}: the classes of this release are known only after all masks were examined")
        return _table(self._seen, self._seen)

    def as_it_is(self, entry: Entry) -> bool:
        """See `Layout`: colours are converted to ids."""
        return False

    def settings(self) -> dict[str, Any]:
        """See `Layout`."""
        return {"top": self.top, "classes": list(self._seen or ())}


def _split_of_path(key: str) -> str:
    """The split named by a folder in the path; by default train."""
    return next((_SPLITS[part] for part in key.split("/") if part in _SPLITS), "train")


def _object_info(path: Path) -> dict[int, str]:
    """Names by number of `objectInfo150.txt`: tab-separated lines of index, ratio, two counts, name."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    cells = [line.split("\t") for line in lines]
    return {int(row[0]): row[-1].strip() for row in cells if len(row) >= 5 and row[0].strip().isdecimal()}


def _table(names: Mapping[int, str], ids: Iterable[int]) -> ClassTable:
    """A class table; duplicate and missing names are completed by the number."""
    ids = tuple(ids)
    chosen: list[str] = []
    for number in ids:
        name = names.get(number) or f"class {number}"
        chosen.append(f"{name} ({number})" if name in chosen else name)
    return ClassTable(names=tuple(chosen), ids=ids, colours=bit_colours(len(ids)), ignore=0)
