"""Pairs of photographs and conditions by key, in folders and archives, per split."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator, model_validator

from piti.conditions import Condition, NoCondition, SeveralCondition
from piti.core.errors import option
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError
from piti.core.json_files import JsonError, read_json
from piti.core.spec import choices
from piti.core.walk import Found, by_key, composed, key_of, walk
from piti.data.archives import DOTTED, Archived, dotted, list_archived
from piti.data.drawn import DrawnSpec
from piti.data.near_names import near_keys
from piti.data.problems import TWICE, DataError, Problems
from piti.data.shards.sources import ShardSpec

SPLITS_FILE = "splits.json"
NO_VALIDATION = "no validation pairs: training runs without validation loss and previews"
HELD_OUT = 0.05
"""Share of keys, or of samples in shards, in "val" without a splits file."""


def read_splits(path: Path, existing: Set[str] = frozenset()) -> dict[str, list[str]] | None:
    """`{"train": [keys], "val": [keys]}`; None if there is no file with the default name. Raises DataError.

    existing: the existing keys. A name with a suffix or with the folder of the files, such as `images/s1.jpg`, is
    read as the key `s1` if only that exists; keys are Unicode-normalised as for files, and `\\` separates folders like
    `/`. A split name similar to "train", "val" or "test" is refused, since it would not be used.
    """
    if not path.exists() and path.name == SPLITS_FILE:
        return None
    try:
        splits = read_json(path)
    except JsonError as error:
        raise DataError(
            f"cannot read the splits ({error.problem})", remedy=f"{error.remedy}, or correct data.splits", source=path
        ) from None
    lists = splits.values() if isinstance(splits, dict) else [None]
    if not all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in lists):
        raise DataError(f'{path}: expected {{"train": [keys], "val": [keys]}}, lists of strings by name')
    for name in splits:
        if (meant := _split_meant(name)) is not None:
            raise DataError(f"{path}: unknown split '{name}'; did you mean '{meant}'? known: {', '.join(_SPLITS)}")
    return {name: [_existing(key, existing) for key in keys] for name, keys in splits.items()}


_SPLITS: Mapping[str, frozenset[str]] = {
    "train": frozenset({"training", "trn"}),
    "val": frozenset({"valid", "validate", "validation", "dev", "eval", "evaluation", "held_out", "holdout"}),
    "test": frozenset({"testing", "tst"}),
}
"""The usual splits, and other names for them."""


def _split_meant(name: str) -> str | None:
    """The usual split that an unusual name probably means; None for usual and dissimilar names."""
    plain = name.strip().casefold().replace("-", "_")
    for usual, others in _SPLITS.items():
        if plain == usual or plain in others or difflib.get_close_matches(plain, (usual, *others), n=1, cutoff=0.8):
            return None if name == usual else usual
    return None


def _existing(key: str, existing: Set[str]) -> str:
    """A key in the form of the files, if it exists."""
    named = composed(key)
    slashed = named.replace("\\", "/").removeprefix("./")
    inside = slashed.partition("/")[2] if slashed.startswith(_FOLDERS) else slashed
    stems = [PurePosixPath(form).with_suffix("").as_posix() for form in (slashed, inside) if PurePosixPath(form).name]
    return next((form for form in (named, slashed, *stems, inside) if form in existing), named)


_FOLDERS = ("images/", "labels/")  # folder names that people write before a key


def key_problems(splits: Mapping[str, Sequence[str]], existing: Set[str], file: str) -> list[tuple[str, str, str]]:
    """Problems of given splits, as (key, kind, detail). existing: the existing keys. file: the name of the splits
    file."""
    places: dict[str, list[str]] = {}
    for name, keys in splits.items():
        for key in keys:
            places.setdefault(key, []).append(name)
    missing = near_keys([key for key in places if key not in existing], existing)
    found = [(key, f"keys in {file} without files (paths without suffix)", said) for key, said in missing.items()]
    twice = {key: names for key, names in places.items() if len(names) > 1}
    kind = f"keys listed more than once in {file}"
    found += [(key, kind, f"{key}: {', '.join(names)}") for key, names in twice.items()]
    return found


def split_by_hash(keys: Sequence[str]) -> dict[str, list[str]]:
    """ "train" and "val" without a splits file: a key is held out if its hash is in the lowest 5%.

    A key's split does not depend on other keys, except that an empty "val" gets the key with the lowest hash, and
    "train" keeps at least one.
    """
    order = sorted(keys, key=key_hash)
    count = sum(key_hash(key) < HELD_OUT for key in order)
    held_out = min(max(1, count), len(order) - 1)
    return {"train": sorted(order[held_out:]), "val": sorted(order[:held_out])}


def key_hash(key: str) -> float:
    """A number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


ALONE = ("none", "text")
"""Kinds of condition that allow `FolderSpec.photographs`: none, or text beside the photographs."""


Stored = Path | Archived
"""A file, in a folder or inside an archive."""


@dataclass(frozen=True)
class Pair:
    """An image and its condition; `key` is their common path without suffix."""

    key: str
    image: Stored
    condition: Stored | dict[str, Stored] | None
    """For a condition of several parts, the files of the given ones; None if the model takes no condition."""

    def files(self) -> list[Stored]:
        """Its files, the image first."""
        parts = self.condition.values() if isinstance(self.condition, dict) else [self.condition]
        return [self.image, *(part for part in parts if part is not None)]

    def __str__(self) -> str:
        """Its files."""
        return ", ".join(map(str, self.files()))


class FolderSpec(ShardSpec):
    """Location of the pairs, and cropping of samples."""

    root: Path | None = None
    """The data's root folder."""
    images: str = "images"
    """Folder of the photographs, including subfolders."""
    conditions: str | dict[str, str] = "labels"
    """Folder of the conditions, with the same paths and the suffix of their kind; for several parts, a folder for
    each."""
    partial: bool = False
    """For several parts: also use photographs that have only some of them."""
    photographs: tuple[Path, ...] = ()
    """More training photographs, folders or tar archives, for a model without a condition or with text; the caption of
    `KEY.jpg` is `KEY.txt` beside it."""
    limit: int | None = Field(default=None, ge=1)
    """Train on only this many pairs, those with the lowest key hashes, so that a lower limit selects a subset of a
    higher one. Validation is not limited."""
    splits: str = SPLITS_FILE
    """`{"train": [keys], "val": [keys]}`; without the file a hash of each key holds out about 5%."""
    size: int = Field(default=64, ge=1)
    """Side of a sample in pixels."""
    condition_size: int | None = Field(default=None, ge=1)
    """Side of its condition in pixels; null: the sample's."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Side of random square crops, as a range of shares of the short side. Validation uses a centred square of the
    largest."""
    flip: bool = True
    """Mirror half of the samples."""
    drawn: DrawnSpec | None = None
    """For sketches: augment training samples to resemble drawings; null: no augmentation."""
    cache: bool = True
    """Keep decoded images in memory if they fit."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Largest size of the cache."""

    @model_validator(mode="after")
    def _of_folders_or_shards(self) -> FolderSpec:
        if self.limit is not None and self.shards:
            raise ValueError("'limit' is for folders; name fewer 'shards' instead")
        unread = (
            ("photographs", "images", "splits") if self.shards else ("val_shards", "shard_image", "shard_condition")
        )
        for key in unread:
            if getattr(self, key) == FolderSpec.model_fields[key].default:
                continue
            if self.shards:
                raise ValueError(f"'{key}' is for folders, not for shards; remove it, or 'shards'")
            raise ValueError(f"'{key}' is for shards, but 'shards' is empty; give them, or remove it")
        return self

    @property
    def condition_side(self) -> int:
        """Side of a sample's condition in pixels."""
        return self.condition_size or self.size

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high <= 1:
            raise ValueError("expected [from, to] with 0 < from <= to <= 1, shares of the short side")
        return value


class PairList:
    """Matches the files of one split; `problems` collects mismatches.

    Raises DataError if a folder is missing, the splits file is not valid, the split is unknown, or nothing matches.
    """

    def __init__(self, spec: FolderSpec, condition: Condition, split: str | None) -> None:
        self.spec, self.condition, self.split = spec, condition, split
        self.root = spec.root or next(iter(spec.photographs), Path())
        self.problems = Problems()
        self.absent: list[str] | None = None
        """Keys of this split in the splits file that have no files; empty before `pairs`, and without a splits file."""
        self.unlisted = 0
        """Number of pairs in no split of the splits file; 0 before `pairs`, and without a splits file."""
        self._others: dict[str, str] = {}  # FOLDER/KEY of unsupported files, with their names

    def pairs(self) -> list[Pair]:
        """The pairs of the split, sorted by key."""
        alone = isinstance(self.condition, NoCondition)
        if self.spec.photographs and self.condition.kind not in ALONE:
            kinds = " or ".join(f"{{kind: {kind}}}" for kind in ALONE)
            raise DataError(f"data.photographs are for condition: {kinds}, not for {self.condition.kind}")
        if self.spec.root is None and not self.spec.photographs:
            raise DataError(
                "no data folder given", remedy=f"set data.root in the recipe or pass {option('data')} FOLDER"
            )
        further = self._further(alone)
        if self.spec.root is None:
            kept = [pair.key for pair in further]
            chosen = set(kept if self.split is None else self._keys_of(self.split, kept, set(kept)))
            return self._limited([pair for pair in further if pair.key in chosen])
        return self._limited(self._paired(self.spec.root, alone) + (further if self.split in {None, "train"} else []))

    def _limited(self, pairs: list[Pair]) -> list[Pair]:
        """The training pairs within `spec.limit`. Raises DataError if there are fewer."""
        limit = self.spec.limit
        if limit is None or self.split != "train":
            return pairs
        if limit > len(pairs):
            raise DataError(f"data.limit: {limit}, and {self.root} has {len(pairs)} training pairs; lower it")
        kept = {pair.key for pair in sorted(pairs, key=lambda pair: key_hash(pair.key))[:limit]}
        return [pair for pair in pairs if pair.key in kept]

    def _paired(self, root: Path, alone: bool) -> list[Pair]:
        """The root's pairs; only its images if there are no conditions."""
        images = self._files(root / self.spec.images)
        parts = {} if alone else self.condition.named_parts()
        folders = condition_folders(self.spec, self.condition) if parts else {}
        found = {name: self._files(root / folders[name], part.suffixes) for name, part in parts.items()}
        existing = images.keys() | {key for files in found.values() for key in files}
        keys = sorted(images.keys() if alone else self._matched(images, folders, found))
        if not keys:
            self.problems.raise_if_any(root)
            named = " and ".join(f"{folder}/" for folder in (self.spec.images, *folders.values()))
            raise DataError(f"{root}: {named} contain no images")
        if self.split is not None:
            keys = self._keys_of(self.split, keys, existing)
        return [Pair(key, images[key], self._condition_of(key, found)) for key in keys]

    def _matched(
        self, images: Mapping[str, Stored], folders: Mapping[str, str], found: Mapping[str, Mapping[str, Stored]]
    ) -> set[str]:
        """The keys with an image and all required files; the others are problems."""
        place_of = {name: f"{folders[name]}/" for name in found}
        needed: list[tuple[str, Set[str]]] = [(place_of[name], files.keys()) for name, files in found.items()]
        if self.spec.partial:
            needed = [(" or ".join(place_of.values()), {key for files in found.values() for key in files})]
        for places, keys in needed:
            for key, said in sorted(near_keys(images.keys() - keys, keys - images.keys()).items()):
                other = next(
                    (self._others[place + key] for place in place_of.values() if place + key in self._others), ""
                )
                there = f" ({other} is there, but its format is not supported)" if other else ""
                self.problems.add(f"images without a condition in {places}", said + there)
        for name, files in found.items():
            for _, said in sorted(near_keys(files.keys() - images.keys(), images.keys() - files.keys()).items()):
                place = place_of[name] if len(found) > 1 else ""
                self.problems.add(f"conditions without an image in {self.spec.images}/", place + said)
        return set(images).intersection(*(keys for _, keys in needed))

    def _condition_of(self, key: str, found: Mapping[str, Mapping[str, Stored]]) -> Stored | dict[str, Stored] | None:
        """The files of a key's condition."""
        given = {name: files[key] for name, files in found.items() if key in files}
        return given if isinstance(self.condition, SeveralCondition) else next(iter(given.values()), None)

    def _further(self, alone: bool) -> list[Pair]:
        """The pairs of `spec.photographs`, with captions unless there is no condition."""
        images = self._photographs(IMAGE_SUFFIXES)
        if alone:
            return [Pair(key, image, None) for key, image in sorted(images.items())]
        texts = self._photographs(self.condition.suffixes)
        for key in sorted(images.keys() - texts.keys()):
            self.problems.add("photographs without a caption beside them (KEY.txt)", str(images[key]))
        return [Pair(key, images[key], texts[key]) for key in sorted(images.keys() & texts.keys())]

    def _photographs(self, suffixes: Set[str]) -> dict[str, Path | Archived]:
        """Files of `spec.photographs` by key, which starts with the name of the folder or archive."""
        found: dict[str, Path | Archived] = {}
        for place in self.spec.photographs:
            try:
                inside = self._inside(place, suffixes)
            except ImageError as error:
                raise DataError(f"data.photographs: {error}") from None
            if not inside:
                captions = f"{', '.join(sorted(suffixes))} files; put KEY.txt beside KEY.jpg"
                what = "images" if suffixes == IMAGE_SUFFIXES else captions
                raise DataError(f"data.photographs: {place} holds no {what}")
            for key, picture in inside:
                if key in found:
                    self.problems.add(TWICE, f"{found[key]} and {picture}")
                found[key] = picture
        return found

    def _files(self, folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
        """Images (or files with these suffixes) below `folder` by key; two files with one key are a problem."""
        try:
            found = walk(folder, suffixes)
        except ImageError:
            if folder.is_dir():
                raise
            raise DataError(
                f"{folder}: no such folder; put the images there, or set data.images and data.conditions"
            ) from None
        self._note_lost(found)
        known = frozenset[str]().union(*(part.suffixes for part in self.condition.named_parts().values()))
        others = [path for path in found.others if path.suffix.lower() not in known]
        self._others |= {f"{folder.name}/{key_of(path, folder)}": path.name for path in others}
        files, twice = by_key(found.files, folder)
        for said in twice.values():
            self.problems.add(TWICE, said)
        return files

    def _inside(self, place: Path, suffixes: Set[str]) -> list[tuple[str, Stored]]:
        """The files of a folder, at any depth, or of a tar archive, with their keys. Raises ImageError."""
        if not place.is_dir():
            for member in dotted(place) if suffixes == IMAGE_SUFFIXES else []:
                self.problems.add(DOTTED, str(member))
            return [(f"{place.stem}/{member.key}", member) for member in list_archived(place, suffixes)]
        found = walk(place, suffixes)
        if suffixes == IMAGE_SUFFIXES:  # else it is searched for captions of these
            self._note_lost(found)
        return [(f"{place.name}/{key_of(path, place)}", path) for path in found.files]

    def _note_lost(self, found: Found) -> None:
        for kind, path in found.lost():
            self.problems.add(kind, str(path))

    def _keys_of(self, split: str, paired: Sequence[str], existing: Set[str]) -> list[str]:
        """The keys of a split that have both files; other keys of the split are problems."""
        given = self._splits(existing)
        splits = split_by_hash(paired) if given is None else given
        if split not in splits:
            raise DataError(f"{self.root}: no split '{split}'; {choices(split, splits)}")
        if given is not None:
            self.absent = sorted(set(given[split]) - existing)
            self.unlisted = len(set(paired).difference(*given.values()))
        for _, kind, said in key_problems(splits, existing, self.spec.splits):
            self.problems.add(kind, said)
        return sorted(set(splits[split]).intersection(paired))

    @property
    def split_names(self) -> list[str]:
        """The available splits."""
        return list(self._splits() or split_by_hash([]))

    def _splits(self, existing: Set[str] = frozenset()) -> dict[str, list[str]] | None:
        return None if self.spec.root is None else read_splits(self.spec.root / self.spec.splits, existing)


def condition_folders(spec: FolderSpec, condition: Condition) -> dict[str, str]:
    """The folder of each of `condition.named_parts()`. Raises DataError if `spec` does not match the parts."""
    named, parts = spec.conditions, condition.named_parts()
    if isinstance(named, str) and isinstance(condition, SeveralCondition):
        example = ", ".join(f"{name}: FOLDER" for name in parts)
        raise DataError(
            f"data.conditions: '{named}' is one folder, but the condition has the parts {', '.join(parts)}; set one "
            f"for each: conditions: {{{example}}}"
        )
    if isinstance(named, str):
        return {condition.kind: named}
    if not isinstance(condition, SeveralCondition):
        raise DataError(
            f"data.conditions: names folders of parts ({', '.join(named)}), but the condition is a single "
            f"{condition.kind}; set one folder, or use condition: {{kind: several, parts: …}}"
        )
    for name in named:
        if name not in parts:
            raise DataError(f"data.conditions: unknown part '{name}'; {choices(name, parts)}")
    missing = [name for name in parts if name not in named]
    if missing:
        raise DataError(f"data.conditions: no folder for the part {', '.join(missing)}; add '{missing[0]}: FOLDER'")
    return {name: named[name] for name in parts}
