"""Class coverage of masks: the classes that occur, and the unlabelled share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, Integer, Shaped
from torch import Tensor

from piti.conditions.base import Condition
from piti.conditions.drawings import NARROW, SMALLEST, thinned
from piti.conditions.lines import depth_of
from piti.conditions.mask import MaskCondition
from piti.core.errors import Message, option, text_of

_NAMED = 5  # number of classes listed in a note


@dataclass(frozen=True)
class Counted:
    """Statistics of a mask.

    pixels: per index, unlabelled last. drawn: whether it consists only of thin lines of one class, like a black and
    white drawing, whose 0 may be a class id and whose 255 unlabelled.
    """

    pixels: Int64[np.ndarray, " indices"]
    drawn: bool = False


Counts = dict[str, Counted]
"""Statistics of the parts of a condition that are masks."""


@dataclass
class Coverage:
    """Which classes occur in a set of masks, and how much of it is unlabelled."""

    condition: Condition
    pixels: dict[str, Int64[np.ndarray, " indices"]] = field(default_factory=dict)
    masks: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)
    """Per part: the number of masks, of entirely unlabelled ones, and of those that are `Counted.drawn`."""

    def counted(self, raw: Shaped[Tensor, "K h w"]) -> Counts:
        """Statistics of a raw condition; empty without masks."""
        found: Counts = {}
        for name, (part, planes) in self.condition.given_parts(raw).items():
            if isinstance(part, MaskCondition):
                indices = planes.long().clamp(max=part.classes.count)
                count = torch.bincount(indices.reshape(-1), minlength=part.classes.count + 1)
                found[name] = Counted(count.numpy(), _is_drawn(indices, count))
        return found

    def add(self, counts: Counts) -> None:
        """Add the statistics of a condition."""
        for name, one in counts.items():
            self.pixels[name] = self.pixels.get(name, 0) + one.pixels
            self.masks[name] += 1
            self.empty[name] += not one.pixels[:-1].any()
            self.drawn[name] += one.drawn

    def lacks(self) -> list[str]:
        """`notes`; empty if all classes occur and nothing is unlabelled."""
        whole = all(count[-1] == 0 and count[:-1].all() for count in self.pixels.values())
        return [] if whole else self.notes()

    def notes(self) -> list[str]:
        """A line per part that is a mask, and warnings on masks without information."""
        several = len(self.pixels) > 1
        named = self.condition.named_parts()
        found: list[str] = []
        for name, part in named.items():
            if isinstance(part, MaskCondition) and name in self.pixels:
                place = f"{name}: " if several else ""
                found.append(place + coverage_note(part.classes.names, self.pixels[name].tolist()))
                warnings = [*empty_note(self.empty[name], self.masks[name]), *self._drawn_note(name)]
                found += [Message(f"warning: {place}{text_of(warning)}") for warning in warnings]
        return found

    def _drawn_note(self, name: str) -> list[str]:
        drawn, of = self.drawn[name], self.masks[name]
        what = "the mask is" if of == 1 else f"{drawn} of {of} masks are"
        said = f"{what} thin lines of one class, unlabelled elsewhere: for drawings use a sketch model"
        return [Message(f"{said} ({option('model')} sketch)")] if drawn else []


def _is_drawn(indices: Integer[Tensor, "1 h w"], pixels: Int64[Tensor, " indices"]) -> bool:
    """See `Counted.drawn`; in a white on black drawing, the lines may be unlabelled."""
    if min(indices.shape[-2:]) < SMALLEST or not pixels[-1] or int((pixels[:-1] > 0).sum()) != 1:
        return False
    seen = thinned(indices[0].numpy()) == len(pixels) - 1
    lines = seen if seen.mean() < 0.5 else ~seen
    return bool(lines.any()) and depth_of(lines) <= NARROW


def unlabelled_note(condition: Condition, raw: Shaped[Tensor, "K h w"]) -> list[str]:
    """Notes on a single condition that is partly unlabelled, see `Coverage`."""
    coverage = Coverage(condition)
    coverage.add(coverage.counted(raw))
    return coverage.notes() if any(count[-1] for count in coverage.pixels.values()) else []


def empty_note(empty: int, of: int) -> list[str]:
    """A note on masks without any class, if there are some."""
    what = "the mask is" if of == 1 else f"{empty} of {of} masks are"
    return [f"{what} unlabelled throughout, so no class guides the image"] if empty else []


def coverage_note(names: Sequence[str], counts: Sequence[int]) -> str:
    """A note on missing classes and the unlabelled share. counts: pixels of each class, then unlabelled."""
    missing = [f"'{name}'" for name, count in zip(names, counts, strict=False) if not count]
    share = _percent(int(counts[-1]) / max(1, int(sum(counts))))
    if not missing:
        return f"all {len(names)} classes occur in the masks; {share} unlabelled"
    listed = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    if len(missing) == 1:
        return f"class {listed} occurs in no mask; {share} unlabelled"
    return f"classes {listed} ({len(missing)} of {len(names)}) occur in no mask; {share} unlabelled"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share in (0, 1) or 0.01 <= share <= 0.99 else "under 1%" if share < 0.5 else "over 99%"
