"""Reading mask files as class indices, by ids or by class colours, which is decided for a set of files.

The values of a grey image, the indices of a palette image, and grey RGB images (some tools save id maps so) may be ids
or colours. A coloured RGB image contains colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from piti.conditions.base import ConditionError
from piti.conditions.class_table import MAX_ID, ClassTable, Reading

_UNKNOWN = -1  # result of look-ups for unknown values
_FOREIGN = -2  # result for a class of the files' table that the condition lacks
_NAMED = 5  # number of ids or colours listed in an error
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "RGBX")
HOW_TO_DECIDE = 'add "reading": "ids" or "reading": "colours" to classes.json'


class UndecidedMask(ConditionError):
    """An ambiguous mask: its values may be ids or colours."""


@dataclass(frozen=True)
class Look:
    """The possible readings of a mask.

    natural: the usual reading of such an image. ids, colours: the indices that occur by either reading, None if it does
    not fit. differ: whether both fit with different results. example: a value that differs, in words. blank: whether by
    colours it is entirely unlabelled, which is no evidence; such a file is read like the others.
    """

    natural: Reading
    ids: frozenset[int] | None
    colours: frozenset[int] | None
    differ: bool = False
    example: str = ""
    blank: bool = False
    palette: frozenset[tuple[int, int]] = frozenset()
    """For a palette image with known colours: its indices, each with the index of the class of its colour."""

    @property
    def fits(self) -> list[Reading]:
        """The readings that fit."""
        said: dict[Reading, frozenset[int] | None] = {"ids": self.ids, "colours": self.colours}
        return [reading for reading, found in said.items() if found is not None]

    @property
    def chosen(self) -> Reading | None:
        """The default reading; None if both fit and differ, whatever the file's mode."""
        if len(self.fits) == 1:
            return self.fits[0]
        return None if self.differ and not self.blank else self.natural


@dataclass(frozen=True)
class _Planes:
    """An image's values: one per pixel with its colour, or three."""

    natural: Reading
    values: Integer[np.ndarray, "h w"] | None
    colour_of: UInt8[np.ndarray, "n 3"] | None
    colours: UInt8[np.ndarray, "h w 3"] | None
    transparent: Bool[np.ndarray, "h w"] | None
    paletted: bool = False

    @cached_property
    def used(self) -> Integer[np.ndarray, " m"]:
        """The distinct values of visible pixels."""
        assert self.values is not None
        visible = self.values if self.transparent is None else self.values[~self.transparent]
        if visible.size and visible.min() >= 0 and visible.max() <= MAX_ID:
            return np.flatnonzero(np.bincount(visible.reshape(-1)))
        return np.unique(visible)


@dataclass(frozen=True)
class MaskReader:
    """Reads masks with the ids and colours of `table` as indices of the classes `names`.

    ignored: the index of unlabelled pixels.
    """

    table: ClassTable
    names: tuple[str, ...]
    ignored: int

    # Reading

    def look(self, image: Image.Image, source: str) -> Look:
        """The possible readings of a decoded mask. Raises ConditionError for other images."""
        return self._look(_planes(image, source))

    def read(self, image: Image.Image, source: str, reading: Reading | None) -> Integer[np.ndarray, "h w"]:
        """The indices of a decoded mask, int16. reading: for images that may be either; None: inferred.

        Raises ConditionError if no reading fits, naming values and counts, and if both fit and differ.
        """
        planes = _planes(image, source)
        chosen: Reading | None = reading if planes.values is not None else "colours"
        if chosen is None:
            look = self._look(planes)
            chosen = look.chosen if look.fits else self._meant(planes)
            if chosen is None:
                raise undecided(look, source)
        indices = self._by_ids(planes, source) if chosen == "ids" else self._by_colours(planes, source)
        return indices if planes.transparent is None else np.where(planes.transparent, np.int16(self.ignored), indices)

    def _look(self, planes: _Planes) -> Look:
        if planes.values is None:
            return Look("colours", None, frozenset({self.ignored}))
        used = planes.used
        by_ids, by_colours = self.from_ids(used), self._colours_of(planes, used)
        ids, colours = (_seen(found) for found in (by_ids, by_colours))
        differ = ids is not None and colours is not None and bool((by_ids != by_colours).any())
        palette = frozenset(zip(used.tolist(), by_colours.tolist(), strict=True)) if planes.paletted else frozenset()
        palette = frozenset() if colours is None else palette
        if not differ:
            return Look(planes.natural, ids, colours, palette=palette)
        place = int(np.flatnonzero(by_ids != by_colours)[-1])
        said = [self._called(int(found[place])) for found in (by_ids, by_colours)]
        example = f"{int(used[place])} is the id of {said[0]}, or the colour of {said[1]}"
        return Look(planes.natural, ids, colours, True, example, colours == frozenset({self.ignored}), palette)

    def _meant(self, planes: _Planes) -> Reading:
        """For a palette, the reading with more known entries; for others the usual one."""
        if planes.colours is None or planes.natural == "colours":
            return planes.natural
        used = planes.used
        known = [int((found >= 0).sum()) for found in (self.from_ids(used), self._colours_of(planes, used))]
        return "colours" if known[1] > known[0] else "ids"

    def _called(self, index: int) -> str:
        return "unlabelled pixels" if index == self.ignored else f"'{self.names[index]}'"

    # Ids and colours to indices

    def from_ids(self, ids: Integer[np.ndarray, "*any"]) -> Integer[np.ndarray, "*any"]:
        """The indices of ids, below 0 for unknown ones."""
        inside = (ids >= 0) & (ids <= MAX_ID)
        return np.where(inside, self._index_of_id[ids.clip(0, MAX_ID)], np.int16(_UNKNOWN))

    def from_colours(self, colours: UInt8[np.ndarray, "*any 3"]) -> Integer[np.ndarray, "*any"]:
        """The indices of colours, below 0 for unknown ones."""
        known, indices = self._index_of_colour
        codes = _pack(colours)
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[place] == codes, indices[place], np.int16(_UNKNOWN))

    def _colours_of(self, planes: _Planes, values: Integer[np.ndarray, " m"]) -> Integer[np.ndarray, " m"]:
        assert planes.colour_of is not None
        inside = (values >= 0) & (values < len(planes.colour_of))
        found = self.from_colours(planes.colour_of[values.clip(0, len(planes.colour_of) - 1)])
        return np.where(inside, found, np.int16(_UNKNOWN))

    @cached_property
    def greys_differ(self) -> bool:
        """Whether values of a grey image may be a class by colour, and something else by id."""
        values = np.arange(256)
        by_ids = self.from_ids(values)
        by_colours = self.from_colours(np.repeat(values.astype(np.uint8)[:, None], 3, 1))
        classes = (by_colours >= 0) & (by_colours != self.ignored)
        return bool((classes & (by_ids != by_colours)).any())

    @cached_property
    def _own(self) -> list[int]:
        """For each class of the table, the index of the class with the same name."""
        if self.table.names == self.names:
            return list(range(len(self.names)))
        place = {_plain(name): index for index, name in reversed(list(enumerate(self.names)))}
        place |= {name: index for index, name in enumerate(self.names)}
        return [place.get(name, place.get(_plain(name), _FOREIGN)) for name in self.table.names]

    @cached_property
    def _index_of_id(self) -> Integer[np.ndarray, " ids"]:
        table = np.full(MAX_ID + 1, _UNKNOWN, np.int16)
        if self.table.ignore is not None:
            table[self.table.ignore] = self.ignored
        table[list(self.table.ids)] = self._own
        return table

    @cached_property
    def _index_of_colour(self) -> tuple[Integer[np.ndarray, " colours"], Integer[np.ndarray, " colours"]]:
        """Packed colours in ascending order, and the index of each."""
        colours, indices = list(self.table.colours), list(self._own)
        if self.table.ignore_colour is not None:
            colours.append(self.table.ignore_colour)
            indices.append(self.ignored)
        codes = _pack(np.array(colours, np.uint8))
        order = np.argsort(codes)
        return codes[order], np.array(indices, np.int16)[order]

    # Errors

    def _by_ids(self, planes: _Planes, source: str) -> Integer[np.ndarray, "h w"]:
        values = planes.values
        if values is None:
            raise ConditionError(f'{source}: holds colours, and the masks\' "reading" is ids; save ids as grey PNG')
        indices, ignore = self.from_ids(values), self.table.ignore
        unknown = _visible(indices < 0, planes.transparent)
        if unknown.any():
            self._refuse_foreign(indices[unknown], source)
            counted = _counted(values[unknown])
            found = [(f"id {value}", count) for value, count in counted]
            raise ConditionError(
                f"{_listed(found)} not in the class table (ids {_span(self.table.ids)}){self._shifted(planes)}",
                remedy="relabel these pixels" + (f" ({ignore} is unlabelled)" if ignore is not None else ""),
                local_remedy="add the class to classes.json"
                + (f', or "ignore": {counted[0][0]} if these pixels are unlabelled' if ignore is None else ""),
                source=source,
            )
        return indices

    def _shifted(self, planes: _Planes) -> str:
        """A hint if the ids that occur are the table's shifted by one; else empty."""
        ids = set(self.table.ids)
        used = {int(value) for value in planes.used if value != self.table.ignore}
        for shift, said in ((1, "above"), (-1, "below")):
            first = min(ids) + shift
            if first >= 0 and used and {value - shift for value in used} <= ids:
                return (
                    f": every id is one {said} an id of the table; if ids start there, begin the table with "
                    f'"id": {first}'
                )
        return ""

    def _by_colours(self, planes: _Planes, source: str) -> Integer[np.ndarray, "h w"]:
        if planes.colours is None:
            raise ConditionError(
                f'{source}: holds numbers of more than 8 bits, and the masks\' "reading" is colours; save RGB PNG'
            )
        indices = self.from_colours(planes.colours)
        unknown = _visible(indices < 0, planes.transparent)
        if unknown.any():
            self._refuse_foreign(indices[unknown], source)
            codes = _counted(_pack(planes.colours[unknown]))
            found = [(f"colour {(code >> 16, code >> 8 & 255, code & 255)}", count) for code, count in codes]
            raise ConditionError(
                f"{_listed(found)} not in the class table",
                remedy="save the mask without anti-aliasing and as PNG (JPEG changes colours)",
                local_remedy="add the colour to classes.json",
                source=source,
            )
        return indices

    def _refuse_foreign(self, indices: Integer[np.ndarray, " n"], source: str) -> None:
        """Raises ConditionError if classes of the files' own table are missing in the condition."""
        if not (indices == _FOREIGN).any():
            return
        foreign = [f"'{name}'" for name, index in zip(self.table.names, self._own, strict=True) if index == _FOREIGN]
        raise ConditionError(
            f"the classes.json beside the masks has classes that the model lacks ({', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}), and masks use them",
            remedy=f"rename them to the model's ({', '.join(self.names[:8])}{', …' if len(self.names) > 8 else ''}), "
            "or relabel the pixels",
            source=source,
        )


def undecided(look: Look, source: str, files: str = "") -> UndecidedMask:
    """The error for ambiguous values. files: the number of such files, in words."""
    of_both = f"the values may be ids or class colours, and both fit{files}: {look.example}"
    remedy = "save ids as 16-bit grey PNG, which cannot hold colours"
    return UndecidedMask(of_both, remedy=remedy, local_remedy=HOW_TO_DECIDE, source=source)


# Images to values


def _planes(image: Image.Image, source: str) -> _Planes:
    """A decoded image's values. Raises ConditionError for unsupported modes."""
    hidden = _transparent(image)
    if image.mode in _GREY_MODES or image.mode.startswith("I"):
        values = np.asarray(image.getchannel("L") if image.mode == "LA" else image).astype(np.int64)
        greys = np.arange(256, dtype=np.uint8) if image.mode != "1" else np.array([0, 255], np.uint8)
        colour_of = np.repeat(greys[:, None], 3, 1)
        deep = image.mode.startswith("I")
        inside = colour_of[values.clip(0, len(greys) - 1)] if not deep else None
        return _Planes("ids", values, colour_of, inside, hidden)
    if image.mode in ("P", "PA"):
        indices = np.asarray(image.getchannel("P") if image.mode == "PA" else image).astype(np.int64)
        palette = np.zeros((256, 3), np.uint8)
        entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette[: len(entries)] = entries
        return _Planes("ids", indices, palette, palette[indices], hidden, paletted=True)
    if image.mode in _COLOUR_MODES:
        colours = np.asarray(image.convert("RGB"))
        seen = colours if hidden is None else colours[~hidden]
        grey = bool((seen == seen[..., :1]).all())
        greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
        values = colours[..., 0].astype(np.int64) if grey else None
        return _Planes("colours", values, greys if grey else None, colours, hidden)
    raise ConditionError(f"{source}: a {image.mode} image cannot be a mask; save ids as grey PNG or colours as RGB PNG")


def _transparent(image: Image.Image) -> Bool[np.ndarray, "h w"] | None:
    """Fully transparent pixels, for any mode; None if the image has no transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I") or image.mode == "1":
        clear = image.info.get("transparency")
        values = np.asarray(image).astype(np.int64) * (255 if image.mode == "1" else 1)
        return values == clear if isinstance(clear, int) else None
    return np.asarray(image.convert("RGBA").getchannel("A")) == 0


# Small parts


def _plain(name: str) -> str:
    """A normalised class name."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _seen(found: Integer[np.ndarray, " m"]) -> frozenset[int] | None:
    """The indices that occur; None if some are unknown."""
    return None if (found < 0).any() else frozenset(found.tolist())


def _pack(colours: UInt8[np.ndarray, "*any 3"]) -> Integer[np.ndarray, "*any"]:
    """One integer per colour: 0xRRGGBB."""
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _visible(mask: Bool[np.ndarray, "h w"], transparent: Bool[np.ndarray, "h w"] | None) -> Bool[np.ndarray, "h w"]:
    return mask if transparent is None else mask & ~transparent


def _counted(values: Integer[np.ndarray, "*any"]) -> list[tuple[int, int]]:
    """Distinct values with their counts, most frequent first."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(distinct[i]), int(counts[i])) for i in order]


def _listed(found: Sequence[tuple[str, int]]) -> str:
    """ "colour (1, 2, 3) on 40 pixels, … and 3 more", then its verb."""
    named = ", ".join(f"{what} on {count} pixel{'s' * (count != 1)}" for what, count in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{named}{more} {'is' if len(found) == 1 else 'are'}"


def _span(ids: Sequence[int]) -> str:
    """ "0..10", or a list if there are gaps."""
    if len(ids) > 2 and max(ids) - min(ids) + 1 == len(ids):
        return f"{min(ids)}..{max(ids)}"
    return ", ".join(map(str, sorted(ids)[:12])) + (", …" if len(ids) > 12 else "")
