"""Text, the condition that a prior is pretrained with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
from jaxtyping import Integer, Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Files, Size, register
from piti.conditions.tokenizers import ByteTokenizer, Tokenizer, tokenizer_from_config
from piti.core.errors import option
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import Box

NO_TOKEN = -1
"""Padding after a text's last token, in raw and encoded form."""

_PICTURE = 192  # side of a preview
_LETTER = 16  # font size
_LINE = 20  # characters per line


@register
@dataclass(frozen=True)
class TextCondition(Condition):
    """A text, such as a caption.

    Raw and encoded form are the same: token ids [1, 1, context], padded with -1; longer texts are truncated. The null
    condition is the empty text. Files are UTF-8 text, `.txt`; surrounding white space is removed.
    """

    kind: ClassVar[str] = "text"
    usual_folder: ClassVar[str | None] = "captions"
    suffixes: ClassVar[frozenset[str]] = frozenset({".txt"})
    spatial: ClassVar[bool] = False

    context: int = 64
    """Largest number of tokens, L."""
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)

    @property
    def channels(self) -> int:
        """One row of tokens."""
        return 1

    def load(self, path: Files) -> Integer[Tensor, "1 1 L"]:
        """Read a text file. Raises ConditionError if it is missing, or not UTF-8."""
        if isinstance(path, Mapping):
            raise ConditionError(f"{', '.join(path)}: parts are given, but this model reads text; give a .txt file")
        if PurePath(str(path)).suffix.lower() in IMAGE_SUFFIXES:
            raise _no_text(path)
        try:
            data = Path(path).read_bytes() if isinstance(path, str | Path) else path.open().read()
            text = data.decode("utf-8-sig")
        except FileNotFoundError:
            raise ConditionError(f"{path}: no such file; check the path") from None
        except OSError as error:
            raise ConditionError(f"{path}: cannot be read ({error.strerror or error}); give a .txt file") from None
        except UnicodeDecodeError as error:
            raise ConditionError(f"{path}: cannot be read as UTF-8 text ({error}); save it as such") from None
        return self.tokens(text, str(path))

    def tokens(self, text: str, source: str = "the given text") -> Integer[Tensor, "1 1 L"]:
        """A text in raw form. Raises ConditionError for an empty one."""
        if not text.strip():
            raise ConditionError(f"{source}: is empty; describe the image")
        ids = self.tokenizer.within(self._ids(text, source), self.context)
        raw = torch.full((1, 1, self.context), NO_TOKEN, dtype=torch.int32)
        raw[0, 0, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return raw

    def cut(self, text: str) -> str:
        """A note if a text is truncated; else empty. Raises ConditionError."""
        ids, most = self.tokenizer.longest(self._ids(text, "the given text"), self.context)
        return f"only the first {most} of {len(ids)} tokens are read: {text}" if len(ids) > most else ""

    def full(self, raw: Integer[Tensor, "1 1 L"]) -> bool:
        """Whether a text fills the context, so that it was probably truncated."""
        ids, most = self.tokenizer.longest(self._tokens(raw), self.context)
        return len(ids) == most

    def _ids(self, text: str, source: str) -> list[int]:
        """The ids of the whole text. Raises ConditionError for undecodable bytes, as from a shell."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConditionError(f"{source}: is not valid UTF-8; encode it as UTF-8") from None
        return self.tokenizer.encode(text.strip())

    def text(self, raw: Integer[Tensor, "1 1 L"]) -> str:
        """The text of a raw tensor, as far as the tokenizer can decode it."""
        return self.tokenizer.decode(self._tokens(raw))

    @staticmethod
    def _tokens(raw: Integer[Tensor, "1 1 L"]) -> list[int]:
        return [token for token in raw.flatten().tolist() if token != NO_TOKEN]

    def read(self, image: Image.Image, source: str) -> Shaped[Tensor, "K h w"]:
        """Always raises ConditionError: an image is not a text."""
        raise _no_text(source)

    def checked(self, raw: Tensor, source: str) -> Integer[Tensor, "1 1 L"]:
        """Return token ids. Raises ConditionError for another shape, dtype, or id."""
        if raw.shape != (1, 1, self.context) or raw.is_floating_point() or raw.is_complex():
            shape = f"{list(raw.shape)} of {raw.dtype}"
            raise ConditionError(f"{source}: expected token ids [1, 1, {self.context}] of an integer type, got {shape}")
        odd = raw[(raw != NO_TOKEN) & ((raw < 0) | (raw >= self.tokenizer.size))]
        if len(odd):
            raise ConditionError(
                f"{source}: holds {int(odd[0])}; tokens are 0..{self.tokenizer.size - 1}, {NO_TOKEN} for none"
            )
        return raw

    def squared(self, raw: Integer[Tensor, "1 1 L"]) -> Integer[Tensor, "1 1 L"]:
        return raw

    def crop_resize(self, raw: Integer[Tensor, "1 1 L"], box: Box, size: Size) -> Integer[Tensor, "1 1 L"]:
        """The text, for any crop of the image."""
        return raw

    def flip(self, raw: Shaped[Tensor, "*any L"]) -> Shaped[Tensor, "*any L"]:
        """The text, also for the mirrored image."""
        return raw

    def encode(self, raw: Integer[Tensor, "*batch 1 L"]) -> Integer[Tensor, "*batch 1 L"]:
        return raw

    def null(
        self,
        batch: int,
        height: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Integer[Tensor, "batch 1 height width"]:
        """The empty text; ids are int32 whatever `dtype` is."""
        return torch.full((batch, 1, height, width), NO_TOKEN, device=device, dtype=torch.int32)

    def preview(self, raw: Integer[Tensor, "1 1 L"]) -> Image.Image:
        """The text in black on white."""
        picture = Image.new("RGB", (_PICTURE, _PICTURE), "white")
        lines = textwrap.wrap(self.text(raw) or "(no text)", _LINE)
        draw, middle = ImageDraw.Draw(picture), _PICTURE / 2
        font = ImageFont.load_default(_LETTER)
        draw.multiline_text((middle, middle), "\n".join(lines), "black", font, anchor="mm", align="center")
        return picture

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "context": self.context, "tokenizer": self.tokenizer.to_config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> TextCondition:
        """Build from `to_config`'s data. Raises ConditionError."""
        unknown = sorted(config.keys() - {"kind", "context", "tokenizer"})
        if unknown:
            raise ConditionError(f"{source}: kind 'text' takes no {', '.join(unknown)}; remove it")
        context, tokenizer = config.get("context", 64), config.get("tokenizer", {"kind": "bytes"})
        if not isinstance(context, int) or context < 1:
            raise ConditionError(f"{source}: context {context!r} is not a number of tokens; give at least 1")
        if not isinstance(tokenizer, Mapping):
            raise ConditionError(f"{source}: tokenizer {tokenizer!r}: expected {{kind: bytes}} or {{kind: gpt2, …}}")
        return cls(context, tokenizer_from_config(tokenizer, source))

    def saved_in(self, folder: Path) -> TextCondition:
        return replace(self, tokenizer=self.tokenizer.saved_in(folder))

    def found_in(self, folder: Path) -> TextCondition:
        return replace(self, tokenizer=self.tokenizer.found_in(folder))

    def reads_like(self, other: Condition) -> bool:
        """Whether both have the same tokenizer and context, wherever the tokenizer's files are."""
        if not isinstance(other, TextCondition):
            return False
        ours, theirs = ((c.context, c.tokenizer.kind, c.tokenizer.size) for c in (self, other))
        return ours == theirs


def _no_text(source: object) -> ConditionError:
    return ConditionError(
        "is an image, but this model reads text",
        remedy=f"give {option('text')}",
        local_remedy="give a .txt file",
        source=source,
    )
