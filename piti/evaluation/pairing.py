"""Files of an evaluation, and which belong together: generated images, their conditions, real photographs."""

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
"""Number of files that an error names."""
LEAST = 2
"""Minimum number of images per side."""
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERED = re.compile(r"(.+)[-_]\d+")
Sizes = Counter[tuple[int, int]]


class PairingError(UserError):
    """Files are missing, of the wrong kind, or do not belong together. The message names them."""


def listed(paths: Sequence[Path | str]) -> str:
    """The first few names, and the number of others."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(str(path) for path in paths[:NAMED]) + more


# Listing


def generated_images(folder: Path) -> list[Path]:
    """The PNGs of a folder, sorted; its contact sheet, hidden files and subfolders are ignored.

    Raises PairingError for fewer than two, and for images in other formats, which are mostly lossy, so that their
    artefacts would count as differences from the photographs. Raises ImageError as `_pictures`.
    """
    if not folder.is_dir():
        raise PairingError(f"{folder}: no such folder; give the folder of the generated images")
    found = _pictures(folder, recursive=False)
    images = [path for path in found if path.name != SHEET]
    odd = [path.name for path in images if path.suffix.lower() != ".png" or not _is_png(path)]
    if odd:
        raise PairingError(
            f"{folder}: {listed(odd)}: not PNG. Generated images are evaluated unchanged, and JPEG or WebP alters them "
            "(renaming a file does not convert it): write PNG, as piti translate does; do not convert lossy files"
        )
    if len(images) < LEAST:
        inside = [path for path in list_images(folder, recursive=True) if path.parent != folder]
        hint = f"; {inside[0].parent} contains some: give that folder" if inside else ""
        raise PairingError(f"{folder}: {_count(images)}; at least {LEAST} generated PNGs are needed{hint}")
    return images


def photographs(place: Path, split: str = "val") -> list[Path]:
    """The real photographs of a folder, recursively, or of a split of a data root (which contains `images/`).

    Raises PairingError for fewer than two, DataError for a missing or incomplete split, and ImageError as `_pictures`.
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
    """Raises PairingError if `place` has too few files to compare."""
    if len(found) < LEAST:
        raise PairingError(f"{place}: {_count(found)}; at least {LEAST} {what} are needed")


def _pictures(folder: Path, recursive: bool) -> list[Path]:
    """A folder's images, sorted. Raises ImageError for broken links and unsupported formats, since skipping them would
    change the set."""
    found = walk(folder, recursive=recursive)
    return replace(found, others=[path for path in found.others if is_unread(path)]).check()


def photographs_of(root: Path, split: str) -> list[Path]:
    """All photographs of a split of a data root, sorted. Raises DataError, also if some of them are missing, but not
    for missing ones of other splits."""
    listing = PairList(FolderSpec(root=root), NoCondition(), split)
    pairs = listing.pairs()
    if listing.absent is None:
        listing.problems.raise_if_any(root)
    elif listing.absent:
        raise DataError(
            f"{root}: photographs of the split '{split}' are missing: {listed(listing.absent)}",
            remedy="add them and the targets of links, or remove them from the split",
        )
    return [pair.image for pair in pairs if isinstance(pair.image, Path)]


def by_name(found: Sequence[Path], place: Path) -> dict[str, Path]:
    """Photographs of `place`, a folder or a data root, by the stem of their samples: `b-s2` for `b/s2.jpg`, or else the
    file's own name. Ambiguous names are omitted."""
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
    """Whether a folder has the layout of training data: `images/`, and no images beside it."""
    return (place / "images").is_dir() and not list_images(place)


def conditions_by_stem(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """The condition files of a folder, recursively, by the stem of their images: `b-s2` for `b/s2.png`. Raises
    PairingError, also for two with the same stem; ImageError for broken links.
    """
    if not folder.is_dir():
        raise PairingError(f"{folder}: no such folder; give the folder of the images' conditions") from None
    files: dict[str, Path] = {}
    for path in walk(folder, suffixes).check():
        stem = stem_of(path, folder)
        if stem in files:
            raise PairingError(f"{files[stem]} and {path} have the same stem; give a folder with only one of them")
        files[stem] = path
    if not files:
        raise PairingError(f"{folder}: contains no conditions ({', '.join(sorted(suffixes))}); give a folder that does")
    return files


# Pairing


def paired(images: Sequence[Path], conditions: Mapping[str, Path], place: Path) -> dict[str, list[Path]]:
    """The samples of each condition with samples, by its stem: `STEM.png`, `STEM_0.png`, `STEM-1.png` and so on.

    For a condition in a subfolder, its file name also matches if it is unique. place: the conditions' folder, for
    errors. Raises PairingError that names the images without a condition.
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
            f"{alone[0].parent}: {listed(named)}: {len(alone)} of {len(images)} images have no condition in {place} "
            "(for STEM_0.png, STEM with any suffix); give the folder of their conditions, or remove them"
        )
    return groups


def grouped(images: Sequence[Path], stems: Collection[str]) -> dict[str, list[Path]]:
    """Images by condition, if known: by the `stems` of photographs in their names, else by the condition in their
    metadata, else each on its own. Raises PairingError as `paired`."""
    known = set(stems)
    groups: dict[str, list[Path]] = {}
    for path in images:
        stem = _owner(path, known) or own_text(path).get("condition") or path.name
        groups.setdefault(stem, []).append(path)
    return groups


def _owner(path: Path, stems: Collection[str]) -> str | None:
    """The stem of the condition in an image's name, if it is among `stems`."""
    whole = composed(path.stem)
    numbered = _NUMBERED.fullmatch(whole)
    shorter = numbered[1] if numbered and numbered[1] in stems else None
    if whole not in stems or shorter is None:
        return whole if whole in stems else shorter
    told = composed(Path(own_text(path).get("condition", "")).stem)
    if told in {whole, shorter}:
        return told
    raise PairingError(
        f"{path}: could be a sample of {shorter} or of {whole}, which are both conditions; rename one of them and its "
        "images"
    )


# Sizes


def sizes_of(images: Sequence[Path]) -> Sizes:
    """Number of images by (width, height), from their headers. Raises ImageError, which names the file."""
    return Counter(image_size(path) for path in images)


def check_alike(images: Sequence[Path], resize: int | None) -> None:
    """Raises PairingError if the short sides of generated images differ, unless they are resized.

    A model generates images with one short side at any aspect ratio. Several indicate a mixed folder, for example small
    images of a base beside its upsampler's, for which distances are meaningless.
    """
    if resize is not None:
        return
    first: dict[int, Path] = {}
    for path in images:
        first.setdefault(min(image_size(path)), path)
    if len(first) > 1:
        named = ", ".join(f"{path.name} with {side} px" for side, path in sorted(first.items())[:NAMED])
        raise PairingError(
            f"images with different short sides ({named}), which are different kinds of results",
            remedy=f"evaluate them in separate folders, or resize all with {option('resize')}",
            source=images[0].parent,
        )


def described(sizes: Sizes) -> str:
    """Sizes as text, the most frequent first: "85 x 64 (33), …"."""
    named = [f"{width} x {height} ({count})" for (width, height), count in sizes.most_common(3)]
    return ", ".join(named) + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def _count(images: Sequence[object]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}"
