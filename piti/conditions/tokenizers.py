"""Tokenizers: text to ids. The bytes of the text, GPT-2's byte pairs, as used by GLIDE, or the transformers tokenizer
of a prior of another family."""

from __future__ import annotations

import gzip
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from piti.conditions.base import ConditionError
from piti.core.errors import first_line, option
from piti.core.spec import choices

GLIDE_VOCABULARY = 50257
"""Ids of GPT-2's and GLIDE's tokenizer; the last ends a text."""

TOKENIZER_FOLDER = "tokenizer"
"""The folder of the tokenizer's files in a model's folder."""

_VOCABULARY_FILES = ("vocab.json", "encoder.json", "encoder.json.gz")
_WHOLE_AGAIN = "download the whole model again"
_MERGES_FILES = ("merges.txt", "vocab.bpe", "vocab.bpe.gz")


class Tokenizer(ABC):
    """Text to ids below `size`."""

    kind: ClassVar[str]
    size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ConditionError if a needed file is missing."""

    def within(self, ids: list[int], context: int) -> list[int]:
        """At most `context` of the ids of a text."""
        return ids[:context]

    def longest(self, ids: list[int], context: int) -> tuple[list[int], int]:
        """The ids for the text encoder with the longest context, and the size of its context."""
        return ids, context

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of ids, or a placeholder if the files are missing."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Plain data from which `tokenizer_from_config` makes an equal tokenizer."""

    def saved_in(self, folder: Path) -> Tokenizer:
        """See `Condition.saved_in`."""
        return self

    def found_in(self, folder: Path) -> Tokenizer:
        """See `Condition.found_in`."""
        return self


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes with collapsed white space. Needs no files; for newly trained priors."""

    kind: ClassVar[str] = "bytes"
    size: int = 256

    def encode(self, text: str) -> list[int]:
        return list(" ".join(text.split()).encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class BytePairTokenizer(Tokenizer):
    """GPT-2's byte pairs of the lower-cased text, as in GLIDE.

    folder: contains the vocabulary and the merges, as written by transformers (`vocab.json`, `merges.txt`), as released
    for GPT-2 (`encoder.json`, `vocab.bpe`), or for GLIDE (the same, gzipped); None: unknown, so that `encode` raises an
    error. size: ids in the vocabulary.
    """

    kind: ClassVar[str] = "gpt2"
    folder: Path | None = None
    size: int = GLIDE_VOCABULARY

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text.lower()).ids

    def decode(self, ids: list[int]) -> str:
        return f"{len(ids)} tokens" if self.folder is None else self._tokenizer.decode(ids)

    def to_config(self) -> dict[str, Any]:
        folder = None if self.folder is None else str(self.folder)
        return {"kind": self.kind, "folder": folder, "size": self.size}

    def saved_in(self, folder: Path) -> Tokenizer:
        """Raises ConditionError if the files are missing, or have another vocabulary."""
        if self.folder is None:
            return self
        files = (self._find(_VOCABULARY_FILES), self._find(_MERGES_FILES))
        self._vocabulary()
        (folder / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
        for file in files:
            target = folder / TOKENIZER_FOLDER / file.name
            if not (target.exists() and target.samefile(file)):
                shutil.copyfile(file, target)
        return replace(self, folder=Path(TOKENIZER_FOLDER))

    def found_in(self, folder: Path) -> Tokenizer:
        """Resolves a relative folder, first below `folder`."""
        if self.folder is None or not (folder / self.folder).is_dir():
            return self
        return replace(self, folder=folder / self.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        if self.folder is None:
            raise ConditionError(
                "this model needs GPT-2's tokenizer, whose files are missing in its folder",
                remedy=(
                    f"import it with {option('tokenizer')} FOLDER (vocab.json and merges.txt, or GLIDE's "
                    "encoder.json.gz and vocab.bpe.gz)"
                ),
            )
        try:
            from tokenizers import ByteLevelBPETokenizer
        except ImportError:
            raise ConditionError("GPT-2's tokenizer needs the extra 'text': pip install 'piti[text]'") from None
        return ByteLevelBPETokenizer(self._vocabulary(), self._merges())

    def _vocabulary(self) -> dict[str, int]:
        path = self._find(_VOCABULARY_FILES)
        try:
            values = json.loads(_text_of(path))
        except ValueError as error:
            raise ConditionError(f"{path}: not valid JSON ({error}); download the file again") from None
        if not isinstance(values, dict):
            raise ConditionError(f"{path}: expected an object of tokens and ids, got {type(values).__name__}")
        if len(values) != self.size:
            raise ConditionError(
                f"{path}: the vocabulary has {len(values)} ids, the model {self.size}; give the tokenizer it was "
                "trained with"
            )
        return values

    def _merges(self) -> list[tuple[str, str]]:
        path = self._find(_MERGES_FILES)
        pairs = [line.split() for line in _text_of(path).splitlines() if line and not line.startswith("#version")]
        odd = next((pair for pair in pairs if len(pair) != 2), None)
        if odd is not None:
            raise ConditionError(
                f"{path}: expected two tokens per line, got '{' '.join(odd)}'; download the file again"
            )
        return [(first, second) for first, second in pairs]

    def _find(self, names: tuple[str, ...]) -> Path:
        assert self.folder is not None
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        raise ConditionError(
            f"{self.folder}: contains none of {', '.join(names)}; give a folder with GPT-2's tokenizer"
        )


@dataclass(frozen=True)
class PretrainedTokenizer(Tokenizer):
    """A tokenizer of transformers, such as CLIP's or T5's, with its special tokens.

    folder: its files; size: number of ids; lower: lower-case texts first, as in DeepFloyd IF.
    """

    kind: ClassVar[str] = "pretrained"
    folder: Path = Path(TOKENIZER_FOLDER)
    size: int = 49408
    lower: bool = False

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text.lower().strip() if self.lower else text, verbose=False).input_ids

    def within(self, ids: list[int], context: int) -> list[int]:
        """A token at the end of texts, if any, stays the last."""
        if len(ids) <= context:
            return ids
        return [*ids[: context - 1], ids[-1]] if ids[-1:] == self.encode("")[-1:] else ids[:context]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """The id of every token. Raises ConditionError if the files are missing."""
        return self._tokenizer.get_vocab()

    def pad(self) -> int:
        """The padding id."""
        found = self._tokenizer.pad_token_id
        if found is None:
            raise ConditionError("the tokenizer has no padding token", remedy=_WHOLE_AGAIN, source=self.folder)
        return int(found)

    def most(self) -> int:
        """Largest number of tokens of a text."""
        return int(self._tokenizer.model_max_length)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "folder": str(self.folder), "size": self.size, "lower": self.lower}

    def saved_in(self, folder: Path, name: str = TOKENIZER_FOLDER) -> PretrainedTokenizer:
        """Its files are copied to `folder / name`. Raises ConditionError if they are missing."""
        if not self.folder.is_dir():
            raise ConditionError(f"{self.folder}: does not contain a tokenizer; import the model again")
        target = folder / name
        if not (target.is_dir() and target.samefile(self.folder)):
            shutil.copytree(self.folder, target, dirs_exist_ok=True)
        return replace(self, folder=Path(name))

    def found_in(self, folder: Path) -> PretrainedTokenizer:
        """Resolves a relative folder, first below `folder`."""
        return replace(self, folder=folder / self.folder) if (folder / self.folder).is_dir() else self

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ConditionError("this model's tokenizer needs transformers: pip install 'piti[text]'") from None
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise ConditionError("contains no tokenizer files", remedy=_WHOLE_AGAIN, source=self.folder)
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # noqa: BLE001 - tokenizers has no class of its own for what it refuses
            raise self._unread(error) from None

    def _unread(self, error: Exception) -> ConditionError:
        """The error for files that transformers could not read."""
        pieces = (self.folder / "spiece.model").is_file() and not (self.folder / "tokenizer.json").is_file()
        if pieces and find_spec("sentencepiece") is None:
            return ConditionError(
                "contains only SentencePiece files, and sentencepiece is not installed",
                remedy="pip install 'piti[text]'",
                source=self.folder,
            )
        return ConditionError(
            f"cannot be loaded by any tokenizer of transformers ({first_line(error)})",
            remedy=_WHOLE_AGAIN,
            source=self.folder,
        )


@dataclass(frozen=True)
class JoinedTokenizer(Tokenizer):
    """Several tokenizers for one text, for text encoders with different ones, such as CLIP and T5 in Stable Diffusion
    3. The ids of each start where those of the previous one end.

    parts: the tokenizers. places: the largest number of tokens of each.
    """

    kind: ClassVar[str] = "joined"
    parts: tuple[PretrainedTokenizer, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of ids of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ids [low, high) of each part."""
        ends = list(accumulate(part.size for part in self.parts))
        return list(zip([0, *ends], ends, strict=False))

    def encode(self, text: str) -> list[int]:
        ranged = zip(self.parts, self.ranges, strict=True)
        return [low + one for part, (low, _) in ranged for one in part.encode(text)]

    def within(self, ids: list[int], context: int) -> list[int]:
        """Truncate the ids of each part to its places; `context` is the sum of the places."""
        ranged = zip(self.parts, self.ranges, self._split(ids), self.places, strict=True)
        return [low + one for part, (low, _), own, places in ranged for one in part.within(own, places)]

    def longest(self, ids: list[int], context: int) -> tuple[list[int], int]:
        return self._split(ids)[self._longest], self.places[self._longest]

    def decode(self, ids: list[int]) -> str:
        """Decoded by the tokenizer with the most places."""
        return self.parts[self._longest].decode(self._split(ids)[self._longest])

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [one.to_config() for one in self.parts], "places": list(self.places)}

    def saved_in(self, folder: Path) -> JoinedTokenizer:
        """Each part's files are saved in their own folder. Raises ConditionError if they are missing."""
        named = [part.saved_in(folder, f"{TOKENIZER_FOLDER}/{number}") for number, part in enumerate(self.parts)]
        return replace(self, parts=tuple(named))

    def found_in(self, folder: Path) -> JoinedTokenizer:
        return replace(self, parts=tuple(part.found_in(folder) for part in self.parts))

    @property
    def _longest(self) -> int:
        """The index of the part with the most places."""
        return max(range(len(self.places)), key=self.places.__getitem__)

    def _split(self, ids: list[int]) -> list[list[int]]:
        """The ids of each part, in its own tokenizer's numbering."""
        return [[one - low for one in ids if low <= one < high] for low, high in self.ranges]


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ConditionError(f"{path}: cannot be read ({error}); download the file again") from None


def tokenizer_from_config(config: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of kind `config["kind"]`. Raises ConditionError."""
    kind, values = config.get("kind"), {key: value for key, value in config.items() if key != "kind"}
    known = {
        ByteTokenizer.kind: (),
        BytePairTokenizer.kind: ("folder", "size"),
        PretrainedTokenizer.kind: ("folder", "size", "lower"),
        JoinedTokenizer.kind: ("parts", "places"),
    }
    if not isinstance(kind, str) or kind not in known:
        raise ConditionError(f"{source}: unknown tokenizer '{kind}'; {choices(str(kind), known)}")
    unknown = sorted(values.keys() - set(known[kind]))
    if unknown:
        raise ConditionError(f"{source}: tokenizer '{kind}' takes no {', '.join(unknown)}; remove it")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if kind == PretrainedTokenizer.kind:
        return _pretrained(values, source)
    if kind == JoinedTokenizer.kind:
        return _joined(values, source)
    folder, size = values.get("folder"), values.get("size", GLIDE_VOCABULARY)
    if not isinstance(folder, str | None):
        raise ConditionError(f"{source}: tokenizer.folder {folder!r} is not a folder name")
    if not isinstance(size, int) or size < 1:
        raise ConditionError(f"{source}: tokenizer.size {size!r} is not a number of ids; GPT-2 has {GLIDE_VOCABULARY}")
    return BytePairTokenizer(None if folder is None else Path(folder), size)


def _pretrained(values: Mapping[str, Any], source: str) -> PretrainedTokenizer:
    folder, size, lower = values.get("folder"), values.get("size"), values.get("lower", False)
    if not isinstance(folder, str) or not isinstance(size, int) or size < 1 or not isinstance(lower, bool):
        raise ConditionError(f"{source}: tokenizer 'pretrained' needs 'folder' and 'size', and takes 'lower: true'")
    return PretrainedTokenizer(Path(folder), size, lower)


def _joined(values: Mapping[str, Any], source: str) -> JoinedTokenizer:
    parts, places = (list(values[key]) if isinstance(values.get(key), list) else [] for key in ("parts", "places"))
    counts = all(isinstance(one, int) and one > 0 for one in places)
    if not (counts and len(parts) == len(places) > 0):
        raise ConditionError(
            f"{source}: tokenizer 'joined' needs 'parts' and as many 'places', each a number of tokens"
        )
    made = [tokenizer_from_config(part, source) if isinstance(part, Mapping) else None for part in parts]
    pretrained = tuple(one for one in made if isinstance(one, PretrainedTokenizer))
    if len(pretrained) < len(made):
        raise ConditionError(f"{source}: tokenizer 'joined': each part must be of kind 'pretrained'")
    return JoinedTokenizer(pretrained, tuple(places))
