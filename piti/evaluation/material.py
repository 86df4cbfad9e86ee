"""Inputs of an evaluation (images, photographs, conditions), and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from piti.conditions import Condition
from piti.core.progress import OnProgress
from piti.evaluation.pairing import by_name, grouped


@dataclass(frozen=True)
class ConditionFiles:
    """The images' conditions of one kind."""

    condition: Condition
    place: str
    files: Mapping[str, Path]
    """Condition files by stem."""
    samples: Mapping[str, list[Path]]
    """The images of each condition, by its stem."""


@dataclass(frozen=True)
class Material:
    """All inputs of an evaluation."""

    images: list[Path]
    place: Path
    real: list[Path] = field(default_factory=list)
    real_place: Path | None = None
    split: str = ""
    """The split of `real_place`, if that is a data root."""
    given: tuple[ConditionFiles, ...] = ()

    @cached_property
    def samples(self) -> Mapping[str, list[Path]]:
        """Images by condition, if known; each file is read once."""
        if self.given:
            return self.given[0].samples
        return grouped(self.images, self.photographs)

    @cached_property
    def photographs(self) -> Mapping[str, Path]:
        """The real photographs by the stem of their samples: `b-s2` for `b/s2.jpg` in their folder, or a unique file
        name."""
        return {} if self.real_place is None else by_name(self.real, self.real_place)


@dataclass
class ProgressMeter:
    """Progress over several parts."""

    total: int
    on_step: OnProgress | None
    before: int = 0

    def part(self, count: int) -> OnProgress:
        """The callback for a part with `count` images."""
        start = self.before
        self.before += count

        def told(done: int, _: int) -> None:
            if self.on_step is not None:
                self.on_step(start + done, self.total)

        return told
