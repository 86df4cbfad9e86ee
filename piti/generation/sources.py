"""Inputs of a translation: files, folders, archives, packed shards, texts, and conditions stored in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from piti.conditions import Condition, SeveralCondition, TextCondition
from piti.core.errors import UserError, option
from piti.core.files import check_place
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError
from piti.core.walk import composed, flat, stem_of
from piti.data.archives import Archived, list_archived, list_conditions
from piti.data.shards.index import Manifest, read_manifest
from piti.data.shards.sources import MANIFEST
from piti.generation.generate import stem_of_text
from piti.generation.inputs import PartFiles, files_inside, matched_parts
from piti.generation.options import is_one_file
from piti.generation.recreate import Record
from piti.pipelines.pipeline import PITIPipeline


class TranslationError(UserError):
    """Inputs of a translation cannot be used. The message lists all of them."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """The condition stored in an image."""

    name: str
    raw: Tensor
    file: str

    def __str__(self) -> str:
        return f"the condition in {self.file}"


Item = Path | Archived | str | PartFiles | Recalled


@dataclass(frozen=True)
class TranslationFiles:
    """Inputs and output of a translation."""

    inputs: Sequence[Path]
    """Files, folders (searched recursively), tar archives, and packed shards, given by their manifest or its folder."""
    out: Path
    """A folder, which must not contain inputs; or a .png file, for one image."""
    texts: Sequence[str] = ()
    """Texts, for a prior; images are named after their words."""
    parts: Mapping[str, Path] = field(default_factory=dict)
    """For a condition of several parts: a file or folder for each given part, see `matched_parts`."""
    like: Record | None = None
    """The image to recreate; without inputs, texts and parts its stored condition is translated."""
    overwrite: bool = False
    """Replace existing images."""

    @property
    def own(self) -> bool:
        """Whether the only input is the condition of the image to recreate."""
        return self.like is not None and not (self.inputs or self.texts or self.parts)

    def check_out(self) -> None:
        """Raises OutputError if the output cannot be written, TranslationError if results would be among the inputs."""
        check_place(self.out.parent if is_one_file(self.out) else self.out)
        if self.out.resolve() in {path.resolve() for path in (*self.inputs, *self.parts.values())}:
            raise TranslationError(
                "the results would be among the inputs", remedy=f"give another {option('out')}", source=self.out
            )


def sources_of(pipeline: PITIPipeline, files: TranslationFiles) -> tuple[dict[str, Item], list[str]]:
    """Inputs to translate by the stem of their images, and notes.

    Raises TranslationError, InputError, DataError or ImageError for inputs, RemakeError for an image without a
    condition.
    """
    condition, like = pipeline.condition, files.like
    if files.texts and not isinstance(condition, TextCondition):
        kind = " or a ".join(condition.parts) if isinstance(condition, SeveralCondition) else condition.kind
        raise TranslationError(
            f"this model reads a {kind}", remedy=f"give a file, or a prior with {option('model')}", option="text"
        )
    if like is not None and files.own:
        return {like.stem: Recalled(like.said.condition, like.raw(pipeline), like.file)}, []
    if files.parts or isinstance(condition, SeveralCondition):
        matched, notes = matched_parts(condition, files.parts, files.inputs, files.out)
        return dict(matched), notes
    texts = list(dict.fromkeys(" ".join(text.split()) for text in files.texts))
    return _sources(files, texts, condition), _cut(condition, texts)


def _sources(files: TranslationFiles, texts: Sequence[str], condition: Condition) -> dict[str, Item]:
    """Files, files inside tar archives and packed shards, and texts by the stem of their images."""
    named: list[tuple[str, Item]] = []
    archived: list[Archived] = []
    suffixes = condition.suffixes
    for path in files.inputs:
        packed = _packed(path)
        if packed is not None:
            archived += _packed_conditions(*packed, path, condition)
        elif path.is_dir():
            inside = files_inside(path, suffixes, files.out)
            if not inside:
                what = "images" if suffixes == IMAGE_SUFFIXES else f"{', '.join(sorted(suffixes))} files"
                raise TranslationError(f"{path}: the folder contains no {what}; give one that does, or files")
            named += [(stem_of(file, path), file) for file in inside]
        elif path.suffix.lower() == ".tar":
            archived += _archived(path, suffixes)
        else:
            named.append((composed(path.stem), path))
    by_stem: dict[str, Item] = {}
    named += [(flat(file.key), file) for file in archived]
    for stem, source in [*named, *((stem_of_text(text), text) for text in texts)]:
        other = by_stem.setdefault(stem, source)
        if other != source:
            raise TranslationError(
                f"{other} and {source} would write the same files",
                remedy=f"translate them to different {option('out')}",
            )
    if not by_stem:
        raise TranslationError("nothing to translate", remedy=f"give files, folders, or {option('text')}")
    return by_stem


def _packed(path: Path) -> tuple[Manifest, list[Path]] | None:
    """The manifest and shards, given a manifest, its folder or a shard beside it. Raises DataError."""
    place = path / MANIFEST if path.is_dir() else path.with_name(MANIFEST)
    tar = path.suffix.lower() == ".tar" and not path.is_dir()
    if not (tar or path.is_dir() or path == place) or not place.is_file():
        return None
    manifest = read_manifest(str(place))
    names = [entry.name for entry in manifest.entries]
    if tar:
        return (manifest, [path]) if path.name in names else None
    return manifest, [place.with_name(name) for name in names]


def _packed_conditions(manifest: Manifest, shards: list[Path], given: Path, condition: Condition) -> list[Archived]:
    """The conditions of packed shards, according to their manifest. given: the path given by the user.

    Of several kinds of conditions, the one in a folder with the name of the model's kind is used. Raises
    TranslationError.
    """
    suffixes, kinds = condition.suffixes, manifest.conditions
    if len(kinds) > 1:
        usual = tuple(filter(None, (condition.kind, condition.usual_folder)))
        kinds = {folder: extension for folder, extension in kinds.items() if folder.startswith(usual)} or kinds
    extensions: list[str | None] = list(kinds.values())
    if not kinds and isinstance(condition, TextCondition):
        extensions = [None]  # captions, KEY.txt, not photographs
    if len(extensions) != 1:
        what = f"which of {', '.join(kinds)} is the model's {condition.kind} does not follow from"
        what = what if kinds else "only photographs were packed, no conditions, according to"
        raise TranslationError(f"{given}: {what} the shards' {MANIFEST}; unpack the conditions and give their folder")
    try:
        inside = [file for shard in shards for file in list_archived(shard, suffixes, extensions[0])]
    except ImageError as error:
        raise TranslationError.like(error) from None
    if not inside:
        named = [f"KEY.{extensions[0]}{suffix}" if extensions[0] else f"KEY{suffix}" for suffix in sorted(suffixes)]
        raise TranslationError(f"{given}: the shards contain no {condition.kind} ({', '.join(named)}); give others")
    return inside


def _archived(archive: Path, suffixes: Set[str]) -> list[Archived]:
    """The conditions of a tar archive. Raises TranslationError."""
    try:
        inside = list_conditions(archive, suffixes)
    except ImageError as error:
        raise TranslationError.like(error) from None
    if not inside:
        raise TranslationError(f"{archive}: contains no {', '.join(sorted(suffixes))} files; give one that does")
    return inside


def _cut(condition: Condition, texts: Sequence[str]) -> list[str]:
    """Notes on truncated texts."""
    found = [condition.cut(text) for text in texts] if isinstance(condition, TextCondition) else []
    return [f"{option('text')}: {note}" for note in found if note]


def as_taken(readers: Mapping[Item, Condition], source: Item) -> Any:
    """A condition as an input of a pipeline. Raises ConditionError, ImageError."""
    if isinstance(source, Recalled):
        return source.raw
    return readers[source].take(source) if source in readers else source
