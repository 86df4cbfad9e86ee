"""Which classes occur in a set of masks, and how much of it is unlabelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from piti.conditions.base import Condition
from piti.conditions.mask import MaskCondition

_NAMED = 5  # how many classes a note names

Counts = dict[str, Int64[np.ndarray, " indices"]]
"""For each part of a condition that is a mask the pixels of each index, what is unlabelled last."""


@dataclass
class Coverage:
    """Which classes occur in a set of masks, and how much of it is unlabelled."""

    condition: Condition
    counts: Counts = field(default_factory=dict)
    masks: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    """How many masks of each part there are, and how many of them are unlabelled throughout."""

    def counted(self, raw: Shaped[Tensor, "K h w"]) -> Counts:
        """The pixels of each class in one raw condition; nothing for a condition without masks."""
        found: Counts = {}
        for name, (part, planes) in self.condition.given_parts(raw).items():
            if isinstance(part, MaskCondition):
                indices = planes.long().clamp(max=part.classes.count)
                count = torch.bincount(indices.reshape(-1), minlength=part.classes.count + 1)
                found[name] = count.numpy()
        return found

    def add(self, counts: Counts) -> None:
        """Take those of one condition into account."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
            self.masks[name] += 1
            self.empty[name] += not count[:-1].any()

    def lacks(self) -> list[str]:
        """The same, unless every class occurs and nothing is unlabelled."""
        whole = all(count[-1] == 0 and count[:-1].all() for count in self.counts.values())
        return [] if whole else self.notes()

    def notes(self) -> list[str]:
        """A line for each part that is a mask, and a warning of masks that say nothing."""
        several = len(self.counts) > 1
        named = self.condition.named_parts()
        found: list[str] = []
        for name, part in named.items():
            if isinstance(part, MaskCondition) and name in self.counts:
                place = f"{name}: " if several else ""
                found.append(place + coverage_note(part.classes.names, self.counts[name].tolist()))
                if empty := self.empty[name]:
                    found.append(f"warning: {place}{_masks(empty, self.masks[name])}, so no class guides the image")
        return found


def unlabelled_note(condition: Condition, raw: Shaped[Tensor, "K h w"]) -> list[str]:
    """What to say of one condition alone where some of it is unlabelled, see `Coverage`."""
    coverage = Coverage(condition)
    coverage.add(coverage.counted(raw))
    return coverage.notes() if any(count[-1] for count in coverage.counts.values()) else []


def _masks(empty: int, of: int) -> str:
    return "the mask is unlabelled throughout" if of == 1 else f"{empty} of {of} masks are unlabelled throughout"


def coverage_note(names: Sequence[str], counts: Sequence[int]) -> str:
    """Which classes occur nowhere, and the share that is unlabelled. counts: pixels of each class, then unlabelled."""
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
