"""Words of one vocabulary matched with those of another: a segmentation network's labels with a mask's classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Integer
from torch import Tensor

from piti.evaluation.per_condition import AlignmentError
from piti.spec import choices

OTHER = -1
"""The class of a label that is none of a mask's."""
_NAMED = 12

Aliases = Mapping[str, str | None]
"""A network's label => a mask's class, or None where it is none of them."""


@dataclass(frozen=True)
class LabelMap:
    """Which class of a mask each label of a network means."""

    labels: tuple[str, ...]
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    """For each label the index of its class, or `OTHER`."""

    @property
    def unnamed_classes(self) -> tuple[str, ...]:
        """Classes that no label means: the network cannot judge them."""
        return tuple(name for k, name in enumerate(self.classes) if k not in self.indices)

    @property
    def other_labels(self) -> tuple[str, ...]:
        """Labels that are none of the classes: where the network sees one, it sees no class of the mask."""
        return tuple(name for name, k in zip(self.labels, self.indices, strict=True) if k == OTHER)

    @cached_property
    def _table(self) -> Integer[Tensor, " labels"]:
        return torch.tensor(self.indices)

    def __call__(self, guess: Integer[Tensor, "*any"]) -> Integer[Tensor, "*any"]:
        """Numbers of labels to indices of classes, `OTHER` for labels that are none."""
        return self._table[guess]


def read_aliases(path: Path) -> dict[str, str | None]:
    """A JSON file {"their name": "our name" or null, …}. Raises AlignmentError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AlignmentError(f"{path}: cannot be read as JSON ({error}); check the path and the file") from None
    if not isinstance(values, dict) or not all(value is None or isinstance(value, str) for value in values.values()):
        raise AlignmentError(f'{path}: expected {{"label of the network": "class of the mask" or null, …}}')
    return values


def match_labels(
    labels: Sequence[str], classes: Sequence[str], aliases: Aliases | None = None, source: str = "the segmenter"
) -> LabelMap:
    """Match by name; case, spaces, `_` and `-` do not matter, and of synonyms, "building; edifice", each counts.

    aliases: for labels that are called otherwise, or are to be none. source: the network, for errors.
    Raises AlignmentError for aliases of unknown names, and where nothing matches.
    """
    known = _by_key(classes, "classes")
    said = _checked(aliases or {}, labels, known, classes)
    indices = []
    for label in labels:
        if _key(label) in said:
            indices.append(said[_key(label)])
        else:
            found = [known[key] for key in _keys(label) if key in known]
            indices.append(found[0] if found else OTHER)
    if set(indices) <= {OTHER}:
        raise AlignmentError(
            f"{source}: none of its labels ({_listed(labels)}) is a class of the masks ({_listed(classes)}); give a "
            'JSON file of aliases, {"label": "class" or null}, or a network that was trained on these classes'
        )
    return LabelMap(tuple(labels), tuple(classes), tuple(indices))


def _checked(
    aliases: Aliases, labels: Sequence[str], known: Mapping[str, int], classes: Sequence[str]
) -> dict[str, int]:
    """The index for the key of each label that has an alias."""
    theirs = {_key(label) for label in labels}
    said: dict[str, int] = {}
    for label, name in aliases.items():
        if _key(label) not in theirs:
            raise AlignmentError(f"aliases: the network has no label '{label}'; {choices(label, labels)}")
        if name is not None and _key(name) not in known:
            raise AlignmentError(
                f"aliases: '{label}' is to be '{name}', no class of the masks; {choices(name, classes)}"
            )
        said[_key(label)] = OTHER if name is None else known[_key(name)]
    return said


def _by_key(names: Sequence[str], what: str) -> dict[str, int]:
    """The position of each name by its keys: first the whole names, then synonyms that are left."""
    places: dict[str, int] = {}
    for k, name in enumerate(names):
        if _key(name) in places:
            other = names[places[_key(name)]]
            raise AlignmentError(f"{what} '{other}' and '{name}' differ in nothing that counts; rename one")
        places[_key(name)] = k
    for k, name in enumerate(names):
        for key in _keys(name):
            places.setdefault(key, k)
    return places


def _keys(name: str) -> list[str]:
    """What a name may be found by: itself, then its synonyms."""
    parts = re.split(r"[;,]", name)
    return [_key(name), *(_key(part) for part in parts if len(parts) > 1)]


def _key(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
