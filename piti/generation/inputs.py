"""Files of a condition's parts, as given by `--given PART=FILE`, matched by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from piti.conditions import Condition, SeveralCondition
from piti.core.errors import UserError, option
from piti.core.spec import choices
from piti.core.walk import stem_of, walk
from piti.data.shards.sources import MANIFEST

_NAMED = 3  # number of files that a note names


class InputError(UserError):
    """Files or folders of `--given` cannot be used. The message names the part and the file or folder."""


@dataclass(frozen=True)
class PartFiles(Mapping[str, Path]):
    """The files of the given parts of one condition, by name."""

    files: tuple[tuple[str, Path], ...]

    def __getitem__(self, part: str) -> Path:
        return dict(self.files)[part]

    def __iter__(self) -> Iterator[str]:
        return (part for part, _ in self.files)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """Each part with its file name, without the folder."""
        return ", ".join(f"{part}={path.name}" for part, path in self.files)

    def __str__(self) -> str:
        return ", ".join(f"{part}={path}" for part, path in self.files)


def parsed_given(values: Sequence[str]) -> dict[str, Path]:
    """PART=PATH texts by part. Raises InputError."""
    given: dict[str, Path] = {}
    for value in values:
        part, equals, path = value.partition("=")
        if not (part and equals and path):
            raise InputError("expected PART=FILE or PART=FOLDER, such as mask=street.png", option="given", value=value)
        if part in given:
            raise InputError(
                f"'{part}' is already given as {given[part]}",
                remedy="give each part once, a file or a folder",
                option="given",
                value=value,
            )
        given[part] = Path(path)
    return given


def files_inside(folder: Path, suffixes: Set[str], out: Path | None) -> list[Path]:
    """The conditions of a folder, recursively, without results of earlier translations in it. Raises ImageError."""
    inside, results = walk(folder, suffixes).check(), out and out.resolve()
    if results is None or folder.resolve() not in results.parents:
        return inside
    return [path for path in inside if results not in path.resolve().parents]


def matched_parts(
    condition: Condition, given: Mapping[str, Path], inputs: Sequence[Path] = (), out: Path | None = None
) -> tuple[dict[str, PartFiles], list[str]]:
    """Conditions to translate, by the stem of their images, and notes.

    given: a file for each part, for one image named after the first; or a folder for each, whose files are matched by
    stem, with missing files as absent parts. inputs: inputs without a part. out: the output, whose files are not
    inputs. Raises InputError if they do not match the condition.
    """
    if not isinstance(condition, SeveralCondition):
        raise InputError(
            f"this model reads one {condition.kind}, without parts",
            remedy=f"give files or folders without {option('given')}",
            option="given",
            value=next(iter(given)),
        )
    _check_parts(condition, given, inputs)
    ordered = {part: given[part] for part in condition.parts if part in given}
    folders = [part for part, path in ordered.items() if path.is_dir()]
    if not folders:
        files = PartFiles(tuple(ordered.items()))
        return {next(iter(files.values())).stem: files}, []
    for part, path in ordered.items():
        if part not in folders:
            folder = f"{folders[0]}={ordered[folders[0]]}"
            raise InputError(
                f"{option('given')} {part}={path}: is not a folder, but {folder} is",
                remedy="give only files, or only folders",
            )
    return _of_folders(condition, ordered, out)


def _check_parts(condition: SeveralCondition, given: Mapping[str, Path], inputs: Sequence[Path]) -> None:
    """Raises InputError for shards, for files of no named part, and for unknown parts."""
    first = next(iter(condition.parts))
    for path in (*inputs, *given.values()):
        if path.suffix.lower() == ".tar" or path.name == MANIFEST or (path / MANIFEST).is_file():
            raise InputError(
                "a model of several conditions does not translate shards",
                remedy=(
                    f"unpack the conditions into a folder for each part and name them: {option('given')} {first}=FOLDER"
                ),
                source=path,
            )
    if inputs or not given:
        what = f"{inputs[0]}: the part is not named" if inputs else "nothing to translate"
        alone = "all together" if condition.together else "each alone or together"
        raise InputError(
            f"{what}; this model reads {', '.join(condition.parts)}, {alone}",
            remedy=f"name them: {option('given')} {first}=FILE_OR_FOLDER",
        )
    for part in given:
        if part not in condition.parts:
            raise InputError(
                f"{option('given')} {part}={given[part]}: unknown part", remedy=choices(part, condition.parts)
            )


def _of_folders(
    condition: SeveralCondition, folders: Mapping[str, Path], out: Path | None
) -> tuple[dict[str, PartFiles], list[str]]:
    """The files of a folder for each part, matched by stem, and notes on missing parts."""
    found = {part: _by_stem(part, folder, condition.parts[part], out) for part, folder in folders.items()}
    stems = sorted({stem for files in found.values() for stem in files})
    notes = []
    for part, files in found.items():
        lacking = [stem for stem in stems if stem not in files]
        if lacking:
            named = ", ".join(lacking[:_NAMED]) + (", …" if len(lacking) > _NAMED else "")
            notes.append(
                f"{option('given')}: {len(lacking)} of {len(stems)} have no {part} ({named}), only the other parts"
            )
    matched = {
        stem: PartFiles(tuple((part, files[stem]) for part, files in found.items() if stem in files)) for stem in stems
    }
    return matched, notes


def _by_stem(part: str, folder: Path, condition: Condition, out: Path | None) -> dict[str, Path]:
    """A folder's files of a part. Raises InputError if there are none, or two with the same stem."""
    files: dict[str, Path] = {}
    for path in files_inside(folder, condition.suffixes, out):
        stem = stem_of(path, folder)
        if stem in files:
            raise InputError(
                f"{option('given')} {part}={folder}: {files[stem]} and {path.name} have the same stem",
                remedy="keep one of them",
            )
        files[stem] = path
    if not files:
        known = ", ".join(sorted(condition.suffixes))
        raise InputError(
            f"{option('given')} {part}={folder}: the folder contains no {part} ({known})", remedy="give one that does"
        )
    return files
