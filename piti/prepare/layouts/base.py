"""The interface of layouts: matching files, checking them, and writing conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Integer
from PIL import Image

from piti.conditions import ClassTable, ConditionError
from piti.conditions.base import LossyCondition
from piti.core.errors import count_of
from piti.core.formats import ARRAYS
from piti.core.images import ImageError, Source, open_image, read_rgb, save_png
from piti.core.walk import composed, walk
from piti.data.near_names import near_keys
from piti.data.problems import UNREADABLE, DataError
from piti.data.shown import FITS_UNTURNED, LOSSY, TURNED, UNEQUAL, Seen, turn_of

UNKNOWN = "annotations with unknown labels (another data set, or damaged files)"
ALONE = "images without an annotation"
ORPHANS = "annotations without an image"


@dataclass(frozen=True)
class Entry:
    """A photograph and its annotation files; `key` is its path in the layout, without suffix."""

    key: str
    split: str
    image: Path
    condition: Path
    further: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files of the condition."""
        return (self.condition, *self.further)


class Fault(NamedTuple):
    """A problem: the pair's key, the kind as a heading, and the detail."""

    key: str
    kind: str
    what: str


@dataclass
class Listing:
    """A layout's pairs, before any file is opened, and files without a partner.

    splits: every split with files or in a splits file, with or without pairs. keys: those of each split, from a splits
    file or a hash; None if folders are the splits.
    """

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    keys: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Examined:
    """Result of checking a pair.

    labels, unknown: pixels per known and unknown label. names: of labels, if the files give them.
    """

    faults: tuple[Fault, ...] = ()
    labels: Mapping[int, int] = field(default_factory=dict)
    unknown: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    """Whether the photograph is rotated by its EXIF orientation, and its mask too."""


class Layout(ABC):
    """A downloaded data set below `root`. Raises DataError if it is missing."""

    name: ClassVar[str]
    """Name of the command that prepares it."""
    recipe: ClassVar[str] = "street"
    """A recipe that can be trained on it."""
    folder: ClassVar[str] = "labels"
    """Output folder of its conditions."""
    suffix: ClassVar[str] = ".png"
    """Suffix of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def listing(self) -> Listing:
        """All pairs, sorted by key, and all files without a partner."""

    @abstractmethod
    def examine(self, entry: Entry) -> Examined:
        """Decode and check a pair's files."""

    def settle(self, examined: Iterable[Examined]) -> None:  # noqa: B027 - most layouts know beforehand
        """Use results of the whole set, such as the classes that occur."""

    def look(self, entries: Sequence[Entry]) -> list[str]:
        """Decide what is common to all files before they are examined; returns notes. Raises DataError."""
        return []

    @abstractmethod
    def classes(self) -> ClassTable | None:
        """The class table, if its conditions are masks."""

    @abstractmethod
    def as_it_is(self, entry: Entry) -> bool:
        """Whether the condition's file can be used unchanged."""

    @abstractmethod
    def write(self, entry: Entry, target: Path, mark: str) -> None:
        """Convert the condition's file into a new one with `mark`."""

    @abstractmethod
    def marked(self, target: Path) -> str | None:
        """The mark of a converted file; None if it is incomplete."""

    def settings(self) -> dict[str, Any]:
        """The settings that converted files depend on, as plain data."""
        return {}


class MaskLayout(Layout):
    """A layout whose annotations are label images."""

    @abstractmethod
    def ids(self, entry: Entry) -> Integer[np.ndarray, "h w"]:
        """The labels of a mask, in the numbering of the prepared set. Raises ImageError or ConditionError."""

    @abstractmethod
    def known(self) -> set[int]:
        """The labels that may occur, including the ignored one."""

    def names(self, entry: Entry) -> Mapping[int, str]:
        """Names of labels given with the mask."""
        return {}

    def examine(self, entry: Entry) -> Examined:
        """See `Layout`: both files are decoded, and labels counted."""
        faults: list[Fault] = []
        image = photograph(entry, faults)
        try:
            ids = self.ids(entry)
        except ImageError as error:
            return Examined((*faults, Fault(entry.key, UNREADABLE, str(error))))
        except ConditionError as error:
            kind = LOSSY if isinstance(error, LossyCondition) else UNKNOWN
            return Examined((*faults, Fault(entry.key, kind, str(error))))
        seen = Seen() if image is None else Seen({}, *turn_of(entry.image, np.asarray(image), ids))
        if image is not None and image.size != ids.shape[::-1]:
            faults.append(unequal(entry, image.size, (ids.shape[1], ids.shape[0]), seen))
        values, counts = np.unique(ids, return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        known = self.known()
        unknown = {value: count for value, count in found.items() if value not in known}
        if unknown:
            listed = ", ".join(f"{value} on {count_of(count, 'pixel')}" for value, count in list(unknown.items())[:5])
            faults.append(Fault(entry.key, UNKNOWN, f"{entry.condition}: label {listed}"))
        labels = {value: count for value, count in found.items() if value in known}
        return Examined(tuple(faults), labels, unknown, self.names(entry), seen)

    def as_it_is(self, entry: Entry) -> bool:
        """See `Layout`: true for grey PNGs with labels; a palette could be read as class colours."""
        with Image.open(entry.condition) as image:
            return image.format == "PNG" and image.mode in ("L", "I;16")

    def write(self, entry: Entry, target: Path, mark: str) -> None:
        """See `Layout`: an 8-bit grey PNG, or 16-bit for larger labels."""
        table = self.classes()
        largest = max(*table.ids, table.ignore or 0) if table else 0
        ids = self.ids(entry)
        save_png(Image.fromarray(ids.astype(np.uint8 if largest < 256 else np.uint16)), target, {_MARK: mark})

    def marked(self, target: Path) -> str | None:
        """See `Layout`."""
        try:
            return open_image(target).info.get(_MARK)
        except ImageError:
            return None


_MARK = "piti-labels"  # PNG text with the settings of a mask


def photograph(entry: Entry, faults: list[Fault]) -> Image.Image | None:
    """The decoded photograph; if unreadable, a problem is added to `faults`."""
    try:
        return read_rgb(entry.image)
    except ImageError as error:
        faults.append(Fault(entry.key, UNREADABLE, str(error)))
        return None


def unequal(entry: Entry, image: tuple[int, int], condition: tuple[int, int], seen: Seen) -> Fault:
    """The problem of a pair with different sizes (width, height)."""
    sizes = f"image {image[0]} x {image[1]}, annotation {condition[0]} x {condition[1]}"
    if seen.orientation in TURNED and condition == image[::-1]:
        return Fault(entry.key, FITS_UNTURNED, f"{entry.key}: {sizes}, matching the unrotated pixels")
    return Fault(entry.key, UNEQUAL, f"{entry.key}: {sizes}")


def grey_ids(path: Source) -> Integer[np.ndarray, "h w"]:
    """The pixel values of a grey or palette image of 8 or 16 bits. Raises ImageError or ConditionError."""
    image = open_image(path, exact=True)
    if image.mode not in ("L", "P") and not image.mode.startswith("I"):
        raise ConditionError(f"{path}: a {image.mode} image, expected labels as a grey PNG; download the file again")
    return np.asarray(image).astype(np.int64)


def matched(images: Mapping[str, Path], conditions: Mapping[str, Path], split_of: Callable[[str], str]) -> Listing:
    """Pairs of equal key, and files without a partner as problems."""
    entries = [Entry(key, split_of(key), images[key], conditions[key]) for key in sorted(images.keys() & conditions)]
    faults = [
        *_alone(ALONE, images, images.keys() - conditions.keys(), conditions.keys() - images.keys()),
        *_alone(ORPHANS, conditions, conditions.keys() - images.keys(), images.keys() - conditions.keys()),
    ]
    return Listing(entries, faults, {split_of(key) for key in images.keys() | conditions.keys()})


def matched_in(images: Mapping[str, Path], conditions: Mapping[str, Path], splits: Mapping[str, str]) -> Listing:
    """The same for files whose first folder is one of `splits`, a split's name by its folder; others are skipped."""

    def inside(files: Mapping[str, Path]) -> dict[str, Path]:
        return {key: path for key, path in files.items() if _first_folder(key) in splits}

    return matched(inside(images), inside(conditions), lambda key: splits[_first_folder(key)])


def _first_folder(key: str) -> str:
    return key.partition("/")[0]


def _alone(kind: str, files: Mapping[str, Path], lonely: Set[str], others: Set[str]) -> list[Fault]:
    """Problems of keys without a partner, with suggestions."""
    said = near_keys(lonely, others)
    return [Fault(key, kind, str(files[key]) + said[key].removeprefix(key)) for key in sorted(lonely)]


def files_below(folder: Path, ending: str) -> dict[str, Path]:
    """Files at any depth with this suffix, by path without it; hidden ones are skipped.

    Arrays are allowed, such as DIODE's depth next to its photographs. Raises ImageError for broken links and images of
    unsupported formats.
    """
    paths = walk(folder, ARRAYS | {f".{ending.rpartition('.')[2]}"}).check() if folder.is_dir() else []
    inside = {composed(path.relative_to(folder).as_posix()): path for path in paths}
    return {name.removesuffix(ending): path for name, path in inside.items() if name.endswith(ending)}


def photographs_below(folder: Path) -> dict[str, Path]:
    """JPEG photographs at any depth, by path without suffix; of several with the same path, the ".jpg"."""
    paths = walk(folder, ARRAYS | {".jpg", ".jpeg"}).check() if folder.is_dir() else []
    jpegs = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]
    usual_last = sorted(jpegs, key=lambda path: (path.suffix == ".jpg", path))
    found = {composed(path.relative_to(folder).with_suffix("").as_posix()): path for path in usual_last}
    return dict(sorted(found.items()))


def place_of(root: Path, parts: Sequence[str], roots: Sequence[str], expected: str) -> Path:
    """`root`, or the sub-folder named in `roots`, that contains all of `parts`. Raises DataError."""
    inside = [path for pattern in roots for path in sorted(root.glob(pattern))] if root.is_dir() else []
    for place in (root, *inside):
        if all((place / part).is_dir() for part in parts):
            return place
    raise DataError(f"{root}: unexpected layout, expected {expected}; give the folder that contains these")


def labels_seen(examined: Iterable[Examined]) -> Counter[int]:
    """Pixels of every known label over several pairs."""
    total: Counter[int] = Counter()
    for one in examined:
        total.update(one.labels)
    return total
