"""The base of every specification: frozen, typed, validated, and helpful about typing errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from piti.core.errors import UserError


class SpecError(UserError):
    """A specification does not parse. The message names the source, the key and the remedy."""


class Spec(BaseModel):
    """A frozen, typed description of something to build. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, source: str) -> Self:
        """Validate plain data read from `source` (a file's name, a flag).

        Raises SpecError with one line a kind of mistake; an unknown key names the nearest known one.
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
    """A line a mistake; the same one in many items of a list is one line."""
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        place = tuple("*" if isinstance(part, int) else part for part in item["loc"])
        alone = () if "*" in place else (len(kinds),)
        kinds.setdefault((item["type"], place, item["msg"], *alone), []).append(item)
    more = (f" (and in {len(items) - 1} more)" if len(items) > 1 else "" for items in kinds.values())
    return [_explain(root, items[0]) + rest for items, rest in zip(kinds.values(), more, strict=True)]


def _explain(root: type[Spec], item: Any) -> str:
    path = list(item["loc"])
    key = ".".join(str(part) for part in path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {choices(str(path[-1]), _known_keys(root, path[:-1]))}"
    if item["type"] == "missing":
        return f"missing key '{key}'"
    said = str(item["ctx"]["error"]) if item["type"] == "value_error" else str(item["msg"])
    return f"'{key}' = {item.get('input')!r}: {said}" if key else said


def _known_keys(root: type[Spec], path: list[Any]) -> list[str]:
    """Field names of the spec that stands at `path` below `root`."""
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


def choices(word: str, known: Iterable[str]) -> str:
    """What to say after "unknown …": the known word most like `word`, if one is, and all of them."""
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean '{match[0]}'? " if match else "") + f"known: {', '.join(known)}"
