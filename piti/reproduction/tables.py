"""Tables as data: a plan's rows with the evaluations of their seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from piti.core.errors import Message, text_of
from piti.evaluation.result import KINDS, Evaluation
from piti.reproduction.cells import Cell, MeasureKey, best_of, cell_for, decimals_for
from piti.reproduction.rows import SETS, Plan, Row

SHOWN = (
    "fd", "kid", "cmmd", "precision", "recall", "diversity",
    "miou", "pixel_accuracy", "small_recall", "small_found", "object_distance", "line_distance", "depth_error",
)  # fmt: skip
"""Measures with a column, in order; others are only in the evaluations' files."""
_OF_ALL = {"object_distance"}
"""Measures with a column only over all classes."""


@dataclass(frozen=True)
class Facts:
    """Facts of a data set."""

    title: str
    training: int
    """Number of training pairs."""
    validation: int
    """Number of validation conditions."""


@dataclass(frozen=True)
class Line:
    """A row with its results."""

    row: Row
    found: tuple[Evaluation, ...]
    """One evaluation per finished seed."""
    missing: tuple[str, ...] = ()
    """Missing results, with reasons."""
    minimised: frozenset[str] = frozenset()
    """Feature networks that its training used in losses on photographs."""

    def cell(self, key: MeasureKey) -> Cell | None:
        """A measure over the seeds that contain it."""
        return cell_for(self.found, key)

    def favoured(self, key: MeasureKey) -> bool:
        """Whether a measure uses a network that was used in training."""
        return key[1] in self.minimised


@dataclass(frozen=True)
class Table:
    """A plan with the results of its rows."""

    plan: Plan
    seeds: int
    lines: tuple[Line, ...]
    photographs: dict[str, Evaluation]
    """Evaluations of the held-out photographs by data set."""
    data: Mapping[str, Facts] = field(default_factory=dict)
    """Facts of each data set."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Data sets whose photographs could not be evaluated, with reasons."""

    @property
    def keys(self) -> list[MeasureKey]:
        """The measures with a column; first those of networks that were not used in training."""
        everything = [*(e for line in self.lines for e in line.found), *self.photographs.values()]
        there = dict.fromkeys((one.name, one.of) for evaluation in everything for one in evaluation.measures)
        order = {name: place for place, name in enumerate(SHOWN)}
        shown = (key for key in there if key[0] in order and not (key[0] in _OF_ALL and key[1]))
        return sorted(shown, key=lambda key: (order[key[0]], self.partial(key), key[1]))

    def partial(self, key: MeasureKey) -> bool:
        """Whether a measure uses a network that was used to train a row."""
        return any(line.favoured(key) for line in self.lines)

    @property
    def missing(self) -> list[str]:
        """Missing results, with reasons; empty if the table is complete."""
        rows = [f"{self.method(line.row)}: {text_of(what)}" for line in self.lines for what in line.missing]
        rows += [f"photographs of {self.title(name)}: {text_of(why)}" for name, why in self.unjudged.items()]
        return [*map(Message, rows)]

    def title(self, data: str) -> str:
        """A data set's title."""
        return self.data[data].title if data in self.data else SETS[data].title

    def method(self, row: Row) -> str:
        """A row's method, with its training pairs if these distinguish rows."""
        facts = self.data.get(row.data)
        if row.pairs is None:
            return row.method
        if row.pairs and (facts is None or row.pairs < facts.training):
            return f"{row.method}, {row.pairs:,} pairs"
        return f"{row.method}, all {facts.training:,} pairs" if facts else f"{row.method}, all pairs"

    def best(self, data: str, key: MeasureKey) -> float | None:
        """The best mean of a measure on a data set, see `best_of`; None if its network was used to train a row."""
        if self.partial(key):
            return None
        lines = (line for line in self.lines if line.row.data == data)
        cells = [cell for line in lines if (cell := line.cell(key)) is not None]
        return best_of(cells, KINDS[key[0]].better if key[0] in KINDS else "")

    def decimals(self, data: str) -> dict[MeasureKey, int]:
        """Decimals of each column."""
        found = [list(line.found) for line in self.lines if line.row.data == data]
        found += [[self.photographs[data]]] if data in self.photographs else []
        cells = {key: [cell for one in found if (cell := cell_for(one, key)) is not None] for key in self.keys}
        return {key: decimals_for(cell.mean for cell in column) for key, column in cells.items()}
