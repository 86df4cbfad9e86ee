"""The interface of conditions: file => compact raw tensor => channels for an encoder.

K is the number of raw planes, C the number of encoded channels.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeGuard, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError, option
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import Box, LossyError, OpenedImage, Source, center_box, image_of_array, open_image
from piti.core.spec import choices

Handed = Source | Image.Image | Tensor | np.ndarray
"""A condition as given by a caller: a file, a PIL image, a raw tensor, or an image's pixels as an array."""

Given = Handed | None
"""The same for a part of a condition; None if it is absent."""

Files = Source | Mapping[str, Given]
"""The files of a condition: a single one, or one for each part by name (see SeveralCondition)."""


def is_source(item: object) -> TypeGuard[Source]:
    """Whether a part is a file, rather than an image, a tensor or absent."""
    return isinstance(item, str | Path | OpenedImage)


Pen = Callable[[Tensor], Tensor]
"""Transforms the lines of a drawing, bool [h, w], True on a line."""
Size = int | tuple[int, int]
"""The side of a square, or (height, width), in pixels."""


def sides_of(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


class ConditionError(UserError):
    """A condition cannot be read or built. The message names the source and what to do."""


class LossyCondition(ConditionError):
    """A condition whose file's format changes its values."""


class Condition(ABC):
    """A kind of input. It holds only settings; data pass through its methods.

    `raw` tensors are compact, since they are cached and sent between processes; `encode` turns them into the network's
    input, as late as possible.
    """

    kind: ClassVar[str]
    usual_folder: ClassVar[str | None] = None
    """Default folder of this kind in a data root, as in the recipes; None if there is none."""
    suffixes: ClassVar[frozenset[str]] = IMAGE_SUFFIXES
    """File extensions of this kind."""
    exact: ClassVar[bool] = False
    """Whether its files hold exact values, so that lossy formats are refused."""
    spatial: ClassVar[bool] = True
    """Whether it is an image that is aligned with the generated image."""
    null_value: float = 0.0
    """Value of all channels of the null condition."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of encoded channels C."""

    @property
    def planes(self) -> int:
        """Number of raw planes K of an image condition; used for parts of several and for PNGs, see `declared`."""
        return 1

    @property
    def raw_dtype(self) -> torch.dtype:
        """The dtype of raw tensors, to which a pipeline converts its input."""
        return torch.uint8

    def load(self, path: Files) -> Shaped[Tensor, "K h w"]:
        """Read a file. Raises ImageError if it is not an image, ConditionError if it is not of this kind."""
        if isinstance(path, Mapping):
            raise ConditionError(
                f"{', '.join(path)}: parts are given, but this model reads one {self.kind}; give a single file"
            )
        if str(path).lower().endswith(".txt"):
            raise ConditionError(
                f"{path}: is a text, but this model reads a {self.kind}; give an image, or use a prior"
            )
        try:
            image = open_image(path, self.exact)
        except LossyError as error:
            raise LossyCondition.like(error) from None
        return self.read(image, str(path))

    def take(self, item: object, name: str = "") -> Shaped[Tensor, "K h w"]:
        """Convert a caller's input to a raw tensor; arrays, and tensors [h, w], are read like image files.

        item: see `Handed`, or a mapping of parts by name. name: what errors call an item that is not a file, such as a
        part's name. Raises ConditionError, also for other types, and ImageError.
        """
        match item:
            case Tensor() if item.ndim == 2 and self.spatial:
                return self.take(_array_of(item), name or "tensor")
            case Tensor():
                return self.checked(item, f"the given {name or 'tensor'}")
            case Image.Image():
                return self.read(item, f"the given {name or 'image'}")
            case np.ndarray():
                source = f"the given {name or 'array'}"
                return self.read(image_of_array(item, source), source)
            case str() | Path() | Mapping() | OpenedImage():
                return self.load(item)
        raise ConditionError(
            f"expected a file name, an image, an array or a tensor, got {type(item).__name__}",
            source=f"the given {name or 'condition'}",
        )

    @abstractmethod
    def read(self, image: Image.Image, source: str) -> Shaped[Tensor, "K h w"]:
        """Read a decoded image; `source` names it in errors. Raises ConditionError."""

    @abstractmethod
    def crop_resize(self, raw: Shaped[Tensor, "K h w"], box: Box, size: Size) -> Shaped[Tensor, "K h2 w2"]:
        """Crop `box` (left, top, width, height) and resize it to `size` with the filter for this kind."""

    def squared(self, raw: Shaped[Tensor, "K h w"]) -> Shaped[Tensor, "K s s"]:
        """Crop the largest centred square, without resizing."""
        left, top, side, _ = center_box(raw.shape[-1], raw.shape[-2])
        return raw[:, top : top + side, left : left + side]

    @abstractmethod
    def checked(self, raw: Tensor, source: str) -> Shaped[Tensor, "K h w"]:
        """Return `raw` if it is a valid raw tensor of this kind. Raises ConditionError that says what is expected."""

    def declared(self, raw: Tensor) -> Shaped[Tensor, "K h w"]:
        """Return a raw tensor that was read. Raises ConditionError if `planes` differs, or if converting to `raw_dtype`
        would lose values."""
        if self.spatial and (raw.ndim != 3 or len(raw) != self.planes or raw.dtype != self.raw_dtype):
            raise ConditionError(
                f"kind '{self.kind}' reads {list(raw.shape)} of {raw.dtype}, and says planes {self.planes} of "
                f"raw_dtype {self.raw_dtype}",
                remedy="let its class say by `planes` and `raw_dtype` what it reads",
            )
        return raw

    def flip(self, raw: Shaped[Tensor, "*any w"]) -> Shaped[Tensor, "*any w"]:
        """Mirror left to right."""
        return raw.flip(-1)

    def redrawn(self, raw: Shaped[Tensor, "K h w"], pen: Pen) -> Shaped[Tensor, "K h w"]:
        """Transform the lines by `pen`; other kinds than drawings are unchanged."""
        return raw

    @abstractmethod
    def encode(self, raw: Shaped[Tensor, "*batch K h w"]) -> Float[Tensor, "*batch C h w"]:
        """The network's input, float32, on the device of `raw`."""

    def null(
        self,
        batch: int,
        height: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Shaped[Tensor, "batch C height width"]:
        """The encoded null condition, for dropout and guidance: `null_value` in every channel."""
        return torch.full((batch, self.channels, height, width), self.null_value, device=device, dtype=dtype)

    @property
    def draws(self) -> int:
        """Random numbers per sample in `dropped`."""
        return 1

    def dropped(
        self, encoded: Shaped[Tensor, "B C h w"], uniform: Float[Tensor, "B draws"], p: float
    ) -> Shaped[Tensor, "B C h w"]:
        """Condition dropout in training, for guidance: each row becomes null with probability `p`.

        uniform: independent numbers in [0, 1), `draws` per row; a row is replaced if its number is below p.
        """
        null = self.null(len(encoded), *encoded.shape[-2:], device=encoded.device)
        drop = (uniform[:, 0] < p).to(encoded.device, non_blocking=True)  # [B]
        return torch.where(drop.view(-1, 1, 1, 1), null, encoded)

    @abstractmethod
    def preview(self, raw: Shaped[Tensor, "K h w"]) -> Image.Image:
        """An RGB image that shows the condition, of the same size."""

    def previews(self, raw: Shaped[Tensor, "K h w"]) -> list[Image.Image]:
        """The previews of all parts; without parts, its own."""
        return [self.preview(raw)]

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Plain data with "kind", from which `condition_from_config` makes an equal condition."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> Condition:
        """Build from the data of `to_config`, read from `source`. Raises ConditionError."""

    # In parts, and in sets of files

    def named_parts(self) -> Mapping[str, Condition]:
        """The parts by name; without parts, itself under its kind."""
        return {self.kind: self}

    def given_parts(self, raw: Shaped[Tensor, "K h w"]) -> Mapping[str, tuple[Condition, Tensor]]:
        """The parts present in a raw tensor, each with its raw planes."""
        return {self.kind: (self, raw)}

    def settled(self, files: Sequence[Files]) -> tuple[Condition, list[str]]:
        """The condition with one reading for all of these files, if a single file is ambiguous, and notes for the user.
        Raises ConditionError if the files are ambiguous too."""
        return self, []

    def beside(self, path: object) -> Condition:
        """The condition to read an item with: for a file, with settings found beside it, such as a class table. Raises
        ConditionError for a damaged table."""
        return self

    # With a model

    def saved_in(self, folder: Path) -> Condition:
        """Copy the files it needs into a model's folder, and return the condition with relative paths to them."""
        return self

    def found_in(self, folder: Path) -> Condition:
        """The condition with its relative paths resolved against its model's folder."""
        return self

    def reads_like(self, other: Condition) -> bool:
        """Whether networks trained with either can read the other."""
        return self.to_config() == other.to_config()


def _array_of(plane: Tensor) -> np.ndarray:
    """A tensor [h, w] as an array; NumPy has no bfloat16."""
    plane = plane.detach().cpu()
    return (plane.float() if plane.is_floating_point() else plane).numpy()


CONDITIONS: dict[str, type[Condition]] = {}
"""All kinds of conditions by name; `register` adds to them."""

_C = TypeVar("_C", bound=Condition)


def register(condition: type[_C]) -> type[_C]:
    """Class decorator: register a kind for `condition_from_config`."""
    CONDITIONS[condition.kind] = condition
    return condition


def condition_from_config(config: Mapping[str, Any], source: str = "condition") -> Condition:
    """The condition of kind `config["kind"]`, built from the rest of `config`.

    source: the data's origin (a file, a flag), for errors. Raises ConditionError.
    """
    known = sorted(CONDITIONS)
    if "kind" not in config:
        raise ConditionError(f"{source}: missing key 'kind'; known kinds: {', '.join(known)}")
    kind = config["kind"]
    if not isinstance(kind, str) or kind not in CONDITIONS:
        raise ConditionError(f"{source}: unknown condition '{kind}'; {choices(str(kind), known)}")
    return CONDITIONS[kind].from_config(config, source)


# The meaning of values

_NO_MEANING = frozenset(
    {"reading", "threshold", "unit", "camera", "field_of_view", "normal_axes", "jump", "null_value", "clip"}
)  # settings of reading files and encoding, which do not affect the meaning of raw values


def meaning_hash(condition: Condition) -> str:
    """A hash of the meaning of raw values, such as a mask's classes; equal for conditions with interchangeable raw
    tensors."""
    return hashlib.sha256(json.dumps(_meaning(condition.to_config()), sort_keys=True).encode()).hexdigest()[:16]


def _meaning(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _meaning(value) for key, value in config.items() if key not in _NO_MEANING}
    return [_meaning(value) for value in config] if isinstance(config, list | tuple) else config


@register
class NoCondition(Condition):
    """No condition: raw and encoded tensors have no planes."""

    kind = "none"

    @property
    def channels(self) -> int:
        return 0

    def load(self, path: Files) -> Shaped[Tensor, "K h w"]:
        raise ConditionError(
            "this model takes no condition",
            remedy=f"choose another {option('model')}, or an upsampler's base",
            source=path,
        )

    def read(self, image: Image.Image, source: str) -> Shaped[Tensor, "K h w"]:
        return self.nothing(image.height, image.width)

    def nothing(self, height: int, width: int) -> Shaped[Tensor, "0 height width"]:
        """The raw tensor of this size."""
        return torch.empty(0, height, width, dtype=torch.uint8)

    def crop_resize(self, raw: Shaped[Tensor, "K h w"], box: Box, size: Size) -> Shaped[Tensor, "K h2 w2"]:
        return self.nothing(*sides_of(size))

    def checked(self, raw: Tensor, source: str) -> Shaped[Tensor, "K h w"]:
        if raw.ndim != 3 or len(raw):
            raise ConditionError(f"{source}: expected no planes, [0, h, w], got {list(raw.shape)}")
        return raw

    def encode(self, raw: Shaped[Tensor, "*batch K h w"]) -> Float[Tensor, "*batch C h w"]:
        return raw.float()

    def preview(self, raw: Shaped[Tensor, "K h w"]) -> Image.Image:
        return Image.new("RGB", (raw.shape[-1], raw.shape[-2]), "white")

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> NoCondition:
        unknown = config.keys() - {"kind"}
        if unknown:
            raise ConditionError(f"{source}: kind 'none' takes no {', '.join(sorted(unknown))}; remove it")
        return cls()
