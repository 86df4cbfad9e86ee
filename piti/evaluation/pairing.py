"""Which files are judged, and which belong together: generated images, their conditions, real photographs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from piti.conditions import NoCondition
from piti.core.errors import UserError, option
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import image_size, own_text
from piti.core.walk import composed, is_unread, list_images, stem_of, walk
from piti.data.near_names import near_keys
from piti.data.pairs import FolderSpec, PairList
from piti.data.problems import DataError
from piti.generation.options import SHEET

NAMED = 5
"""How many files an error names."""
LEAST = 2
"""With fewer images a side there is nothing to compare."""
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERED = re.compile(r"(.+)[-_]\d+")
Sizes = Counter[tuple[int, int]]


class PairingError(UserError):
    """Files are missing, of the wrong kind, or do not belong together. The message names them."""


def listed(paths: Sequence[Path | str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(str(path) for path in paths[:NAMED]) + more


# What there is


def generated_images(folder: Path) -> list[Path]:
    """The PNGs of a folder, sorted; its contact sheet, hidden files and subfolders are left out.

    Raises PairingError for fewer than two, and for pictures that are no PNG: other formats are mostly lossy, and what
    they take away or add counts as a difference from the photographs. Raises ImageError as `_pictures`.
    """
    if not folder.is_dir():
        raise PairingError(f"{folder}: no such folder; give the one that holds the generated images")
    found = _pictures(folder, recursive=False)
    images = [path for path in found if path.name != SHEET]
    odd = [path.name for path in images if path.suffix.lower() != ".png" or not _is_png(path)]
    if odd:
        raise PairingError(
            f"{folder}: {listed(odd)}: no PNG. Generated images are judged as they were made, and JPEG or WebP changes "
            "them (a renamed file stays what it was): write PNG, as piti translate does; do not convert what is lossy"
        )
    if len(images) < LEAST:
        inside = [path for path in list_images(folder, recursive=True) if path.parent != folder]
        hint = f"; there are some in {inside[0].parent}: give that folder" if inside else ""
        raise PairingError(f"{folder}: {_count(images)}; at least {LEAST} generated PNGs are needed{hint}")
    return images


def photographs(place: Path, split: str = "val") -> list[Path]:
    """The real photographs of a folder, in any depth, or of a split of a data root (which holds `images/`).

    Raises PairingError for fewer than two, DataError for a split that is not there or not whole, and ImageError as
    `_pictures`.
    """
    if not place.is_dir():
        raise PairingError(
            "no such folder", remedy=f"give {option('real')} photographs, or a data root with images/", source=place
        )
    if is_data_root(place):
        found = photographs_of(place, split)
    else:
        found = [path for path in _pictures(place, recursive=True) if path.name != SHEET]
    check_enough(found, place)
    return found


def check_enough(found: Sequence[Path], place: Path, what: str = "photographs") -> None:
    """Raises PairingError for files of `place` that are too few to compare."""
    if len(found) < LEAST:
        raise PairingError(f"{place}: {_count(found)}; at least {LEAST} {what} are needed")


def _pictures(folder: Path, recursive: bool) -> list[Path]:
    """A folder's pictures, sorted. Raises ImageError for links that lead nowhere and for pictures of formats that are
    not read: without them it would be another set."""
    found = walk(folder, recursive=recursive)
    return replace(found, others=[path for path in found.others if is_unread(path)]).check()


def photographs_of(root: Path, split: str) -> list[Path]:
    """All photographs of a split of a data root, sorted. Raises DataError, also where some of them are missing, but not
    where only those of other splits are."""
    listing = PairList(FolderSpec(root=root), NoCondition(), split)
    pairs = listing.pairs()
    if listing.absent is None:
        listing.problems.raise_if_any(root)
    elif listing.absent:
        raise DataError(
            f"{root}: photographs of the split '{split}' are not there: {listed(listing.absent)}",
            remedy="fetch them, and what links lead to, or take them out of the split",
        )
    return [pair.image for pair in pairs if isinstance(pair.image, Path)]


def by_name(found: Sequence[Path], place: Path) -> dict[str, Path]:
    """Photographs of `place`, a folder or a data root, by what samples of theirs are named after: `b-s2` for
    `b/s2.jpg`, or else a file's own name. A name that two of them have is none's."""
    folder = place / "images" if is_data_root(place) else place
    own = [composed(path.stem) for path in found]
    inside = [
        stem_of(path, folder) if path.is_relative_to(folder) else name for path, name in zip(found, own, strict=True)
    ]
    whole, count = set(inside), Counter(own)
    names: dict[str, set[Path]] = {}
    for name, path in zip([*own, *inside], [*found, *found], strict=True):
        if name in whole or count[name] == 1:
            names.setdefault(name, set()).add(path)
    return {name: paths.pop() for name, paths in names.items() if len(paths) == 1}


def is_data_root(place: Path) -> bool:
    """Whether a folder is laid out as training data: `images/`, and no pictures beside it."""
    return (place / "images").is_dir() and not list_images(place)


def conditions_by_stem(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """The condition files of a folder, in any depth, by stem: `b-s2` for `b/s2.png`, as their images are named.

    Raises PairingError, also for two of one stem; ImageError for links that lead nowhere.
    """
    if not folder.is_dir():
        raise PairingError(f"{folder}: no such folder; give the conditions that the images were made from") from None
    files: dict[str, Path] = {}
    for path in walk(folder, suffixes).check():
        stem = stem_of(path, folder)
        if stem in files:
            raise PairingError(f"{files[stem]} and {path} have the same stem; give a folder with one of them")
        files[stem] = path
    if not files:
        raise PairingError(f"{folder}: holds no conditions ({', '.join(sorted(suffixes))}); give a folder that does")
    return files


# What belongs together


def paired(images: Sequence[Path], conditions: Mapping[str, Path], place: Path) -> dict[str, list[Path]]:
    """The samples of each condition that has some, by its stem: `STEM.png`, `STEM_0.png`, `STEM-1.png` and so on.

    Of a condition in a subfolder the file's own name serves too, where no other has it.
    place: the conditions' folder, for errors. Raises PairingError that names the images without a condition.
    """
    groups: dict[str, list[Path]] = {}
    alone: list[Path] = []
    own = Counter(composed(path.stem) for path in conditions.values())
    names = {composed(path.stem): stem for stem, path in conditions.items() if own[composed(path.stem)] == 1}
    names |= {composed(stem): stem for stem in conditions}
    for path in images:
        name = _owner(path, names.keys())
        if name is None:
            alone.append(path)
        else:
            groups.setdefault(names[name], []).append(path)
    if alone:
        said = near_keys([path.stem for path in alone], names)
        named = [path.name + said[path.stem].removeprefix(path.stem) for path in alone]
        raise PairingError(
            f"{alone[0].parent}: {listed(named)}: {len(alone)} of {len(images)} images have no "
            f"condition in {place}, which for STEM_0.png is STEM with any suffix; give the folder that they were made "
            "from, or remove them"
        )
    return groups


def grouped(images: Sequence[Path], stems: Collection[str]) -> dict[str, list[Path]]:
    """Images by what they are samples of, as far as that can be told: `stems` of photographs they may be named after,
    else what their metadata says of their condition; else each is by itself. Raises PairingError as `paired` does."""
    known = set(stems)
    groups: dict[str, list[Path]] = {}
    for path in images:
        stem = _owner(path, known) or own_text(path).get("condition") or path.name
        groups.setdefault(stem, []).append(path)
    return groups


def _owner(path: Path, stems: Collection[str]) -> str | None:
    """The stem of the condition that an image is named after, if it is among `stems`."""
    whole = composed(path.stem)
    numbered = _NUMBERED.fullmatch(whole)
    shorter = numbered[1] if numbered and numbered[1] in stems else None
    if whole not in stems or shorter is None:
        return whole if whole in stems else shorter
    told = composed(Path(own_text(path).get("condition", "")).stem)
    if told in {whole, shorter}:
        return told
    raise PairingError(
        f"{path}: is it a sample of {shorter}, or of {whole}? There are conditions of both names; rename one, and "
        "the images with it"
    )


# Sizes


def sizes_of(images: Sequence[Path]) -> Sizes:
    """How many pictures have which (width, height), from their headers. Raises ImageError, which names the file."""
    return Counter(image_size(path) for path in images)


def check_alike(images: Sequence[Path], resize: int | None) -> None:
    """Raises PairingError where the short sides of generated images differ, unless `resize` makes them one.

    A model makes images of one short side, whatever their proportions. Where there are two, images of two kinds lie in
    one folder, such as small ones of a base beside its upsampler's, and a distance would be of neither.
    """
    if resize is not None:
        return
    first: dict[int, Path] = {}
    for path in images:
        first.setdefault(min(image_size(path)), path)
    if len(first) > 1:
        named = ", ".join(f"{path.name} with {side} px" for side, path in sorted(first.items())[:NAMED])
        raise PairingError(
            f"images of different sizes, by their short sides ({named}), which are results of different kinds",
            remedy=f"judge them in folders of their own, or bring all to one size with {option('resize')}",
            source=images[0].parent,
        )


def described(sizes: Sizes) -> str:
    """Sizes for a person, the most frequent first: "85 x 64 (33), …"."""
    named = [f"{width} x {height} ({count})" for (width, height), count in sizes.most_common(3)]
    return ", ".join(named) + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def _count(images: Sequence[object]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}"
