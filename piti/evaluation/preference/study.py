"""Create a preference study: a page that shows pairs of images blind, and the key that assigns them to A and B."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from piti.conditions import Condition
from piti.core.errors import Message, option
from piti.core.files import check_file, flush, whole_file
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import Box, crop_resize, read_rgb
from piti.core.progress import OnProgress
from piti.core.seeding import derive_seed
from piti.core.sheets import grid
from piti.core.walk import list_images
from piti.evaluation.pairing import LEAST, conditions_by_stem, listed, paired
from piti.evaluation.preference.votes import KEY_SUFFIX, Key, PairKey, StudyError, read_key, study_id
from piti.generation.options import SHEET

QUESTION = "Which picture looks more like a photograph?"
LARGEST_MB = 150
"""Largest page in MB; browsers, especially on phones, would not open larger ones."""
LARGE_MB = 20
"""Page size in MB above which a note is given, since mail servers would reject it."""
_CONDITION_SIDE = 512
_MARK = '<meta name="generator" content="piti study">'
_PLACE = "STUDY_DATA"


@dataclass(frozen=True)
class Study:
    """The files of a study."""

    page: Path
    key: Path
    id: str
    pairs: int
    available: int
    """Number of pairs in the folders."""
    repeats: int
    """Number of pairs that every rater sees twice."""
    bytes: int
    """Size of the page."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = "" if self.pairs == self.available else f" of {self.available}"
        return (
            f"{self.page}: {self.pairs}{of} pairs, {self.repeats} of them shown twice, {self.bytes / 1e6:.1f} MB; "
            f"send it to the raters and keep {self.key.name} to count their votes"
        )


class _Pair(NamedTuple):
    """The files of a pair by their stem."""

    stem: str
    a: Path
    b: Path
    condition: Path | None


class _Shown(NamedTuple):
    """A pair on the page, as the bytes of PNG files."""

    stem: str
    a: bytes
    b: bytes
    condition: bytes | None


@dataclass(frozen=True)
class Compared:
    """Two folders of images that are paired by their stems; `sheet.png` is ignored."""

    a: Path
    b: Path
    conditions: Path | None = None
    """A folder with their conditions, STEM for STEM_0.png, shown above each pair."""
    condition: Condition | None = None
    """The kind of these files, for their preview; without it they are shown as images."""


@dataclass(frozen=True)
class StudyOptions:
    """The question, and the choice of pairs."""

    seed: int = 0
    """Seed of the ids, and of the pairs chosen by a limit."""
    question: str = QUESTION
    limit: int | None = None
    """Largest number of pairs, drawn by the seed."""
    ties: bool = False
    """Allow raters to state no preference."""
    repeats: int | None = None
    """Number of pairs shown again with sides exchanged; a tenth by default."""

    def __post_init__(self) -> None:
        """Raises StudyError."""
        if not self.question.strip() or len(self.question) > 300:
            raise StudyError(f"{len(self.question)} characters", remedy="ask in 1 to 300", option="question")
        if self.limit is not None and self.limit < LEAST:
            raise StudyError(f"a study has at least {LEAST} pairs", option="limit", value=self.limit)


_USUAL = StudyOptions()


def write_study(
    compared: Compared,
    out: Path,
    options: StudyOptions = _USUAL,
    *,
    overwrite: bool = False,
    on_step: OnProgress | None = None,
) -> Study:
    """Write `out`, a page that compares the images of two folders, and its key beside it (`OUT.key.json`).

    A pair's sizes may differ if its proportions do not: the page shows both at one size, enlarged by whole numbers
    without smoothing. on_step: called as (pairs read, total pairs). The page contains the images and loads nothing
    else; only the key says which image is A's. The same images, seed and options give the same files. Raises
    StudyError, ImageError or OutputError, without writing anything.
    """
    out, key_file = _places(Path(out), overwrite)
    pairs = _paired(compared)
    chosen = _limited(pairs, options)
    options = replace(options, repeats=_repeats(len(chosen), options.repeats))
    shown = _read(chosen, compared.condition, on_step)
    key = _key(shown, compared, options)
    page = _page(shown, key, options.seed)
    _check_size(len(page), len(shown))
    notes = [*_notes(shown, chosen, len(page), compared.condition), *_replaced(key_file, key)]
    _write(out, page, key_file, key, overwrite)
    return Study(out, key_file, key.study, len(shown), len(pairs), key.repeats, len(page), tuple(notes))


def _write(out: Path, page: bytes, key_file: Path, key: Key, overwrite: bool) -> None:
    """Write both files or neither."""
    with whole_file(out, overwrite) as page_part, whole_file(key_file, overwrite) as key_part:
        page_part.write_bytes(page)
        key_part.write_text(json.dumps(key.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        flush(page_part)  # so that a full disk is detected before the first is replaced
        flush(key_part)


def _places(out: Path, overwrite: bool) -> tuple[Path, Path]:
    """Paths of the page and its key. Raises StudyError, OutputError."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise StudyError(f"{out}: a study is an HTML page; use a name that ends in .html")
    key_file = out.with_name(out.stem + KEY_SUFFIX)
    for path in (out, key_file):
        check_file(path, overwrite)
    if out.exists() and _MARK.encode() not in out.read_bytes()[:2000]:
        raise StudyError("exists and is not a study", remedy=f"give another {option('out')}", source=out)
    if key_file.exists():
        read_key(key_file)
    return out, key_file


def _replaced(key_file: Path, key: Key) -> list[str]:
    """A note on an existing study, if it is a different one."""
    if not key_file.exists() or read_key(key_file).study == key.study:
        return []
    return [f"{key_file} was the key of another study, whose votes cannot be counted without a copy of it"]


# Pairs


def _paired(compared: Compared) -> list[_Pair]:
    """The pairs by their stems, sorted. Raises StudyError with the files without a partner."""
    a, b, conditions, condition = compared.a, compared.b, compared.conditions, compared.condition
    if a.resolve() == b.resolve():
        raise StudyError(f"{a} and {b} are the same folder; give two to compare")
    ours, theirs = _by_stem(a), _by_stem(b)
    alone = sorted((ours | theirs)[stem] for stem in ours.keys() ^ theirs.keys())
    if alone:
        raise StudyError(
            f"{a}, {b}: {len(alone)} images are in only one of the folders: {listed(alone)}",
            remedy=(
                "give folders with the same file names, generated from the same conditions with the same "
                f"{option('num')}"
            ),
        )
    if len(ours) < LEAST:
        raise StudyError(f"{a}, {b}: {len(ours)} pairs are too few; give at least {LEAST}")
    given: dict[Path, Path] = {}
    if conditions is not None:
        files = conditions_by_stem(conditions, condition.suffixes if condition else IMAGE_SUFFIXES)
        groups = paired(list(ours.values()), files, conditions)
        given = {image: files[stem] for stem, images in groups.items() for image in images}
    return [_Pair(stem, ours[stem], theirs[stem], given.get(ours[stem])) for stem in sorted(ours)]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images by their stems, without the contact sheet."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.name == SHEET:
            continue
        other = found.setdefault(path.stem, path)
        if other != path:
            raise StudyError(f"{other} and {path} have the same stem; keep one of them")
    return found


def _limited(pairs: Sequence[_Pair], options: StudyOptions) -> list[_Pair]:
    """At most `options.limit` pairs, drawn without replacement, in their order."""
    limit = options.limit
    if limit is None or limit >= len(pairs):
        return list(pairs)
    picked = random.Random(derive_seed(options.seed, "study limit")).sample(range(len(pairs)), limit)
    return [pairs[index] for index in sorted(picked)]


def _repeats(pairs: int, repeats: int | None) -> int:
    """Number of repeated pairs: by default a tenth, from 2 to 10; none for fewer than 4 pairs."""
    if repeats is None:
        return 0 if pairs < 4 else min(max(round(pairs / 10), 2), 10)
    most = math.ceil(pairs / 2)
    if not 0 <= repeats <= most:
        raise StudyError(f"of {pairs} pairs, 0 to {most} can be repeated", option="repeats", value=repeats)
    return repeats


# Pictures


def _read(pairs: Sequence[_Pair], condition: Condition | None, on_step: OnProgress | None) -> list[_Shown]:
    """Every image as a PNG without metadata. Raises StudyError, also if the page would be too large."""
    shown: list[_Shown] = []
    total = 0
    for pair in pairs:
        one, other = read_rgb(pair.a), read_rgb(pair.b)
        if abs(one.width * other.height - other.width * one.height) > max(*one.size, *other.size):
            raise StudyError(
                f"{pair.a} is {one.width} x {one.height} and {pair.b} {other.width} x {other.height}: they cannot be "
                "displayed at one size; generate both with the same aspect ratio"
            )
        size = max(one.size, other.size)
        drawn = None if pair.condition is None else _png(_drawn(pair.condition, condition, size))
        shown.append(_Shown(pair.stem, _png(one), _png(other), drawn))
        total += sum(len(png) * 4 // 3 for png in shown[-1][1:] if png is not None)
        _check_size(total * len(pairs) // len(shown) if total > LARGEST_MB * 1e6 else 0, len(pairs))
        if on_step is not None:
            on_step(len(shown), len(pairs))
    if all(one.a == one.b for one in shown):
        raise StudyError("both folders contain identical images; give two different ones")
    return shown


def _drawn(path: Path, condition: Condition | None, size: tuple[int, int]) -> Image.Image:
    """A condition's preview: its centre with the aspect ratio of `size` (width, height)."""
    if condition is None:
        image = read_rgb(path)
        return crop_resize(image, *_framed(image.size, size))
    raw = condition.load(path)
    if condition.spatial:
        box, (width, height) = _framed((raw.shape[-1], raw.shape[-2]), size)
        raw = condition.crop_resize(raw, box, (height, width))
    return grid([condition.previews(raw)], gap=0)


def _framed(given: tuple[int, int], size: tuple[int, int]) -> tuple[Box, tuple[int, int]]:
    """The largest centred box with the aspect ratio of `size`, and the size at which it is displayed."""
    width, height = given
    scale = min(width / size[0], height / size[1])
    box_width, box_height = min(width, round(size[0] * scale)), min(height, round(size[1] * scale))
    box = Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)
    shrink = min(1.0, _CONDITION_SIDE / max(box_width, box_height))
    return box, (max(1, round(box_width * shrink)), max(1, round(box_height * shrink)))


def _png(image: Image.Image) -> bytes:
    """A PNG of the pixels, without metadata that would reveal its origin."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(file, format="PNG", optimize=True)
    return file.getvalue()


# Page and key


def _key(shown: Sequence[_Shown], compared: Compared, options: StudyOptions) -> Key:
    """The key, with opaque ids that are derived from the seed and the images."""
    sums = [(hashlib.sha256(one.a).hexdigest(), hashlib.sha256(one.b).hexdigest()) for one in shown]
    ids = _ids(3 * len(shown), derive_seed(options.seed, "study ids", *(word for pair in sums for word in pair)))
    pairs = tuple(
        PairKey(id=ids[3 * k], name=one.stem, a=ids[3 * k + 1], b=ids[3 * k + 2], sha256=sums[k])
        for k, one in enumerate(shown)
    )
    question, ties, repeats = options.question, options.ties, options.repeats or 0
    study, a, b = study_id(question, ties, repeats, pairs), str(compared.a), str(compared.b)
    return Key(study=study, a=a, b=b, seed=options.seed, question=question, ties=ties, repeats=repeats, pairs=pairs)


def _ids(count: int, seed: int) -> list[str]:
    """Distinct ids of 12 digits."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{draw.getrandbits(48):012x}"] = None
    return list(found)


def _page(shown: Sequence[_Shown], key: Key, seed: int) -> bytes:
    """The page: its template with the pairs, in random order and on random sides, which are shuffled again for each
    rater."""
    draw = random.Random(derive_seed(seed, "study page", key.study))
    pairs = []
    for one, ids in zip(shown, key.pairs, strict=True):
        images = [{"id": ids.a, "src": _address(one.a)}, {"id": ids.b, "src": _address(one.b)}]
        draw.shuffle(images)
        pairs.append({"id": ids.id, "images": images, "condition": _address(one.condition) if one.condition else None})
    draw.shuffle(pairs)
    data: Mapping[str, object] = {
        "id": key.study,
        "question": key.question,
        "ties": key.ties,
        "repeats": key.repeats,
        "pairs": pairs,
    }
    template = resources.files("piti.evaluation.preference").joinpath("study.html").read_text(encoding="utf-8")
    return template.replace(_PLACE, json.dumps(data).replace("<", "\\u003c")).encode()


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _check_size(size: int, pairs: int) -> None:
    """Raises StudyError if the page is too large for browsers. size: in bytes."""
    if size > LARGEST_MB * 1e6:
        fit = max(2, int(pairs * LARGEST_MB * 0.9e6 / size))
        raise StudyError(
            f"the page of {pairs} pairs would have {size / 1e6:.0f} MB, but at most {LARGEST_MB} MB is allowed",
            remedy=f"use fewer pairs ({option('limit')} {fit}), or smaller images",
        )


def _notes(shown: Sequence[_Shown], pairs: Sequence[_Pair], size: int, condition: Condition | None) -> list[str]:
    """Notes on the study for the user."""
    found = []
    same = [one.stem for one in shown if one.a == one.b]
    if same:
        found.append(f"{len(same)} pairs have two identical images: {listed(same)}")
    if size > LARGE_MB * 1e6:
        found.append(
            f"the page has {size / 1e6:.0f} MB, which mail servers may reject; share it as a link, or "
            f"{option('limit')} it"
        )
    named = {pair.condition for pair in pairs if pair.condition is not None}
    if condition is None and any(_looks_like_labels(path) for path in sorted(named)[:5]):
        found.append(
            "the conditions are nearly black, like masks of class ids; give their kind of condition for colours"
        )
    return [*map(Message, found)]


def _looks_like_labels(path: Path) -> bool:
    return int(np.asarray(read_rgb(path)).max()) < 64
