"""Tables: evaluations of several seeds brought together, and written as Markdown and JSON with published numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from piti.atomic import whole_file
from piti.evaluation.result import KINDS, Evaluation, Measure
from piti.reproduction.paper import ABOUT, NOT_AT_HAND, Quote, quotes
from piti.reproduction.plans import SETS, Plan, Row

SHOWN = (
    "fd", "kid", "cmmd", "precision", "recall", "diversity",
    "miou", "pixel_accuracy", "small_recall", "line_distance", "depth_error",
)  # fmt: skip
"""Measures that have a column, in order; the others are in the evaluations' own files."""
_REFERENCE = "photographs (held out)"

Key = tuple[str, str]
"""A measure's name, and of what it is."""


@dataclass(frozen=True)
class Cell:
    """A measure of a row over its seeds."""

    values: tuple[float, ...]
    """One a seed."""
    low: float | None = None
    """The ends of the interval over images, as a mean over the seeds."""
    high: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds; none for one alone."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        text = compact(self.mean)
        if self.spread is not None:
            text += f" ± {compact(self.spread)}"
        if self.low is not None and self.high is not None:
            text += f" [{compact(self.low)}, {compact(self.high)}]"
        return text


@dataclass(frozen=True)
class Line:
    """A row with what was found."""

    row: Row
    found: tuple[Evaluation, ...]
    """One a seed that is done."""
    missing: tuple[str, ...] = ()
    """What is not there, and why."""

    def cell(self, key: Key) -> Cell | None:
        """A measure over the seeds that have it."""
        measures = [one for evaluation in self.found for one in evaluation.measures if (one.name, one.of) == key]
        return _cell(measures)


def _cell(measures: Sequence[Measure]) -> Cell | None:
    if not measures:
        return None
    lows = [one.low for one in measures if one.low is not None]
    highs = [one.high for one in measures if one.high is not None]
    whole = len(lows) == len(highs) == len(measures)
    ends = (statistics.fmean(lows), statistics.fmean(highs)) if whole else (None, None)
    return Cell(tuple(one.value for one in measures), *ends)


@dataclass(frozen=True)
class Table:
    """A plan with what was found for each of its rows."""

    plan: Plan
    seeds: int
    lines: tuple[Line, ...]
    photographs: dict[str, Evaluation]
    """Of the held-out photographs themselves, judged as results are, by data set."""

    @property
    def keys(self) -> list[Key]:
        """The measures that have a column."""
        everything = [*(e for line in self.lines for e in line.found), *self.photographs.values()]
        there = dict.fromkeys((one.name, one.of) for evaluation in everything for one in evaluation.measures)
        order = {name: place for place, name in enumerate(SHOWN)}
        return sorted((key for key in there if key[0] in order), key=lambda key: (order[key[0]], key[1]))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not any(line.missing for line in self.lines)

    def best(self, data: str, key: Key) -> float | None:
        """The best mean of a measure on a data set; none where no row is better than another."""
        better = KINDS[key[0]].better if key[0] in KINDS else ""
        means = [cell.mean for line in self.lines if line.row.data == data and (cell := line.cell(key)) is not None]
        if not better or len(set(means)) < 2:
            return None
        return min(means) if better == "low" else max(means)


def markdown(table: Table) -> str:
    """A table for a person."""
    plan = table.plan
    parts = [f"# {plan.title}, {plan.scale} scale\n"]
    for data in plan.sets:
        described = SETS[data]
        parts.append(f"## {described.title}, {described.task}\n" if len(plan.sets) > 1 else f"{described.title}.\n")
        parts.append(_grid(table, data))
        if any(line.found for line in table.lines if line.row.data == data):
            parts.append(f"![samples]({picture_name(plan, data)})\n")
    parts.append("\n".join(f"- {note}" for note in _notes(table)) + "\n")
    return "\n".join(parts)


def picture_name(plan: Plan, data: str) -> str:
    """The file of a data set's samples."""
    return f"{plan.table}-{data}.jpg" if len(plan.sets) > 1 else f"{plan.table}.jpg"


def _grid(table: Table, data: str) -> str:
    """The rows of one data set."""
    lines = [line for line in table.lines if line.row.data == data]
    published = {line.row.key: _published(table.plan, line.row) for line in lines}
    columns = list(dict.fromkeys((q.data, q.measure) for found in published.values() for q in found))
    titles = ["method", *map(title_of, table.keys), *(f"published: {m}, {SETS[d].title}" for d, m in columns)]
    titles = titles if columns else [*titles, "published"]
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    if data in table.photographs:
        cells = [_cell([m for m in table.photographs[data].measures if (m.name, m.of) == key]) for key in table.keys]
        rows.append([f"*{_REFERENCE}*", *(f"{cell}" if cell else "" for cell in cells), *[""] * max(1, len(columns))])
    for line in lines:
        quoted = {(q.data, q.measure): compact(q.value) for q in published[line.row.key]}
        ours = [_shown(table, line, key) for key in table.keys]
        theirs = [quoted.get(column, NOT_AT_HAND) for column in columns] or [NOT_AT_HAND]
        rows.append([line.row.method + (" †" if line.missing else ""), *ours, *theirs])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _shown(table: Table, line: Line, key: Key) -> str:
    cell = line.cell(key)
    if cell is None:
        return "missing" if line.missing else ""
    return f"**{cell}**" if cell.mean == table.best(line.row.data, key) else str(cell)


def title_of(key: Key) -> str:
    """A measure's column: what it is, of what, its unit, and which way is better."""
    name, of = key
    kind = KINDS.get(name)
    arrow = {"low": " ↓", "high": " ↑"}.get(kind.better, "") if kind else ""
    unit = f", {kind.unit}" if kind and kind.unit else ""
    return f"{kind.title if kind else name}{f' ({of})' if of else ''}{unit}{arrow}"


def _published(plan: Plan, row: Row) -> Sequence[Quote]:
    """At small scale, whose data set no paper has, those of every data set."""
    return quotes(plan.table, row.key, None if plan.scale == "small" else row.data)


def _notes(table: Table) -> list[str]:
    plan = table.plan
    seeds = "one seed" if table.seeds == 1 else f"{table.seeds} seeds, each a training run of its own"
    notes = [
        f"Ours: mean over {seeds}" + ("; ± is the standard deviation between them" if table.seeds > 1 else "") + ".",
        "[low, high] is the 95% bootstrap interval over the images of a seed, as a mean over the seeds. Bold: best.",
        f"Images are made from the validation conditions; distances are to the photographs of the {plan.reference} "
        f"split, the centre squares of both at {plan.side} px.",
    ]  # fmt: skip
    if table.photographs:
        notes.append(
            f"*{_REFERENCE}* are the validation photographs judged in the place of results: what is within reach."
        )
    notes += plan.notes
    if plan.scale == "small":
        notes.append(
            "Published numbers are of other data, at 256 px, by other judges: compare the order, not the values."
        )
    notes.append(ABOUT[plan.table])
    notes += [f"† {line.row.method}: {what}" for line in table.lines for what in line.missing]
    return [*notes, *_warnings(table)]


def _warnings(table: Table) -> list[str]:
    """What the evaluations warn of, each once."""
    return list(dict.fromkeys(note for line in table.lines for evaluation in line.found for note in evaluation.notes))


def to_dict(table: Table) -> dict[str, Any]:
    """A table as plain data."""
    plan = table.plan
    return {
        "table": plan.table,
        "title": plan.title,
        "scale": plan.scale,
        "seeds": table.seeds,
        "side": plan.side,
        "reference": plan.reference,
        "rows": [_line_dict(table, line) for line in table.lines],
        "photographs": {data: found.to_dict()["measures"] for data, found in table.photographs.items()},
        "networks": _networks(table),
        "notes": _notes(table),
    }


def _line_dict(table: Table, line: Line) -> dict[str, Any]:
    cells = {key: line.cell(key) for key in table.keys}
    return {
        "method": line.row.method,
        "data": line.row.data,
        "runs": [training.name for training in line.row.trainings],
        "measures": [
            {"name": name, "of": of, "mean": cell.mean, "spread": cell.spread, **asdict(cell), "values": [*cell.values]}
            for (name, of), cell in cells.items()
            if cell is not None
        ],
        "published": [asdict(quote) for quote in _published(table.plan, line.row)],
        "missing": list(line.missing),
    }


def _networks(table: Table) -> list[Any]:
    """What judged, with the hashes of the weights."""
    for line in table.lines:
        for evaluation in line.found:
            return list(evaluation.facts.get("networks", []))
    return []


def write(table: Table, out: Path) -> Path:
    """Write `TABLE.md` and `TABLE.json`, whole or not at all; the former's path."""
    texts = {
        ".json": json.dumps(to_dict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        ".md": markdown(table),
    }
    for suffix, text in texts.items():
        with whole_file(out / f"{table.plan.table}{suffix}", overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / f"{table.plan.table}.md"


def compact(value: float) -> str:
    """A number with three significant digits, or as many as it has before the point."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else None
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"
