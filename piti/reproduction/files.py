"""Files of a data set for a table: conditions, their photographs, and the reference photographs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from piti.conditions import Condition
from piti.core.errors import UserError
from piti.core.images import read_rgb, save_png
from piti.core.system import link
from piti.core.walk import flat
from piti.data.pairs import FolderSpec, Pair, PairList

_BLOCK = 2**20


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set; folders contain links named after the pairs' keys."""

    condition: Condition
    conditions: Path
    """Of the validation split."""
    photographs: Path
    """Of the validation split, with the same stems."""
    reference: Path
    """Reference photographs for distances."""
    stems: tuple[str, ...]
    training: int
    """Number of training pairs."""

    @cached_property
    def conditions_sha256(self) -> str:
        """Hash of the conditions' contents, read once."""
        return contents_sha256(self.conditions)

    @cached_property
    def reference_sha256(self) -> str:
        """Hash of the reference photographs' contents, read once."""
        return contents_sha256(self.reference)

    @property
    def kind(self) -> str:
        """Kind of the condition."""
        return self.condition.kind

    def photograph(self, stem: str) -> Path:
        """The photograph of a condition."""
        return _named(self.photographs, stem)

    def conditioned(self, stem: str) -> Path:
        """The file of a condition."""
        return _named(self.conditions, stem)


def choose(condition: Condition, spec: FolderSpec, reference: str, out: Path) -> DatasetFiles:
    """Link a data set's files into `out`. reference: the split of the reference photographs. Raises DataError, and
    UserError if two files would have the same name there.
    """
    spec = spec.model_copy(update={"limit": None})
    pairs = _by_stem(_pairs(spec, condition, "val"))
    conditions = linked({stem: pair.condition for stem, pair in pairs.items()}, out / "conditions")
    photographs = linked({stem: pair.image for stem, pair in pairs.items()}, out / "photographs")
    training = _pairs(spec, condition, "train")
    compared = photographs
    if reference != "val":
        of_split = _by_stem(_pairs(spec, condition, reference))
        compared = linked({stem: pair.image for stem, pair in of_split.items()}, out / f"photographs-{reference}")
    return DatasetFiles(condition, conditions, photographs, compared, tuple(sorted(pairs)), len(training))


def training_conditions(condition: Condition, spec: FolderSpec, out: Path) -> Path:
    """A folder in `out` of links to a recipe's training conditions. Raises as `choose`."""
    pairs = _by_stem(_pairs(spec, condition, "train"))
    return linked({stem: pair.condition for stem, pair in pairs.items()}, out / "training")


def count_pairs(condition: Condition, spec: FolderSpec) -> tuple[int, int]:
    """Numbers of training pairs and validation conditions. Raises DataError."""
    spec = spec.model_copy(update={"limit": None})
    return len(_pairs(spec, condition, "train")), len(_pairs(spec, condition, "val"))


def _pairs(spec: FolderSpec, condition: Condition, split: str) -> list[Pair]:
    listing = PairList(spec, condition, split)
    pairs = listing.pairs()
    listing.problems.raise_if_any(listing.root)
    return pairs


def _by_stem(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """Pairs by the names of their images. Raises UserError for duplicates."""
    found: dict[str, Pair] = {}
    for pair in pairs:
        other = found.setdefault(flat(pair.key), pair)
        if other is not pair:
            raise UserError(
                f"the images of {other.key} and {pair.key} would both be named {flat(pair.key)}",
                remedy="rename one of them",
            )
    return found


def _named(folder: Path, stem: str) -> Path:
    return next(path for path in folder.iterdir() if path.stem == stem)


def linked(files: Mapping[str, object], folder: Path) -> Path:
    """A folder of links to these files, by their stems; recreated if it differs. Raises UserError."""
    wanted: dict[str, Path] = {}
    for stem, path in files.items():
        if not isinstance(path, Path):
            raise UserError(f"{path}: is in an archive, but tables need folders; unpack it")
        wanted[f"{stem}{path.suffix}"] = path.resolve()
    there = {path.name: path.resolve() for path in folder.iterdir()} if folder.is_dir() else {}
    if there == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, path in wanted.items():
        link(path, folder / name)
    return folder


def as_png(photographs: Path, folder: Path) -> Path:
    """Photographs as lossless PNGs, for evaluation like results."""
    for path in sorted(photographs.iterdir()):
        target = folder / f"{path.stem}.png"
        if not target.exists():
            save_png(read_rgb(path), target)
    return folder


def contents_sha256(place: Path) -> str:
    """A hash of a file's contents, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in _files(place):
        digest.update((path.relative_to(place).as_posix() if path != place else "").encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file())
