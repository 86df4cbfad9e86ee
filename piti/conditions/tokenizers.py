"""Tokenizers: text to ids. The bytes of the text, GPT-2's byte pairs, which GLIDE was trained with, or what a prior of
another family comes with, as transformers reads it."""

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
"""Where a model's folder holds its tokenizer's files."""

_VOCABULARY_FILES = ("vocab.json", "encoder.json", "encoder.json.gz")
_WHOLE_AGAIN = "fetch the whole model again"
_MERGES_FILES = ("merges.txt", "vocab.bpe", "vocab.bpe.gz")


class Tokenizer(ABC):
    """Text to ids below `size`."""

    kind: ClassVar[str]
    size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, as many as it takes. Raises ConditionError where a needed file is missing."""

    def within(self, ids: list[int], context: int) -> list[int]:
        """At most `context` of the ids of a text."""
        return ids[:context]

    def longest(self, ids: list[int], context: int) -> tuple[list[int], int]:
        """The ids for the text encoder that reads most of a text, and how many of them it reads at most."""
        return ids, context

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of ids, or a stand-in where the files that would tell are not there."""

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
    """UTF-8's bytes, white space folded. Needs no file and knows every text; for priors of one's own."""

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
    """GPT-2's byte pairs of the lower-cased text, as GLIDE reads it.

    folder: holds the vocabulary and the merges, as transformers writes them (`vocab.json`, `merges.txt`), as
    GPT-2 was released (`encoder.json`, `vocab.bpe`), or as they lie beside GLIDE (the same, gzipped); none: not
    known yet, and `encode` says so. size: ids in the vocabulary.
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
        """Raises ConditionError where the files are not there, or of another vocabulary."""
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
        """A relative folder is looked for below `folder` first."""
        if self.folder is None or not (folder / self.folder).is_dir():
            return self
        return replace(self, folder=folder / self.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        if self.folder is None:
            raise ConditionError(
                "this model reads text through GPT-2's tokenizer, whose files it does not hold",
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
            raise ConditionError(f"{path}: not valid JSON ({error}); fetch the file again") from None
        if not isinstance(values, dict):
            raise ConditionError(f"{path}: expected an object of tokens and ids, got {type(values).__name__}")
        if len(values) != self.size:
            raise ConditionError(
                f"{path}: the vocabulary has {len(values)} ids, the model {self.size}; name the tokenizer it was "
                "trained with"
            )
        return values

    def _merges(self) -> list[tuple[str, str]]:
        path = self._find(_MERGES_FILES)
        pairs = [line.split() for line in _text_of(path).splitlines() if line and not line.startswith("#version")]
        odd = next((pair for pair in pairs if len(pair) != 2), None)
        if odd is not None:
            raise ConditionError(f"{path}: expected two tokens a line, got '{' '.join(odd)}'; fetch the file again")
        return [(first, second) for first, second in pairs]

    def _find(self, names: tuple[str, ...]) -> Path:
        assert self.folder is not None
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        raise ConditionError(f"{self.folder}: holds none of {', '.join(names)}; name a folder with GPT-2's tokenizer")


@dataclass(frozen=True)
class PretrainedTokenizer(Tokenizer):
    """A tokenizer of transformers, such as CLIP's or T5's, with the tokens that it puts around a text.

    folder: its files; size: ids that it knows; lower: texts are lower-cased first, as DeepFloyd IF does.
    """

    kind: ClassVar[str] = "pretrained"
    folder: Path = Path(TOKENIZER_FOLDER)
    size: int = 49408
    lower: bool = False

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text.lower().strip() if self.lower else text, verbose=False).input_ids

    def within(self, ids: list[int], context: int) -> list[int]:
        """The token that ends a text, where there is one, stays its last."""
        if len(ids) <= context:
            return ids
        return [*ids[: context - 1], ids[-1]] if ids[-1:] == self.encode("")[-1:] else ids[:context]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """The id of every token. Raises ConditionError where the files are not there."""
        return self._tokenizer.get_vocab()

    def pad(self) -> int:
        """The id after a text's end, of whoever was trained with it."""
        found = self._tokenizer.pad_token_id
        if found is None:
            raise ConditionError("the tokenizer has no padding token", remedy=_WHOLE_AGAIN, source=self.folder)
        return int(found)

    def most(self) -> int:
        """The most tokens that a text may have."""
        return int(self._tokenizer.model_max_length)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "folder": str(self.folder), "size": self.size, "lower": self.lower}

    def saved_in(self, folder: Path, name: str = TOKENIZER_FOLDER) -> PretrainedTokenizer:
        """Its files are copied to `folder / name`. Raises ConditionError where they are not there."""
        if not self.folder.is_dir():
            raise ConditionError(f"{self.folder}: is no folder with a tokenizer's files; import the model anew")
        target = folder / name
        if not (target.is_dir() and target.samefile(self.folder)):
            shutil.copytree(self.folder, target, dirs_exist_ok=True)
        return replace(self, folder=Path(name))

    def found_in(self, folder: Path) -> PretrainedTokenizer:
        """A relative folder is looked for below `folder` first."""
        return replace(self, folder=folder / self.folder) if (folder / self.folder).is_dir() else self

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ConditionError("this model's tokenizer needs transformers: pip install 'piti[text]'") from None
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise ConditionError("holds no tokenizer's files", remedy=_WHOLE_AGAIN, source=self.folder)
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # noqa: BLE001 - tokenizers has no class of its own for what it refuses
            raise self._unread(error) from None

    def _unread(self, error: Exception) -> ConditionError:
        """What to say of files that transformers did not read."""
        pieces = (self.folder / "spiece.model").is_file() and not (self.folder / "tokenizer.json").is_file()
        if pieces and find_spec("sentencepiece") is None:
            return ConditionError(
                "holds SentencePiece's files alone, and sentencepiece is not installed",
                remedy="pip install 'piti[text]'",
                source=self.folder,
            )
        return ConditionError(
            f"is read by no tokenizer of transformers ({first_line(error)})", remedy=_WHOLE_AGAIN, source=self.folder
        )


@dataclass(frozen=True)
class JoinedTokenizer(Tokenizer):
    """A text by several tokenizers, one after the other, for text encoders that read different ones, such as CLIP's and
    T5's in Stable Diffusion 3. The ids of each begin where those of the tokenizer before it end.

    parts: the tokenizers. places: how many tokens of a text each may take at most.
    """

    kind: ClassVar[str] = "joined"
    parts: tuple[PretrainedTokenizer, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ids of all parts together."""
        return sum(part.size for part in self.parts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ids [low, high) of each part."""
        ends = list(accumulate(part.size for part in self.parts))
        return list(zip([0, *ends], ends, strict=False))

    def encode(self, text: str) -> list[int]:
        shifted = ([low + one for one in part.encode(text)] for part, (low, _) in self._ranged())
        return [one for ids in shifted for one in ids]

    def within(self, ids: list[int], context: int) -> list[int]:
        """At most as many ids of each part as it has places; `context` is the sum of the places."""
        kept = []
        for (part, (low, _)), own, places in zip(self._ranged(), self._split(ids), self.places, strict=True):
            kept += [low + one for one in part.within(own, places)]
        return kept

    def longest(self, ids: list[int], context: int) -> tuple[list[int], int]:
        return max(zip(self._split(ids), self.places, strict=True), key=lambda pair: pair[1])

    def decode(self, ids: list[int]) -> str:
        """As the tokenizer with the most places reads it."""
        reader = max(range(len(self.parts)), key=lambda number: self.places[number])
        return self.parts[reader].decode(self._split(ids)[reader])

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [one.to_config() for one in self.parts], "places": list(self.places)}

    def saved_in(self, folder: Path) -> JoinedTokenizer:
        """Each part's files are in a folder of its own. Raises ConditionError where they are not there."""
        named = [part.saved_in(folder, f"{TOKENIZER_FOLDER}/{number}") for number, part in enumerate(self.parts)]
        return replace(self, parts=tuple(named))

    def found_in(self, folder: Path) -> JoinedTokenizer:
        return replace(self, parts=tuple(part.found_in(folder) for part in self.parts))

    def _ranged(self) -> list[tuple[PretrainedTokenizer, tuple[int, int]]]:
        return list(zip(self.parts, self.ranges, strict=True))

    def _split(self, ids: list[int]) -> list[list[int]]:
        """The ids of each part, as its own tokenizer numbers them."""
        return [[one - low for one in ids if low <= one < high] for low, high in self.ranges]


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ConditionError(f"{path}: cannot be read ({error}); fetch the file again") from None


def tokenizer_from_config(config: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer that `config["kind"]` names. Raises ConditionError."""
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
        raise ConditionError(f"{source}: tokenizer.folder {folder!r} is no folder's name")
    if not isinstance(size, int) or size < 1:
        raise ConditionError(f"{source}: tokenizer.size {size!r} is no number of ids; GPT-2 has {GLIDE_VOCABULARY}")
    return BytePairTokenizer(None if folder is None else Path(folder), size)


def _pretrained(values: Mapping[str, Any], source: str) -> PretrainedTokenizer:
    folder, size, lower = values.get("folder"), values.get("size"), values.get("lower", False)
    if not isinstance(folder, str) or not isinstance(size, int) or size < 1 or not isinstance(lower, bool):
        raise ConditionError(f"{source}: tokenizer 'pretrained' needs a folder, a size and, if so, lower: true")
    return PretrainedTokenizer(Path(folder), size, lower)


def _joined(values: Mapping[str, Any], source: str) -> JoinedTokenizer:
    parts, places = (list(values[key]) if isinstance(values.get(key), list) else [] for key in ("parts", "places"))
    counts = all(isinstance(one, int) and one > 0 for one in places)
    if not (counts and len(parts) == len(places) > 0):
        raise ConditionError(f"{source}: tokenizer 'joined' needs parts, and as many places, each a number of tokens")
    made = [tokenizer_from_config(part, source) if isinstance(part, Mapping) else None for part in parts]
    pretrained = tuple(one for one in made if isinstance(one, PretrainedTokenizer))
    if len(pretrained) < len(made):
        raise ConditionError(f"{source}: tokenizer 'joined': each part must be of kind 'pretrained'")
    return JoinedTokenizer(pretrained, tuple(places))
