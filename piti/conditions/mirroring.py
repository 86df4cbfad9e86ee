"""Classes named left and right, which are swapped in a mirrored image."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIDES = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("lhs", "rhs"),
    ("sinister", "dexter"),
    ("sinistra", "destra"),
    ("links", "rechts"),
    ("linkes", "rechtes"),
    ("linke", "rechte"),
    ("gauche", "droite"),
    ("izquierda", "derecha"),
    ("izquierdo", "derecho"),
)
_OTHER = {word: other for pair in _SIDES for word, other in (pair, pair[::-1])}
_JOINED = re.compile(r"(left|right)(?=[a-z])|(?<=[a-z])(left|right)$")  # lefteye, eyeleft
_WORDS = re.compile(r"[^\W_]+")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def mirrored_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of classes whose names differ only in left and right, such as `l_eye` and `r_eye`."""
    forms = {_form(name): name for name in names}
    found = []
    for name in names:
        other = forms.get(_other_side(name) or "")
        if other is not None and other != name and (other, name) not in found:
            found.append((name, other))
    return found


def mirrored_indices(names: Sequence[str]) -> list[tuple[int, int]]:
    """The same pairs as positions among the names."""
    place = {name: index for index, name in enumerate(names)}
    return [(place[one], place[other]) for one, other in mirrored_names(names)]


def one_sided(names: Sequence[str]) -> list[str]:
    """Classes named left or right, in whole words, without a counterpart."""
    paired = {name for pair in mirrored_names(names) for name in pair}
    return [name for name in names if name not in paired and {"left", "right"} & set(_whole_words(name))]


def perhaps_mirrored(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs that differ only in a first letter l and r, such as `lbrow` and `rbrow`, or `lamp` and `ramp`; since this
    is ambiguous, they are not swapped."""
    known = set(names)
    return [(name, f"r{name[1:]}") for name in names if len(name) > 1 and name[0] == "l" and f"r{name[1:]}" in known]


def said_of_mirroring(names: Sequence[str]) -> list[str]:
    """Notes on mirrored samples."""
    pairs = ", ".join(f"{one} ↔ {other}" for one, other in mirrored_names(names))
    alone = ", ".join(one_sided(names))
    paired = mirrored_names(names)
    perhaps = ", ".join(f"{one} and {other}" for one, other in perhaps_mirrored(names) if (one, other) not in paired)
    return [
        *([f"mirrored samples (data.flip) swap {pairs}"] if pairs else []),
        *(
            [f"{alone}: one side without the other, and data.flip would mirror it; set data.flip to false"]
            if alone
            else []
        ),
        *(
            [
                f"{perhaps}: not swapped; if they are left and right, separate the letter (l_brow), or set data.flip "
                "to false"
            ]
            if perhaps
            else []
        ),
    ]


def _whole_words(name: str) -> list[str]:
    return _WORDS.findall(_HUMPS.sub(" ", name).lower())


def _words(name: str) -> list[str]:
    return [part for word in _whole_words(name) for part in _JOINED.sub(lambda side: f" {side[0]} ", word).split()]


def _form(name: str) -> str:
    return " ".join(_words(name))


def _other_side(name: str) -> str | None:
    """The name with its side swapped; None if it has no side, or is a single letter."""
    words = _words(name)
    sides = [index for index, word in enumerate(words) if word in _OTHER]
    if len(sides) != 1 or (len(words) == 1 and len(words[0]) == 1):
        return None
    return " ".join(_OTHER[word] if index in sides else word for index, word in enumerate(words))
