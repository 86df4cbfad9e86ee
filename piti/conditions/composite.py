"""Several conditions at once: parts aligned with the same image, each of which may be missing.

P is the number of parts; K and C of the whole follow from those of the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw
from pydantic import Field, field_validator
from torch import Tensor

from piti.conditions.base import (
    Condition,
    ConditionError,
    Files,
    Given,
    Pen,
    Size,
    condition_from_config,
    is_source,
    register,
    sides_of,
)
from piti.core.errors import option
from piti.core.images import Box
from piti.core.sheets import grid
from piti.core.spec import Spec, SpecError, choices

_NAME = re.compile(r"[A-Za-z][\w-]*")
_ABSENT = (225, 225, 225)  # preview colour of an absent part
_RAW_TYPES = (torch.uint8, torch.int16, torch.float16, torch.int32, torch.float32, torch.float64)


class _PartConfig(Spec):
    """Saved configuration of a part; parts are a list, since their order determines the channels."""

    name: str
    condition: dict[str, Any]


class _SeveralConfig(Spec):
    """Saved configuration of a condition of several parts; recipes may give `parts` as a mapping."""

    kind: Literal["several"] = "several"
    parts: tuple[_PartConfig, ...] = Field(min_length=2)
    together: bool = False

    @field_validator("parts", mode="before")
    @classmethod
    def _from_mapping(cls, parts: Any) -> Any:
        if isinstance(parts, Mapping):
            return [{"name": name, "condition": condition} for name, condition in parts.items()]
        return parts


@register
@dataclass(frozen=True)
class SeveralCondition(Condition):
    """Named parts, such as a mask and a sketch of the same image; at least one of them is given, or all `together`.

    Raw form: P planes that are 1 where a part is given and 0 where it is absent, the same at every pixel, then the raw
    planes of every part in order (zeros where it is absent), in the narrowest dtype that represents them all exactly.
    Encoded: the channels of the parts in order; an absent part is its own null. The null condition is that of all
    parts. All operations are delegated to the parts, in their own dtype.

    parts: by name, in the order of the channels; only kinds that are aligned images (no text, and no nested several).
    Raises ConditionError for others, for fewer than two, and for invalid names.

    together: every part must be given, and in training all become null at once, see `dropped`, for networks that were
    never trained with a single part.
    """

    kind: ClassVar[str] = "several"

    parts: Mapping[str, Condition]
    together: bool = False

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ConditionError(
                f"parts: {', '.join(self.parts) or 'none'} named; name two or more, or use that kind alone"
            )
        for name, part in self.parts.items():
            if not _NAME.fullmatch(name):
                raise ConditionError(f"parts: {name!r} is invalid; use letters, digits, '-' and '_', such as 'mask'")
            if not part.spatial or not part.channels or isinstance(part, SeveralCondition):
                raise ConditionError(
                    f"parts.{name}: '{part.kind}' cannot be a part; parts are images aligned with the output, such "
                    "as mask, sketch or geometry"
                )

    @property
    def channels(self) -> int:
        """Channels of all parts."""
        return sum(part.channels for part in self.parts.values())

    @property
    def planes(self) -> int:
        """A presence flag per part, then the planes of all parts."""
        return len(self.parts) + sum(part.planes for part in self.parts.values())

    @property
    def raw_dtype(self) -> torch.dtype:
        """The narrowest dtype that represents the raw values of every part exactly."""
        kinds = [part.raw_dtype for part in self.parts.values()]
        return next(dtype for dtype in _RAW_TYPES if all(_holds(dtype, kind) for kind in kinds))

    # Reading

    def load(self, path: Files) -> Shaped[Tensor, "K h w"]:
        """Read the given parts, by name; files, images and raw tensors may be mixed.

        Smaller ones are resized to the largest if their aspect ratios agree, by the part's own filter. Raises
        ImageError for files that are not images; ConditionError for another kind than the part's, an unknown part, no
        part (or not all, if `together`), other aspect ratios, and for a single file without the name of its part.
        """
        if not isinstance(path, Mapping):
            raise ConditionError(f"{path}: {self._which()}")
        for name in path:
            if name not in self.parts:
                raise ConditionError(f"unknown part '{name}'; {choices(name, self.parts)}")
        given = {name: path[name] for name in self.parts if path.get(name) is not None}
        if not given:
            raise ConditionError(f"no part is given; give {self._needed}")
        missing = [name for name in self.parts if name not in given] if self.together else []
        if missing:
            raise ConditionError(
                f"{', '.join(given)} alone: this model reads {' and '.join(self.parts)} together",
                remedy=f"give {' and '.join(missing)} too",
            )
        sources = {name: _named(name, item) for name, item in given.items()}
        raws = {name: self.parts[name].take(item, name) for name, item in given.items() if item is not None}
        return self._joined(self._of_one_size(raws, sources))

    def read(self, image: Image.Image, source: str) -> Shaped[Tensor, "K h w"]:
        """Always raises ConditionError: the part of a single image is unknown."""
        raise ConditionError(f"{source}: {self._which()}")

    def _which(self) -> str:
        first = next(iter(self.parts))
        return (
            f"this model reads {', '.join(self.parts)}; name the part: {{'{first}': FILE}}, or on the "
            f"command line {option('given')} {first}=FILE"
        )

    @property
    def _needed(self) -> str:
        return " and ".join(self.parts) if self.together else f"at least one of {', '.join(self.parts)}"

    def _of_one_size(self, raws: Mapping[str, Tensor], sources: Mapping[str, str]) -> dict[str, Tensor]:
        largest = max(raws, key=lambda name: raws[name].shape[-2:].numel())
        height, width = raws[largest].shape[-2:]
        sized = {}
        for name, raw in raws.items():
            rows, columns = raw.shape[-2:]
            if abs(rows * width - columns * height) > max(height, width):  # more than rounding to a pixel
                raise ConditionError(
                    f"{sources[largest]} is {width} x {height} and {sources[name]} is {columns} x {rows}: the parts of "
                    "a condition are aligned with one image; give both the same aspect ratio"
                )
            same = (rows, columns) == (height, width)
            sized[name] = raw if same else self.parts[name].crop_resize(raw, Box(0, 0, columns, rows), (height, width))
        return sized

    def _joined(self, raws: Mapping[str, Tensor]) -> Shaped[Tensor, "K h w"]:
        """Join raw parts of one size; missing ones are absent."""
        height, width = next(iter(raws.values())).shape[-2:]
        flags = torch.tensor([name in raws for name in self.parts], dtype=self.raw_dtype)
        planes = [flags.view(-1, 1, 1).expand(-1, height, width)]
        for name, part in self.parts.items():
            raw = raws.get(name)
            planes.append(torch.zeros(part.planes, height, width) if raw is None else raw)
        return torch.cat([plane.to(self.raw_dtype) for plane in planes])

    # The parts of a raw tensor

    def given(self, raw: Shaped[Tensor, "*batch K h w"]) -> Bool[Tensor, "*batch P"]:
        """Which parts are given."""
        return raw[..., : len(self.parts), 0, 0] != 0

    def _split(self, raw: Shaped[Tensor, "*batch K h w"]) -> Iterator[tuple[Condition, Tensor]]:
        """Each part with its raw planes [*batch, K of the part, h, w] in its own dtype."""
        start = len(self.parts)
        for part in self.parts.values():
            yield part, raw.narrow(-3, start, part.planes).to(part.raw_dtype)
            start += part.planes

    def checked(self, raw: Tensor, source: str) -> Shaped[Tensor, "K h w"]:
        """Return `raw` if it is a valid raw tensor. Raises ConditionError that says what is expected."""
        if raw.ndim != 3 or len(raw) != self.planes or raw.dtype != self.raw_dtype or not raw.numel():
            raise ConditionError(
                f"{source}: expected [{self.planes}, h, w] of {self.raw_dtype}, a flag per part, 1 if it is given, "
                f"then their planes, got {list(raw.shape)} of {raw.dtype}; give the parts: {{{self._example()}}}"
            )
        flags = raw[: len(self.parts)]
        enough = flags.all() if self.together else flags.any()
        if not (((flags == 0) | (flags == 1)) & (flags == flags[:, :1, :1])).all() or not enough:
            raise ConditionError(
                f"{source}: the first {len(self.parts)} planes flag the given parts, each constant 1 or 0, and 1 for "
                f"{self._needed}; give the parts: {{{self._example()}}}"
            )
        start = len(self.parts)
        for (name, given), (part, planes) in zip(self._named_given(raw), self._split(raw), strict=True):
            stored = raw[start : start + part.planes]
            if not torch.equal(planes.to(raw.dtype).nan_to_num(), stored.nan_to_num()):
                raise ConditionError(f"{source}: the planes of '{name}' hold values that {part.raw_dtype} cannot")
            if given:
                part.checked(planes, f"{source}: {name}")
            start += part.planes
        return raw

    def _example(self) -> str:
        return ", ".join(f"'{name}': …" for name in self.parts)

    def _named_given(self, raw: Shaped[Tensor, "K h w"]) -> Iterator[tuple[str, bool]]:
        return zip(self.parts, self.given(raw).tolist(), strict=True)

    def crop_resize(self, raw: Shaped[Tensor, "K h w"], box: Box, size: Size) -> Shaped[Tensor, "K h2 w2"]:
        """Crop `box` and resize it, every part with its own filter."""
        cut = {name: part.crop_resize(planes, box, size) for name, (part, planes) in self.given_parts(raw).items()}
        return self._joined(cut) if cut else torch.zeros(self.planes, *sides_of(size), dtype=self.raw_dtype)

    def redrawn(self, raw: Shaped[Tensor, "K h w"], pen: Pen) -> Shaped[Tensor, "K h w"]:
        """Transform the lines of all parts that have some."""
        made = {name: part.redrawn(planes, pen) for name, (part, planes) in self.given_parts(raw).items()}
        return self._joined(made) if made else raw

    def flip(self, raw: Shaped[Tensor, "*batch K h w"]) -> Shaped[Tensor, "*batch K h w"]:
        """Mirror left to right."""
        flags = raw[..., : len(self.parts), :, :]
        mirrored = [part.flip(planes).to(raw.dtype) for part, planes in self._split(raw)]
        return torch.cat([flags, *mirrored], dim=-3)

    def named_parts(self) -> Mapping[str, Condition]:
        return self.parts

    def given_parts(self, raw: Shaped[Tensor, "K h w"]) -> Mapping[str, tuple[Condition, Tensor]]:
        parts = zip(self._named_given(raw), self._split(raw), strict=True)
        return {name: (part, planes) for (name, given), (part, planes) in parts if given}

    def settled(self, files: Sequence[Files]) -> tuple[Condition, list[str]]:
        """Settle every part by its own files."""
        parts, notes = dict(self.parts), list[str]()
        given = [file for file in files if isinstance(file, Mapping)]
        for name, part in self.parts.items():
            of_part = [item for file in given if (item := file.get(name)) is not None and is_source(item)]
            parts[name], said = part.settled(of_part)
            notes += [f"{name}: {note}" for note in said]
        return (self if parts == dict(self.parts) else replace(self, parts=parts)), notes

    def beside(self, path: object) -> Condition:
        if not isinstance(path, Mapping):
            return self
        parts = {
            name: part.beside(item) if is_source(item := path.get(name)) else part for name, part in self.parts.items()
        }
        return self if parts == dict(self.parts) else replace(self, parts=parts)

    # Encoding

    def encode(self, raw: Shaped[Tensor, "*batch K h w"]) -> Float[Tensor, "*batch C h w"]:
        """The channels of all parts, float32; an absent part is its null."""
        given = self.given(raw)  # [..., P]
        encoded = []
        for k, (part, planes) in enumerate(self._split(raw)):
            null = part.null(1, *raw.shape[-2:], device=raw.device)[0]  # [C of the part, h, w]
            encoded.append(torch.where(given[..., k, None, None, None], part.encode(planes), null))
        return torch.cat(encoded, dim=-3)

    def null(
        self,
        batch: int,
        height: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Shaped[Tensor, "batch C height width"]:
        """The null of every part."""
        return torch.cat([part.null(batch, height, width, device, dtype) for part in self.parts.values()], dim=1)

    @property
    def draws(self) -> int:
        """One for all parts together, then one for each that can be missing separately."""
        return 1 if self.together else len(self.parts) + 1

    def dropped(
        self, encoded: Shaped[Tensor, "B C h w"], uniform: Float[Tensor, "B draws"], p: float
    ) -> Shaped[Tensor, "B C h w"]:
        """Each part becomes null independently with probability `p`, and additionally all together with `p`.

        Of rows with all parts, a share (1 - p)^(P + 1) keeps them all, each part is null in 1 - (1 - p)^2, and all are
        null in p + (1 - p) p^P, which guidance uses. For p = 0.1 and two parts: 73%, 19% and 10.9%. With `together`,
        all become null at once, with `p`.
        """
        if self.together:
            return super().dropped(encoded, uniform, p)
        sizes = [part.channels for part in self.parts.values()]
        null = self.null(len(encoded), *encoded.shape[-2:], device=encoded.device)
        drop = (uniform[:, 1:] < p) | (uniform[:, :1] < p)  # [B, P]
        drop = drop.repeat_interleave(torch.tensor(sizes, device=drop.device), dim=1)
        drop = drop.to(encoded.device, non_blocking=True)  # [B, C]
        return torch.where(drop[..., None, None], null, encoded)

    # Previews

    def preview(self, raw: Shaped[Tensor, "K h w"]) -> Image.Image:
        """The parts' previews in a row."""
        return grid([self.previews(raw)], gap=0)

    def previews(self, raw: Shaped[Tensor, "K h w"]) -> list[Image.Image]:
        """A preview of each part, of the same size; grey with a cross for absent ones."""
        parts = zip(self._split(raw), self.given(raw).tolist(), strict=True)
        return [part.preview(planes) if given else _absent(*raw.shape[-2:]) for (part, planes), given in parts]

    # On disk

    def to_config(self) -> dict[str, Any]:
        """Kind, parts and `together` as plain data."""
        parts = [{"name": name, "condition": part.to_config()} for name, part in self.parts.items()]
        return {"kind": self.kind, "parts": parts} | ({"together": True} if self.together else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> SeveralCondition:
        """Build from `to_config`'s data, or with `parts` as a mapping. Raises ConditionError, naming source and key."""
        parts = {
            name: condition_from_config(part, f"{source}: parts.{name}")
            for name, part in part_configs(config, source).items()
        }
        try:
            return cls(parts, _SeveralConfig.parse(config, source).together)
        except ConditionError as error:
            raise error.about(source) from None

    def saved_in(self, folder: Path) -> SeveralCondition:
        return replace(self, parts={name: part.saved_in(folder) for name, part in self.parts.items()})

    def found_in(self, folder: Path) -> SeveralCondition:
        return replace(self, parts={name: part.found_in(folder) for name, part in self.parts.items()})

    def reads_like(self, other: Condition) -> bool:
        """Whether the other has the same parts in the same order, and the same `together`."""
        if not isinstance(other, SeveralCondition):
            return False
        if (list(self.parts), self.together) != (list(other.parts), other.together):
            return False
        return all(part.reads_like(other.parts[name]) for name, part in self.parts.items())


def part_configs(config: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The configuration of each part of a condition of kind `several`, by name. Raises ConditionError."""
    try:
        parts = _SeveralConfig.parse(config, source).parts
    except SpecError as error:
        raise ConditionError.like(error) from None
    named = {part.name: part.condition for part in parts}
    if len(named) < len(parts):
        raise ConditionError(
            f"{source}: parts: {', '.join(part.name for part in parts)}: every part needs its own name"
        )
    return named


# Small parts


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether `wide` represents every value of `narrow` exactly."""
    if narrow.is_floating_point:
        if not wide.is_floating_point:
            return False
        outer, inner = torch.finfo(wide), torch.finfo(narrow)
        return outer.eps <= inner.eps and outer.max >= inner.max
    low, high = torch.iinfo(narrow).min, torch.iinfo(narrow).max
    if wide.is_floating_point:
        return high <= 2 / torch.finfo(wide).eps
    return torch.iinfo(wide).min <= low and high <= torch.iinfo(wide).max


def _named(name: str, item: Given) -> str:
    """What to call a part's input in errors."""
    return f"the given {name}" if isinstance(item, Image.Image | Tensor | np.ndarray) else str(item)


def _absent(height: int, width: int) -> Image.Image:
    """The preview of an absent part."""
    picture = Image.new("RGB", (width, height), _ABSENT)
    draw = ImageDraw.Draw(picture)
    for ends in ((0, 0, width - 1, height - 1), (0, height - 1, width - 1, 0)):
        draw.line(ends, "white", width=max(1, min(height, width) // 24))
    return picture
