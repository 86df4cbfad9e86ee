"""The base of all specifications: frozen, typed, validated, with helpful errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from piti.core.errors import UserError, quoted


class SpecError(UserError):
    """A specification is invalid. The message names the source, the key and what to do."""


class Spec(BaseModel):
    """A frozen, typed description of something to build. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Any, source: str) -> Self:
        """Validate plain data read from `source` (a file name, a flag).

        Raises SpecError with one line per kind of mistake; for an unknown key with the nearest known one.
        """
        if not isinstance(values, Mapping):
            raise SpecError(f"{source}: expected an object with keys and values, got {type(values).__name__}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SpecError(f"{source}:\n" + "\n".join(f"  {line}" for line in _lines(cls, error))) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON and YAML types only) from which `parse` makes an equal spec."""
        return self.model_dump(mode="json")


def _lines(root: type[Spec], error: ValidationError) -> list[str]:
    """A line per mistake; the same one in several items of a list is one line, and so is a value that fits none of
    several types."""
    by_key: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        by_key.setdefault(_path(item["loc"]), []).append(item)
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for path, items in by_key.items():
        place = tuple("*" if isinstance(part, int) else part for part in path)
        alone = () if "*" in place else (len(kinds),)
        kinds.setdefault((*((item["type"], item["msg"]) for item in items), place, *alone), []).append(
            _explain(root, path, items)
        )
    more = (f" (and in {len(lines) - 1} more)" if len(lines) > 1 else "" for lines in kinds.values())
    return [lines[0] + rest for lines, rest in zip(kinds.values(), more, strict=True)]


_TYPE = re.compile(r"(str|int|float|bool|path|none|\w+\[.*\]|\w+-\w+.*|[A-Z]\w*)$")


def _path(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """The location of a mistake, without the type names that pydantic adds for unions."""
    return tuple(part for part in place[:1]) + tuple(
        part for part in place[1:] if isinstance(part, int) or not _TYPE.match(part)
    )


def _explain(root: type[Spec], path: tuple[Any, ...], items: list[Any]) -> str:
    key, item = ".".join(str(part) for part in path), items[0]
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {choices(str(path[-1]), _known_keys(root, list(path[:-1])))}"
    if item["type"] == "missing":
        return f"missing key '{key}'" if isinstance(path[-1], str) else f"'{key}' is missing; the list is short"
    said = in_words(items)
    return f"'{key}' = {quoted(repr(item.get('input')))}: {said}" if key else said


_WORDS = {
    "int_type": "is not a whole number; give one, such as 4",
    "int_parsing": "is not a whole number; give one, such as 4",
    "int_from_float": "is not a whole number; give one, such as 4",
    "int_parsing_size": "is too large",
    "float_type": "is not a number; give one, such as 0.5",
    "float_parsing": "is not a number; give one, such as 0.5",
    "finite_number": "is not finite; give a number, such as 0.5",
    "bool_type": "is not true or false; give one of them",
    "bool_parsing": "is not true or false; give one of them",
    "greater_than_equal": "is too small; give at least {ge}",
    "greater_than": "is too small; give more than {gt}",
    "less_than_equal": "is too large; give at most {le}",
    "less_than": "is too large; give less than {lt}",
    "literal_error": "is not {expected}; give one of them",
    "string_type": "is not a string; write it in quotes",
    "string_too_short": "is too short; give at least {min_length} characters",
    "string_pattern_mismatch": "does not match {pattern}",
    "path_type": "is not a path; give that of a file or folder",
    "list_type": "is not a list; write [one, another]",
    "tuple_type": "is not a list; write [one, another]",
    "too_short": "has {actual_length} items; give at least {min_length}",
    "too_long": "has {actual_length} items; give at most {max_length}",
    "dict_type": "is not a mapping; give keys with values",
    "model_type": "is not a mapping; give keys with values",
    "model_attributes_type": "is not a mapping; give keys with values",
}
"""Messages by pydantic's type of mistake; others use pydantic's message."""


def in_words(items: Sequence[Mapping[str, Any]]) -> str:
    """Describe pydantic's mistakes for one value, several if it fits none of several types, with what to do."""
    if len(items) == 1:
        return _in_words(items[0])
    return ", and ".join(dict.fromkeys(_in_words(item).partition("; ")[0] for item in items))


def _in_words(item: Mapping[str, Any]) -> str:
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    said = _WORDS.get(item["type"], "{msg}").format(**{"msg": item["msg"]} | item.get("ctx", {}))
    given = item.get("input")
    if item["type"] != "literal_error" or not isinstance(given, str):
        return said
    near = difflib.get_close_matches(given, re.findall(r"'([^']*)'", str(item["ctx"]["expected"])), n=1, cutoff=0.5)
    return f"{said} (did you mean '{near[0]}'?)" if near else said


def _known_keys(root: type[Spec], path: list[Any]) -> list[str]:
    """Field names of the spec at `path` below `root`."""
    found: type[BaseModel] = root
    for part in path:
        field = found.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        nested = _spec_in(field.annotation)
        if nested is not None:
            found = nested
    return list(found.model_fields)


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    """The first spec class inside an annotation such as `list[Stage]` or `UNetSpec | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _spec_in(inner)
        if found is not None:
            return found
    return None


def known_by(lookup: Callable[[str], object]) -> AfterValidator:
    """Validates a key that names an entry of a table, as `Annotated[str, known_by(sampler_named)]`.

    lookup: raises an error that lists the known names.
    """

    def known(name: str) -> str:
        lookup(name)
        return name

    return AfterValidator(known)


def choices(word: str, known: Iterable[str]) -> str:
    """The text after "unknown …": the known word most similar to `word`, if any, and all of them."""
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean '{match[0]}'? " if match else "") + f"known: {', '.join(known)}"
