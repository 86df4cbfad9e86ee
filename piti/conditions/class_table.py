"""Class tables of masks: names, ids and colours, and the file formats of classes.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import ImageColor
from pydantic import Field, model_serializer, model_validator

from piti.conditions.base import ConditionError
from piti.core.json_files import JsonError, read_json
from piti.core.spec import Spec, SpecError

Colour = tuple[int, int, int]
Reading = Literal["ids", "colours"]
"""How the values of a mask file are read."""

MAX_ID = 65535
"""Largest value of a 16-bit PNG."""


class _ClassEntry(Spec):
    """A class in classes.json."""

    id: int
    name: str
    color: Colour


class _ClassesFile(Spec):
    """The layout of classes.json."""

    classes: list[_ClassEntry] = Field(min_length=1)
    ignore: int | None = None
    ignore_color: Colour | None = None
    reading: Reading | None = None


class ClassTable(Spec):
    """The classes of a mask; position in the table is the *index* that raw tensors and channels use.

    names: one per class. ids: the pixel values of class-id maps, 0..65535, in any order, gaps allowed. colours: the RGB
    colours of palette images and previews. ignore: the id of unlabelled pixels, if any. ignore_colour: their colour;
    black unless a class is black. reading: how mask files are read, if fixed; else it is inferred from them, see
    `MaskCondition`.
    """

    names: tuple[str, ...] = Field(min_length=1)
    ids: tuple[int, ...]
    colours: tuple[Colour, ...]
    ignore: int | None = 255
    ignore_colour: Colour | None = None
    reading: Reading | None = None

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.names)

    @classmethod
    def read(cls, path: str | Path) -> ClassTable:
        """Read a classes.json: `{"classes": [{"id", "name", "color": [r, g, b]}, …], "ignore": id}`.

        "ignore", "ignore_color" and "reading" are optional, and colours may be strings such as "#ff8000". Without any
        "id", classes are numbered by position; without any "color", they get those of `bit_colours`, and masks must
        hold ids. A list of names, a mapping from number to name, and COCO's "categories" are accepted too. Unlabelled
        pixels have an id only if "ignore" sets it. Raises ConditionError, naming file and key.
        """
        try:
            values = read_json(Path(path))
        except JsonError as error:
            written = Path(path).exists()
            remedy = error.remedy if written else 'list the classes in the order of their ids, such as ["sky", "road"]'
            raise ConditionError(f"cannot read the class table ({error.problem})", remedy=remedy, source=path) from None
        try:
            file = _ClassesFile.parse(_usual_form(values, str(path)), str(path))
            return cls.parse(
                {
                    "names": [entry.name for entry in file.classes],
                    "ids": [entry.id for entry in file.classes],
                    "colours": [entry.color for entry in file.classes],
                    "ignore": file.ignore,
                    "ignore_colour": file.ignore_color,
                    "reading": file.reading,
                },
                str(path),
            )
        except SpecError as error:
            raise ConditionError.like(error) from None

    @model_serializer(mode="wrap")
    def _without_what_is_not_decided(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        values = plain(self)
        return values if self.reading else {key: value for key, value in values.items() if key != "reading"}

    def to_file(self) -> dict[str, Any]:
        """The data of a classes.json."""
        rows = zip(self.ids, self.names, self.colours, strict=True)
        classes = [{"id": number, "name": name, "color": list(colour)} for number, name, colour in rows]
        ignore_colour = list(self.ignore_colour) if self.ignore_colour else None
        values = {"classes": classes, "ignore": self.ignore, "ignore_color": ignore_colour}
        return values | ({"reading": self.reading} if self.reading else {})

    @model_validator(mode="before")
    @classmethod
    def _black_is_ignored(cls, values: Any) -> Any:
        """The colour of unlabelled pixels is black, unless one is given or a class is black."""
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
            if not 0 <= value <= MAX_ID:
                raise ValueError(f"classes.{position}.id = {value} ('{name}'): ids lie in 0..{MAX_ID}")
        for name, colour in [*zip(self.names, self.colours, strict=True), ("ignore", self.ignore_colour)]:
            if colour is not None and not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"color = {list(colour)} ('{name}'): red, green and blue lie in 0..255")
        if self.ignore is not None and not 0 <= self.ignore <= MAX_ID:
            raise ValueError(f"ignore = {self.ignore}: ids lie in 0..{MAX_ID}")
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


CLASSES_FILE = "classes.json"
_ABOVE = 8  # number of folders upwards from a mask to look for its table: labels/train/city, …, labels, the data root


def table_beside(path: str | Path) -> ClassTable | None:
    """The class table in a file's folder, or in the nearest folder above it. Raises ConditionError if it is damaged."""
    named = Path(path).absolute()
    for start in dict.fromkeys((named, named.resolve())):  # the given path, and the target of links
        for folder in list(start.parents)[:_ABOVE]:
            place = folder / CLASSES_FILE
            if place.is_file():
                state = place.stat()
                return _kept(place, state.st_mtime_ns, state.st_size)
    return None


@lru_cache(maxsize=64)
def _kept(path: Path, _changed: int, _size: int) -> ClassTable:
    """The cached table of a file, re-read if the file has changed."""
    return ClassTable.read(path)


def bit_colours(count: int) -> tuple[Colour, ...]:
    """`count` distinct colours, none of them black, with the bits of a number distributed over RGB as in PASCAL VOC.

    The colour of class k shows k + 1 (0 would be black): its lowest bit is the highest of red, the next the highest of
    green, the next the highest of blue, the fourth the second highest of red, and so on. Low numbers thus have very
    different colours. The released mask models use the first 182.
    """
    return tuple(_spread(number) for number in range(1, count + 1))


def _spread(number: int) -> Colour:
    """Bits 0, 3, 6, … of a number as red, 1, 4, … as green, 2, 5, … as blue, the first of each the highest."""
    red, green, blue = (sum((number >> 3 * k + c & 1) << 7 - k for k in range(8)) for c in range(3))
    return red, green, blue


# The forms of classes.json

_KEYS = frozenset({"classes", "categories", "ignore", "ignore_color", "reading"})
_NO_COLOUR = 'is not a colour; give [r, g, b], 0..255 each, or "#rrggbb"'
_OF_COCO = frozenset({"supercategory", "isthing"})


def _usual_form(values: Any, source: str) -> dict[str, Any]:
    """Normalise file contents to the form of `_ClassesFile`. Raises ConditionError for anything that is not a table."""
    if isinstance(values, list) or _is_mapping_of_classes(values):
        values = {"classes": values}
    if not isinstance(values, dict):
        raise ConditionError(f"{source}: expected an object with 'classes', got {type(values).__name__}")
    file = dict(values)
    if "classes" not in file and "categories" in file:
        file = {key: value for key, value in file.items() if key in _KEYS}
        file["classes"] = file.pop("categories")
    if "classes" not in file:
        return file
    entries, ids = _entries(file["classes"]), "id"
    if not isinstance(entries, list):
        return file
    if not entries:
        raise ConditionError(f'{source}: \'classes\' is empty; name at least one class, such as {{"name": "sky"}}')
    entries = [_entry(entry) for entry in entries]
    if all(isinstance(entry, dict) and ids not in entry for entry in entries):
        entries = [{ids: number, **entry} for number, entry in enumerate(entries)]
    if all(isinstance(entry, dict) and entry.get("color") is None for entry in entries):
        chosen = bit_colours(len(entries))
        entries = [{**entry, "color": colour} for entry, colour in zip(entries, chosen, strict=True)]
        file.setdefault("reading", "ids")  # these colours are not in any files
    if file.get("reading") == "colors":
        file["reading"] = "colours"
    if "ignore_color" in file:
        file["ignore_color"] = colour = _colour(file["ignore_color"])
        if colour is not None and not _is_colour(colour):
            raise ConditionError(f"'ignore_color' = {colour!r} {_NO_COLOUR}", source=source)
    _check_colours(entries, source)
    return file | {"classes": entries}


def _is_mapping_of_classes(values: Any) -> bool:
    """Whether it maps only numbers to names, names to numbers, or names to colours."""
    if not isinstance(values, dict) or not values or values.keys() & _KEYS:
        return False
    by_number = all(isinstance(value, str) and key.strip().isdecimal() for key, value in values.items())
    return by_number or all(type(value) is int for value in values.values()) or all(map(_is_colour, values.values()))


def _entries(classes: Any) -> Any:
    """A mapping of numbers and names, or of names and colours, as a list of classes."""
    if not isinstance(classes, dict):
        return classes
    found = []
    for key, value in classes.items():
        if isinstance(value, str) and key.strip().isdecimal():
            found.append({"id": int(key), "name": value})
        elif isinstance(value, int):
            found.append({"id": value, "name": key})
        elif isinstance(value, dict):
            found.append({"name": key, **value})
        else:
            found.append({"name": key, "color": value})
    return found


def _entry(entry: Any) -> Any:
    """A class from a name, or from an entry as in COCO; a colour string is parsed."""
    if isinstance(entry, str):
        return {"name": entry}
    if not isinstance(entry, dict):
        return entry
    kept = {key: value for key, value in entry.items() if key not in _OF_COCO}
    return {**kept, "color": _colour(kept["color"])} if "color" in kept else kept


def _colour(value: Any) -> Any:
    """Parse a colour string such as "#ff8000"; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    for text in (value.strip(), f"#{value.strip()}"):
        try:
            return list(ImageColor.getrgb(text)[:3])
        except ValueError:
            continue
    return value


def _check_colours(entries: list[Any], source: str) -> None:
    """Raise ConditionError, in one line, for invalid colours."""
    wrong = [
        f"classes.{position}.color = {entry['color']!r}"
        for position, entry in enumerate(entries)
        if isinstance(entry, dict) and entry.get("color") is not None and not _is_colour(entry["color"])
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConditionError(f"{wrong[0]}{more} {_NO_COLOUR}", source=source)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(one) is int for one in value)
