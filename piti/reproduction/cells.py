"""Table cells: measures over seeds with spreads and intervals, the best values, and their formatting."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from piti.evaluation.result import KINDS, Evaluation, Measure

MeasureKey = tuple[str, str]
"""A measure's name, and its network, class or judge."""


@dataclass(frozen=True)
class Cell:
    """A measure of a row over its seeds."""

    values: tuple[float, ...]
    """One value per seed."""
    low: float | None = None
    """The ends of the interval over images, averaged over the seeds; None if any seed has none."""
    high: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval; the mean for both without one."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)

    def text(self, decimals: int) -> str:
        """The cell's text in a table."""
        text = number(self.mean, decimals)
        if self.spread is not None:
            text += f" ± {number(self.spread, decimals)}"
        if self.low is not None and self.high is not None:
            text += f" [{number(self.low, decimals)} to {number(self.high, decimals)}]"
        return text


def cell_of(measures: Sequence[Measure]) -> Cell | None:
    """A measure over several seeds; None if no seed has it. Intervals without width are omitted."""
    if not measures:
        return None
    pairs = [(one.low, one.high) for one in measures if one.low is not None and one.high is not None]
    values = tuple(one.value for one in measures)
    if len(pairs) < len(measures) or any(low == high for low, high in pairs):
        return Cell(values)
    return Cell(values, statistics.fmean(low for low, _ in pairs), statistics.fmean(high for _, high in pairs))


def cell_for(found: Iterable[Evaluation], key: MeasureKey) -> Cell | None:
    """A measure over the evaluations that contain it."""
    return cell_of([one for evaluation in found for one in evaluation.measures if (one.name, one.of) == key])


def best_of(cells: Iterable[Cell], better: str) -> float | None:
    """The best mean; None if no direction is better, or if the intervals of the best two overlap.

    better: "low", "high", or empty for neither.
    """
    ordered = sorted(cells, key=lambda cell: cell.mean, reverse=better == "high")
    if not better or len(ordered) < 2:
        return None
    (low, high), (other_low, other_high) = ordered[0].ends, ordered[1].ends
    return None if low <= other_high and other_low <= high else ordered[0].mean


def decimals_for(values: Iterable[float]) -> int:
    """Decimals of a column, by its largest value: three for less than 1, none for thousands."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((digits for limit, digits in ((1000, 0), (10, 1), (1, 2)) if largest >= limit), 3)


def number(value: float, decimals: int) -> str:
    """A number with fixed decimals and commas between thousands."""
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: no minus before zero


def title_of(key: MeasureKey, partial: bool = False) -> str:
    """A measure's column heading: title, network or class, unit, and the better direction. partial: whether its network
    was used to train a row.
    """
    name, of = key
    of = f"{of}, used to train some rows" if partial else of
    kind = KINDS.get(name)
    arrow = {"low": " ↓", "high": " ↑"}.get(kind.better, "") if kind else ""
    unit = f", {kind.unit}" if kind and kind.unit else ""
    return f"{kind.title if kind else name}{f' ({of})' if of else ''}{unit}{arrow}"
