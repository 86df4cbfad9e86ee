"""Files of a preference study: the key, which stays with its author, and the votes that raters return."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from piti.core.errors import UserError
from piti.core.spec import Spec, SpecError

KEY_FORMAT = "piti study key 1"
VOTES_FORMAT = "piti votes 1"
KEY_SUFFIX = ".key.json"
_LARGEST = 64_000_000  # bytes; far more than any key or votes file has

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
StudyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class StudyError(UserError):
    """A study cannot be created, or its votes cannot be counted. The message names the files and the remedy."""


class PairKey(Spec):
    """Assignment of a pair's images to A and B."""

    id: Id
    name: str
    """The stem of its files."""
    a: Id
    b: Id
    sha256: tuple[Sum, Sum]
    """SHA-256 of the page's PNGs of A and of B."""


class Key(Spec):
    """The key of a page: which opaque ids are images of A, and which of B."""

    format: Literal["piti study key 1"] = KEY_FORMAT
    study: StudyId
    """Derived from all other fields except the folders and the seed, see `study_id`."""
    a: str
    b: str
    """The folders, as given."""
    seed: int
    question: str
    ties: bool
    """Whether raters may have no preference."""
    repeats: int = Field(ge=0)
    """Number of pairs that every rater sees twice."""
    pairs: tuple[PairKey, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _whole(self) -> Key:
        ids = [one for pair in self.pairs for one in (pair.id, pair.a, pair.b)]
        if len(set(ids)) < len(ids):
            raise ValueError("an id occurs twice; use the file as it was written")
        if self.study != study_id(self.question, self.ties, self.repeats, self.pairs):
            raise ValueError("the key was changed after it was written; use the original file")
        return self


class Vote(Spec):
    """One answer. chosen: the image's id, or None for no preference."""

    pair: Id
    left: Id
    right: Id
    chosen: Id | None
    repeat: bool
    """Whether this is the repetition of a pair, with its sides exchanged."""
    seconds: float = Field(ge=0, allow_inf_nan=False)

    @field_validator("chosen")
    @classmethod
    def _was_shown(cls, chosen: str | None, info: ValidationInfo) -> str | None:
        if chosen is not None and chosen not in (info.data.get("left"), info.data.get("right")):
            raise ValueError("is neither the left nor the right picture")
        return chosen


class Votes(Spec):
    """The votes file of a rater."""

    format: Literal["piti votes 1"]
    study: StudyId
    rater: StudyId
    """Random id of a page visit, which determines the order and sides."""
    name: str = Field(default="", max_length=200)
    started: str = Field(default="", max_length=40)
    finished: str = Field(default="", max_length=40)
    """Times of the first opening and of the last answer, ISO 8601, UTC."""
    votes: tuple[Vote, ...] = Field(min_length=1)

    @property
    def label(self) -> str:
        """The rater's name, printable, or else the first digits of the id."""
        name = "".join(letter if letter.isprintable() else "?" for letter in self.name).strip()
        return name or f"rater {self.rater[:6]}"


def study_id(question: str, ties: bool, repeats: int, pairs: Sequence[PairKey]) -> str:
    """16 digits of a hash over the study's content and the assignment to A and B."""
    seen = [question, ties, repeats, [pair.model_dump(mode="json") for pair in pairs]]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def read_study(files: Sequence[Path], key: Path | None = None) -> tuple[Key, dict[Path, Votes]]:
    """The key, and the votes by file, all checked against the key and each other.

    files: votes files, folders with .json files of votes, and optionally the key, which is otherwise searched beside
    the votes. Raises StudyError with all problems.
    """
    votes, keys = _read_all([*_listed(files), *([key] if key is not None else [])])
    if not votes:
        raise StudyError("there are no votes to count; give the votes-….json files that raters sent back")
    found = _the_key(votes, keys)
    problems = [f"{path}: {what}" for path, one in votes.items() for what in _faults(one, found)]
    problems += _twice(votes)
    if problems:
        raise StudyError("these votes cannot be counted:\n" + "\n".join(f"  {problem}" for problem in problems))
    return found, votes


def read_key(path: Path) -> Key:
    """Read a study's key. Raises StudyError, SpecError."""
    return Key.parse(_read_json(path), str(path))


def by_study(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Votes files by study; keys among them are ignored. Raises StudyError as `read_study`."""
    votes, _ = _read_all(_listed(files))
    found: dict[str, list[Path]] = {}
    for path, one in votes.items():
        found.setdefault(one.study, []).append(path)
    return found


def _listed(files: Sequence[Path]) -> list[Path]:
    """The files, and a study's files in folders. Raises StudyError for a folder without any."""
    found: list[Path] = []
    for path in files:
        inside = _inside(path) if path.is_dir() else [path]
        if not inside:
            raise StudyError(f"{path}: contains no votes-….json; give the files that raters sent back, or their folder")
        found += inside
    return found


def _inside(folder: Path) -> list[Path]:
    """A folder's files of a study, by name or by content, since votes may have been renamed."""
    named = {*folder.glob("votes-*.json"), *folder.glob(f"*{KEY_SUFFIX}")}
    return sorted(named | {path for path in folder.glob("*.json") if path not in named and _is_of_a_study(path)})


def _is_of_a_study(path: Path) -> bool:
    try:
        return bool(_read_json(path))
    except StudyError:
        return False


def _read_all(paths: Sequence[Path]) -> tuple[dict[Path, Votes], dict[Path, Key]]:
    """Votes and keys by file. Raises StudyError for all files that are neither."""
    votes: dict[Path, Votes] = {}
    keys: dict[Path, Key] = {}
    problems: list[str] = []
    for path in paths:
        try:
            values = _read_json(path)
            if values.get("format") == KEY_FORMAT:
                keys[path] = Key.parse(values, str(path))
            elif path in votes:
                problems.append(f"{path}: is given twice; give it once")
            else:
                votes[path] = Votes.parse(values, str(path))
        except (StudyError, SpecError) as error:
            problems.append(str(error))
    if problems:
        raise StudyError("these files cannot be read:\n" + "\n".join(f"  {problem}" for problem in problems))
    return votes, keys


def _read_json(path: Path) -> dict[str, Any]:
    """A key's or a votes file's values. Raises StudyError, naming the file."""
    try:
        if path.stat().st_size > _LARGEST:
            raise StudyError(
                f"{path}: {path.stat().st_size / 1e6:.0f} MB is too large for a votes file; give a votes-….json"
            )
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path}: is not JSON ({error}); ask the rater to save the votes again") from None
    if not isinstance(values, dict) or values.get("format") not in (KEY_FORMAT, VOTES_FORMAT):
        raise StudyError(
            f"{path}: is neither a votes file nor a study's key; give the votes-….json that the page saved"
        )
    return values


def _the_key(votes: dict[Path, Votes], keys: dict[Path, Key]) -> Key:
    """The one key of the study. Raises StudyError if there is none, or more than one."""
    studies = {one.study for one in votes.values()}
    if not keys:
        for folder in sorted({path.absolute().parent for path in votes}):
            keys |= {path: one for path, one in _keys_in(folder).items() if one.study in studies}
    by_study = {one.study: one for one in keys.values()}
    if len(by_study) > 1:
        raise StudyError(f"{' and '.join(map(str, keys))}: keys of different studies; count one study at a time")
    if not by_study:
        named = ", ".join(sorted(studies))
        raise StudyError(
            f"the key of study {named} is missing; give STUDY{KEY_SUFFIX}, which was written beside the page, "
            "among the files"
        )
    return next(iter(by_study.values()))


def _keys_in(folder: Path) -> dict[Path, Key]:
    """The keys in a folder that can be read."""
    found = {}
    for path in sorted(folder.glob(f"*{KEY_SUFFIX}")):
        try:
            found[path] = read_key(path)
        except (StudyError, SpecError):
            continue
    return found


def _faults(votes: Votes, key: Key) -> list[str]:
    """Reasons why a votes file cannot be counted with this key."""
    if votes.study != key.study:
        return [f"belongs to study {votes.study}, but the key to {key.study}; count it with its own key"]
    pairs = {pair.id: {pair.a, pair.b} for pair in key.pairs}
    first: dict[str, Vote] = {}
    repeated: set[str] = set()
    found = []
    for vote in votes.votes:
        earlier = first.get(vote.pair)
        if vote.pair not in pairs:
            found.append(f"the study has no pair {vote.pair}")
        elif {vote.left, vote.right} != pairs[vote.pair]:
            found.append(f"pair {vote.pair} does not consist of {vote.left} and {vote.right}")
        elif vote.chosen is None and not key.ties:
            found.append(f"pair {vote.pair} has no preference, which the study does not allow")
        elif (vote.pair in repeated) if vote.repeat else (earlier is not None):
            found.append(f"pair {vote.pair} is answered twice")
        elif vote.repeat and (earlier is None or earlier.left != vote.right):
            found.append(f"pair {vote.pair} is repeated without exchanged sides")
        repeated |= {vote.pair} if vote.repeat else set()
        first |= {} if vote.repeat else {vote.pair: vote}
    remedy = "; the file was changed, ask the rater to save the votes again"
    return [what + remedy for what in found[:3]]


def _twice(votes: dict[Path, Votes]) -> list[str]:
    """Messages for several files of one rater, which would count twice."""
    by_rater: dict[str, list[Path]] = {}
    for path, one in votes.items():
        by_rater.setdefault(one.rater, []).append(path)
    return [
        f"{' and '.join(map(str, paths))}: are of one rater ({votes[paths[0]].label}); keep the one with "
        f"the most answers ({', '.join(str(len(votes[path].votes)) for path in paths)})"
        for paths in by_rater.values()
        if len(paths) > 1
    ]
