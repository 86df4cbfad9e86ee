"""Segmentation masks: class-id maps and palette pictures, by a table of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from piti.conditions.base import Condition, ConditionError, Size, register, sides_of
from piti.core.images import Box
from piti.core.spec import Spec, SpecError

Colour = tuple[int, int, int]

_UNKNOWN = -1
_MAX_ID = 65535  # what a 16-bit PNG can hold


class _ClassEntry(Spec):
    """One class as classes.json writes it."""

    id: int
    name: str
    color: Colour


class _ClassesFile(Spec):
    """The layout of classes.json."""

    classes: list[_ClassEntry]
    ignore: int | None = None
    ignore_color: Colour | None = None


class ClassTable(Spec):
    """The classes of a mask; position in the table is the *index* that raw tensors and channels use.

    names: one a class. ids: the pixel values of class-id maps, 0..65535, in any order, gaps allowed.
    colours: the RGB of palette pictures and previews. ignore: the id of unlabelled pixels, if any.
    ignore_colour: their colour; black unless a class is black.
    """

    names: tuple[str, ...] = Field(min_length=1)
    ids: tuple[int, ...]
    colours: tuple[Colour, ...]
    ignore: int | None = 255
    ignore_colour: Colour | None = None

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.names)

    @classmethod
    def read(cls, path: str | Path) -> ClassTable:
        """Read a classes.json: `{"classes": [{"id", "name", "color": [r, g, b]}, …], "ignore": id}`.

        "ignore" and "ignore_color" may be left out. Raises ConditionError, naming file and key.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConditionError(f"{path}: cannot read the class table ({error}); check the path") from error
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConditionError(f"{path}: not valid JSON ({error}); correct it there") from error
        if not isinstance(values, dict):
            raise ConditionError(f"{path}: expected an object with 'classes', got {type(values).__name__}")
        try:
            file = _ClassesFile.parse(values, str(path))
            return cls.parse(
                {
                    "names": [entry.name for entry in file.classes],
                    "ids": [entry.id for entry in file.classes],
                    "colours": [entry.color for entry in file.classes],
                    "ignore": file.ignore,
                    "ignore_colour": file.ignore_color,
                },
                str(path),
            )
        except SpecError as error:
            raise ConditionError.like(error) from None

    @model_validator(mode="before")
    @classmethod
    def _black_is_ignored(cls, values: Any) -> Any:
        """Unless a colour for unlabelled pixels is given or a class is black, it is black."""
        if isinstance(values, Mapping) and values.get("ignore_colour") is None:
            colours = values.get("colours") or ()
            if not any(list(colour) == [0, 0, 0] for colour in colours if isinstance(colour, Sequence)):
                return {**values, "ignore_colour": (0, 0, 0)}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ClassTable:
        if not len(self.names) == len(self.ids) == len(self.colours):
            counts = f"{len(self.names)} names, {len(self.ids)} ids, {len(self.colours)} colours"
            raise ValueError(f"every class needs a name, an id and a colour: got {counts}")
        for key, values in (("name", self.names), ("id", self.ids), ("color", self.colours)):
            self._refuse_repeats(key, values)
        for position, (name, value) in enumerate(zip(self.names, self.ids, strict=True)):
            if not 0 <= value <= _MAX_ID:
                raise ValueError(f"classes.{position}.id = {value} ('{name}'): ids lie in 0..{_MAX_ID}")
        for name, colour in [*zip(self.names, self.colours, strict=True), ("ignore", self.ignore_colour)]:
            if colour is not None and not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"color = {list(colour)} ('{name}'): red, green and blue lie in 0..255")
        if self.ignore is not None and not 0 <= self.ignore <= _MAX_ID:
            raise ValueError(f"ignore = {self.ignore}: ids lie in 0..{_MAX_ID}")
        if self.ignore in self.ids:
            name = self.names[self.ids.index(self.ignore)]
            raise ValueError(f"ignore = {self.ignore} is also the id of '{name}'; choose another id")
        if self.ignore_colour in self.colours:
            name = self.names[self.colours.index(self.ignore_colour)]
            raise ValueError(f"ignore_color = {list(self.ignore_colour)} is also the colour of '{name}'")
        return self

    def _refuse_repeats(self, key: str, values: Sequence[Any]) -> None:
        first: dict[Any, int] = {}
        for position, value in enumerate(values):
            if value in first:
                places = f"classes.{first[value]}.{key} and classes.{position}.{key}"
                names = f"'{self.names[first[value]]}' and '{self.names[position]}'"
                raise ValueError(f"{places} are both {value!r} ({names}); every class needs its own {key}")
            first[value] = position


class _MaskConfig(Spec):
    """What a mask condition, or one of its kin, saves."""

    kind: str
    classes: ClassTable
    null_value: float | None = None


@register
@dataclass(frozen=True)
class MaskCondition(Condition):
    """A segmentation mask, one channel a class.

    Raw form: class *indices* [1, h, w], uint8 with 255 for unlabelled (int16 with 32767 where the
    table has more than 255 classes). Encoded: one-hot, unlabelled pixels zero in every channel.
    null_value fills the null condition (1.0 for weights imported from the released GLIDE-size models).

    Files may be, decided by their pixels:

    - grey pictures of 1, 8 or 16 bits: class ids; transparent pixels are unlabelled;
    - palette pictures: class colours where every colour in use is in the table, else the palette's
      indices are class ids;
    - RGB(A): class colours, matched exactly; fully transparent pixels are unlabelled. A grey one
      whose colours are not all in the table is read as ids (some tools save id maps as RGB).
    """

    kind: ClassVar[str] = "mask"

    classes: ClassTable
    null_value: float = 0.0

    @property
    def channels(self) -> int:
        """Number of classes."""
        return self.classes.count

    @property
    def ignore_index(self) -> int:
        """The raw value of unlabelled pixels."""
        return 255 if self.classes.count <= 255 else 32767

    @property
    def raw_dtype(self) -> torch.dtype:
        """uint8, or int16 where the table has more than 255 classes."""
        return torch.uint8 if self.ignore_index == 255 else torch.int16

    def read(self, image: Image.Image, source: str) -> Integer[Tensor, "1 h w"]:
        """Indices of a decoded mask; see the class for what it may be.

        Raises ConditionError for ids or colours that the table lacks, naming them with their counts.
        """
        transparent = None
        if image.has_transparency_data and image.mode in ("L", "LA", "RGB", "RGBA", "PA"):
            transparent = np.asarray(image.convert("RGBA").getchannel("A")) == 0
        if image.mode == "P":
            indices = self._read_palette(image, source)
        elif image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
            ids = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
            indices = self._read_ids(ids.astype(np.int64), source, transparent)
        elif image.mode in ("RGB", "RGBA", "RGBX", "PA"):
            indices = self._read_colours(np.asarray(image.convert("RGB")), source, transparent)
        else:
            raise ConditionError(
                f"{source}: a {image.mode} picture is no mask; save ids as grey PNG or colours as RGB PNG"
            )
        if transparent is not None:
            indices = np.where(transparent, self.ignore_index, indices)
        return torch.from_numpy(indices.astype(self._dtype))[None]

    def checked(self, raw: Tensor, source: str) -> Integer[Tensor, "1 h w"]:
        """Class indices [1, h, w] as they are. Raises ConditionError for another shape, type, or index."""
        if raw.ndim != 3 or len(raw) != 1 or raw.is_floating_point() or raw.is_complex():
            shape = f"{list(raw.shape)} of {raw.dtype}"
            raise ConditionError(f"{source}: expected class indices [1, h, w] of an integer type, got {shape}")
        odd = raw[(raw != self.ignore_index) & ((raw < 0) | (raw >= self.classes.count))]
        if len(odd):
            raise ConditionError(
                f"{source}: {len(odd)} pixels hold indices such as {int(odd[0])}; "
                f"classes are 0..{self.classes.count - 1}, unlabelled is {self.ignore_index}"
            )
        return raw

    def crop_resize(self, raw: Integer[Tensor, "1 h w"], box: Box, size: Size) -> Integer[Tensor, "1 h2 w2"]:
        """Cut `box` out and resize it, nearest neighbour, as PIL's NEAREST to the pixel."""
        height, width = sides_of(size)
        rows = nearest_positions(box.top, box.height, height)
        columns = nearest_positions(box.left, box.width, width)
        return raw[:, rows[:, None], columns]

    def encode(self, raw: Integer[Tensor, "*batch 1 h w"]) -> Float[Tensor, "*batch C h w"]:
        """One-hot float32; unlabelled pixels are zero in every channel."""
        classes = torch.arange(self.classes.count, dtype=raw.dtype, device=raw.device)  # [C]
        return (raw == classes[:, None, None]).float()  # [..., C, h, w]

    def preview(self, raw: Integer[Tensor, "1 h w"]) -> Image.Image:
        """The mask in its classes' colours; `read` of the result gives `raw` again.

        Unlabelled pixels are black where the table gives them no colour; if a class is black too, they are
        read as that class.
        """
        return Image.fromarray(self._colour_of_index[raw[0].cpu().numpy()])

    def to_config(self) -> dict[str, Any]:
        """Kind, table and null value as plain data."""
        return _MaskConfig(kind=self.kind, classes=self.classes, null_value=self.null_value).to_dict()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> MaskCondition:
        """Build from `to_config`'s data. Raises ConditionError, naming source and key."""
        try:
            parsed = _MaskConfig.parse(config, source)
        except SpecError as error:
            raise ConditionError.like(error) from None
        return cls(parsed.classes) if parsed.null_value is None else cls(parsed.classes, parsed.null_value)

    # Ids and colours to indices. Look-ups give _UNKNOWN for what the table lacks.

    @property
    def _dtype(self) -> type[np.generic]:
        return np.uint8 if self.ignore_index == 255 else np.int16

    @cached_property
    def _colour_of_index(self) -> UInt8[np.ndarray, "indices 3"]:
        """The RGB of every raw value; unlabelled pixels are black where the table gives them no colour."""
        colours = np.zeros((self.ignore_index + 1, 3), np.uint8)
        colours[: self.classes.count] = self.classes.colours
        colours[self.ignore_index] = self.classes.ignore_colour or (0, 0, 0)
        return colours

    @cached_property
    def _index_of_id(self) -> Integer[np.ndarray, "*table"]:
        table = np.full(_MAX_ID + 1, _UNKNOWN, np.int16)
        if self.classes.ignore is not None:
            table[self.classes.ignore] = self.ignore_index
        table[list(self.classes.ids)] = np.arange(self.classes.count)
        return table

    @cached_property
    def _index_of_colour(self) -> tuple[Integer[np.ndarray, "*colours"], Integer[np.ndarray, "*colours"]]:
        """Packed colours in ascending order, and the index of each."""
        colours, indices = list(self.classes.colours), list(range(self.classes.count))
        if self.classes.ignore_colour is not None:
            colours.append(self.classes.ignore_colour)
            indices.append(self.ignore_index)
        codes = _pack(np.array(colours, np.uint8))
        order = np.argsort(codes)
        return codes[order], np.array(indices, np.int16)[order]

    def _from_ids(self, ids: Integer[np.ndarray, "*any"]) -> Integer[np.ndarray, "*any"]:
        inside = (ids >= 0) & (ids <= _MAX_ID)
        return np.where(inside, self._index_of_id[ids.clip(0, _MAX_ID)], _UNKNOWN)

    def _from_colours(self, colours: UInt8[np.ndarray, "*any 3"]) -> Integer[np.ndarray, "*any"]:
        known, indices = self._index_of_colour
        codes = _pack(colours)
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[place] == codes, indices[place], np.int16(_UNKNOWN))

    def _read_ids(
        self,
        ids: Integer[np.ndarray, "h w"],
        source: str,
        transparent: Bool[np.ndarray, "h w"] | None = None,
    ) -> Integer[np.ndarray, "h w"]:
        indices = self._from_ids(ids)
        unknown = _visible(indices == _UNKNOWN, transparent)
        if unknown.any():
            found = [(f"id {value}", count) for value, count in _counted(ids[unknown])]
            raise ConditionError(
                f"{_listed(found)} not in the class table (ids {_span(self.classes.ids)})",
                remedy=f"relabel these pixels (ignore = {self.classes.ignore} for unlabelled ones)",
                local_remedy="add the class to classes.json",
                source=source,
            )
        return indices

    def _read_colours(
        self,
        colours: UInt8[np.ndarray, "h w 3"],
        source: str,
        transparent: Bool[np.ndarray, "h w"] | None = None,
    ) -> Integer[np.ndarray, "h w"]:
        indices = self._from_colours(colours)
        unknown = _visible(indices == _UNKNOWN, transparent)
        if not unknown.any():
            return indices
        if (colours == colours[..., :1]).all():  # grey: perhaps an id map saved as RGB
            ids = self._from_ids(colours[..., 0])
            if not _visible(ids == _UNKNOWN, transparent).any():
                return ids
        codes = _counted(_pack(colours[unknown]))
        found = [(f"colour {(code >> 16, code >> 8 & 255, code & 255)}", count) for code, count in codes]
        raise ConditionError(
            f"{_listed(found)} not in the class table",
            remedy="save the mask without anti-aliasing and as PNG (JPEG changes colours)",
            local_remedy="add the colour to classes.json",
            source=source,
        )

    def _read_palette(self, image: Image.Image, source: str) -> Integer[np.ndarray, "h w"]:
        """Palette colours if all that are used are known and not only the unlabelled one, else ids."""
        values = np.asarray(image)
        used = np.unique(values)
        palette = np.zeros((256, 3), np.uint8)
        entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette[: len(entries)] = entries
        from_colours = self._from_colours(palette)
        from_colours[_transparent_entries(image)] = self.ignore_index
        known = from_colours[used]
        if (known != _UNKNOWN).all() and (known != self.ignore_index).any():
            return from_colours[values]
        if (known != _UNKNOWN).sum() > (self._from_ids(used) != _UNKNOWN).sum():
            return self._read_colours(palette[values], source)  # meant as colours: name the wrong ones
        return self._read_ids(values, source)


# Small parts


def _pack(colours: UInt8[np.ndarray, "*any 3"]) -> Integer[np.ndarray, "*any"]:
    """One integer a colour: 0xRRGGBB."""
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _visible(mask: Bool[np.ndarray, "h w"], transparent: Bool[np.ndarray, "h w"] | None) -> Bool[np.ndarray, "h w"]:
    return mask if transparent is None else mask & ~transparent


def _transparent_entries(image: Image.Image) -> list[int]:
    """Palette indices that are fully transparent (PNG's tRNS: one index, or an alpha for each)."""
    alpha = image.info.get("transparency")
    if isinstance(alpha, bytes):
        return [index for index, value in enumerate(alpha) if value == 0]
    return [alpha] if isinstance(alpha, int) else []


def _counted(values: Integer[np.ndarray, "*any"]) -> list[tuple[int, int]]:
    """Distinct values with their counts, most frequent first."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(distinct[i]), int(counts[i])) for i in order]


def _listed(found: Sequence[tuple[str, int]], most: int = 5) -> str:
    """ "colour (1, 2, 3) on 40 pixels, … and 3 more", then its verb."""
    named = ", ".join(f"{what} on {count} pixel{'s' * (count != 1)}" for what, count in found[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{named}{more} {'is' if len(found) == 1 else 'are'}"


def _span(ids: Sequence[int]) -> str:
    """ "0..10", or a list where there are gaps."""
    if len(ids) > 2 and max(ids) - min(ids) + 1 == len(ids):
        return f"{min(ids)}..{max(ids)}"
    return ", ".join(map(str, sorted(ids)[:12])) + (", …" if len(ids) > 12 else "")


def nearest_positions(start: int, length: int, size: int) -> Integer[Tensor, "*positions"]:
    """Source positions of `size` samples over [start, start + length), rounded as PIL does.

    PIL adds the step up in float64 instead of multiplying; the sum's rounding is part of the result.
    """
    step = length / size
    steps = np.full(size, step)
    steps[0] = step * 0.5
    return torch.from_numpy(np.cumsum(steps).astype(np.int64).clip(max=length - 1) + start)
