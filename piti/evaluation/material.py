"""What an evaluation looks at: images, photographs, conditions; and how far it is."""

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
    """The conditions of one kind that images were made from."""

    condition: Condition
    place: str
    files: Mapping[str, Path]
    """By stem."""
    samples: Mapping[str, list[Path]]
    """The images of each, by its stem."""


@dataclass(frozen=True)
class Material:
    """Everything that is judged."""

    images: list[Path]
    place: Path
    real: list[Path] = field(default_factory=list)
    real_place: Path | None = None
    split: str = ""
    """Of `real_place`, where it is a data root."""
    given: tuple[ConditionFiles, ...] = ()

    @cached_property
    def samples(self) -> Mapping[str, list[Path]]:
        """Images by condition, as far as that can be told; each file is looked at once."""
        if self.given:
            return self.given[0].samples
        return grouped(self.images, self.photographs)

    @cached_property
    def photographs(self) -> Mapping[str, Path]:
        """The real photographs by what their samples are named after: `b-s2` for `b/s2.jpg` of their folder, and a
        file's own name where no other has it."""
        return {} if self.real_place is None else by_name(self.real, self.real_place)


@dataclass
class ProgressMeter:
    """Progress over several parts."""

    total: int
    on_step: OnProgress | None
    before: int = 0

    def part(self, count: int) -> OnProgress:
        """What a part of `count` images reports to."""
        start = self.before
        self.before += count

        def told(done: int, _: int) -> None:
            if self.on_step is not None:
                self.on_step(start + done, self.total)

        return told
