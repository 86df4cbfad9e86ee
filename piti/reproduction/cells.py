"""Cells of tables: measures over seeds with their spreads and intervals, which is the best, and both as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from piti.evaluation.result import KINDS, Evaluation, Measure

MeasureKey = tuple[str, str]
"""A measure's name, and of what it is."""


@dataclass(frozen=True)
class Cell:
    """A measure of a row over its seeds."""

    values: tuple[float, ...]
    """One a seed."""
    low: float | None = None
    """The ends of the interval over images, as a mean over the seeds; none where a seed has none."""
    high: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds; none for one alone."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval; a value without one stands for itself."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)

    def text(self, decimals: int) -> str:
        """The cell as a table shows it."""
        text = number(self.mean, decimals)
        if self.spread is not None:
            text += f" ± {number(self.spread, decimals)}"
        if self.low is not None and self.high is not None:
            text += f" [{number(self.low, decimals)} to {number(self.high, decimals)}]"
        return text


def cell_of(measures: Sequence[Measure]) -> Cell | None:
    """A measure of several seeds; none where no seed has it. An interval without a width is none."""
    if not measures:
        return None
    pairs = [(one.low, one.high) for one in measures if one.low is not None and one.high is not None]
    values = tuple(one.value for one in measures)
    if len(pairs) < len(measures) or any(low == high for low, high in pairs):
        return Cell(values)
    return Cell(values, statistics.fmean(low for low, _ in pairs), statistics.fmean(high for _, high in pairs))


def cell_for(found: Iterable[Evaluation], key: MeasureKey) -> Cell | None:
    """A measure over the evaluations that have it."""
    return cell_of([one for evaluation in found for one in evaluation.measures if (one.name, one.of) == key])


def best_of(cells: Iterable[Cell], better: str) -> float | None:
    """The best mean; none where nothing is better, or where the intervals of the best two overlap.

    better: "low", "high", or empty where neither is.
    """
    ordered = sorted(cells, key=lambda cell: cell.mean, reverse=better == "high")
    if not better or len(ordered) < 2:
        return None
    (low, high), (other_low, other_high) = ordered[0].ends, ordered[1].ends
    return None if low <= other_high and other_low <= high else ordered[0].mean


def decimals_for(values: Iterable[float]) -> int:
    """Digits after the point for a column, by its largest value: three for less than 1, none for thousands."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((digits for limit, digits in ((1000, 0), (10, 1), (1, 2)) if largest >= limit), 3)


def number(value: float, decimals: int) -> str:
    """A number with fixed digits, its thousands parted by commas."""
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: no minus before zero


def title_of(key: MeasureKey, partial: bool = False) -> str:
    """A measure's column: what it is, of what, its unit, and which way is better.

    partial: whether its network took part in training a row.
    """
    name, of = key
    of = f"{of}, which trained some rows" if partial else of
    kind = KINDS.get(name)
    arrow = {"low": " ↓", "high": " ↑"}.get(kind.better, "") if kind else ""
    unit = f", {kind.unit}" if kind and kind.unit else ""
    return f"{kind.title if kind else name}{f' ({of})' if of else ''}{unit}{arrow}"
