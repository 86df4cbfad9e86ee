"""Tables: evaluations of several seeds brought together, and written as Markdown and JSON with published numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from piti.core.errors import Message, text_of
from piti.core.files import whole_file
from piti.evaluation.masks import SMALL
from piti.evaluation.objects import LEAST
from piti.evaluation.result import KINDS, Evaluation, Measure
from piti.reproduction.published import ABOUT, Quote, quotes
from piti.reproduction.rows import SETS, Plan, Row


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


SHOWN = (
    "fd", "kid", "cmmd", "precision", "recall", "diversity",
    "miou", "pixel_accuracy", "small_recall", "small_found", "object_distance", "line_distance", "depth_error",
)  # fmt: skip
"""Measures that have a column, in order; the others are in the evaluations' own files."""
_OF_ALL = {"object_distance"}
"""Of these, all classes together have a column, and none by itself."""
_REFERENCE = "photographs (held out)"
_NO_COUNTERPART = "–"

MeasureKey = tuple[str, str]
"""A measure's name, and of what it is."""


@dataclass(frozen=True)
class Facts:
    """A data set as it is."""

    title: str
    training: int
    """Training pairs."""
    validation: int
    """Validation conditions."""


@dataclass(frozen=True)
class Line:
    """A row with what was found."""

    row: Row
    found: tuple[Evaluation, ...]
    """One a seed that is done."""
    missing: tuple[str, ...] = ()
    """What is not there, and why."""
    minimised: frozenset[str] = frozenset()
    """Feature networks whose features its training compared with photographs': judges that took part in it."""

    def cell(self, key: MeasureKey) -> Cell | None:
        """A measure over the seeds that have it."""
        return _cell(self.found, key)

    def favoured(self, key: MeasureKey) -> bool:
        """Whether a measure is of a network that took part in training."""
        return key[1] in self.minimised


def _cell(found: Sequence[Evaluation], key: MeasureKey) -> Cell | None:
    return cell_of([one for evaluation in found for one in evaluation.measures if (one.name, one.of) == key])


@dataclass(frozen=True)
class Table:
    """A plan with what was found for each of its rows."""

    plan: Plan
    seeds: int
    lines: tuple[Line, ...]
    photographs: dict[str, Evaluation]
    """Of the held-out photographs themselves, judged as results are, by data set."""
    data: Mapping[str, Facts] = field(default_factory=dict)
    """What is known of each data set."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Data sets whose photographs could not be judged, and why."""

    @property
    def keys(self) -> list[MeasureKey]:
        """The measures that have a column; those of networks that took part in no row's training first."""
        everything = [*(e for line in self.lines for e in line.found), *self.photographs.values()]
        there = dict.fromkeys((one.name, one.of) for evaluation in everything for one in evaluation.measures)
        order = {name: place for place, name in enumerate(SHOWN)}
        shown = (key for key in there if key[0] in order and not (key[0] in _OF_ALL and key[1]))
        return sorted(shown, key=lambda key: (order[key[0]], self.partial(key), key[1]))

    def partial(self, key: MeasureKey) -> bool:
        """Whether a measure is of a network that took part in training a row."""
        return any(line.favoured(key) for line in self.lines)

    @property
    def missing(self) -> list[str]:
        """What is not there, and why; empty where the table is complete."""
        rows = [f"{self.method(line.row)}: {text_of(what)}" for line in self.lines for what in line.missing]
        rows += [f"photographs of {self.title(name)}: {text_of(why)}" for name, why in self.unjudged.items()]
        return [*map(Message, rows)]

    def title(self, data: str) -> str:
        """A data set's, as it is where that is known."""
        return self.data[data].title if data in self.data else SETS[data].title

    def method(self, row: Row) -> str:
        """A row's method, with its training pairs where these tell rows apart."""
        facts = self.data.get(row.data)
        if row.pairs is None:
            return row.method
        if row.pairs and (facts is None or row.pairs < facts.training):
            return f"{row.method}, {row.pairs:,} pairs"
        return f"{row.method}, all {facts.training:,} pairs" if facts else f"{row.method}, all pairs"

    def best(self, data: str, key: MeasureKey) -> float | None:
        """The best mean of a measure on a data set, see `best_of`; none where the judge took part in training a row."""
        if self.partial(key):
            return None
        lines = (line for line in self.lines if line.row.data == data)
        cells = [cell for line in lines if (cell := line.cell(key)) is not None]
        return best_of(cells, KINDS[key[0]].better if key[0] in KINDS else "")

    def decimals(self, data: str) -> dict[MeasureKey, int]:
        """Digits after the point of each column."""
        found = [list(line.found) for line in self.lines if line.row.data == data]
        found += [[self.photographs[data]]] if data in self.photographs else []
        cells = {key: [cell for one in found if (cell := _cell(one, key)) is not None] for key in self.keys}
        return {key: decimals_for(cell.mean for cell in column) for key, column in cells.items()}


def markdown(table: Table) -> str:
    """A table for a person."""
    plan = table.plan
    parts = [f"# {plan.title}, {plan.scale} scale\n"]
    for data in plan.sets:
        title, facts = table.title(data), table.data.get(data)
        parts.append(f"## {title}, {SETS[data].task}\n" if len(plan.sets) > 1 else f"{title}, {SETS[data].task}.\n")
        if facts is not None:
            parts.append(f"{facts.training:,} training pairs, {facts.validation:,} validation conditions.\n")
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
    lines, decimals = [line for line in table.lines if line.row.data == data], table.decimals(data)
    published = [_published(table.plan, line.row) for line in lines]
    columns = list(dict.fromkeys((q.data, q.measure) for found in published for q in found))
    ours = [title_of(key, table.partial(key)) for key in table.keys]
    titles = ["method", *ours, *(f"published: {m}, {SETS[d].title}" for d, m in columns)]
    titles = titles if columns else [*titles, "published"]
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    if data in table.photographs or data in table.unjudged:
        found = [table.photographs[data]] if data in table.photographs else []
        cells = [_text(_cell(found, key), decimals[key]) or ("" if found else "missing") for key in table.keys]
        mark = " †" if data in table.unjudged else ""
        rows.append([f"*{_REFERENCE}*{mark}", *cells, *[""] * max(1, len(columns))])
    for line, quotes_of_it in zip(lines, published, strict=True):
        quoted = {(q.data, q.measure): _quoted(q, published) for q in quotes_of_it}
        ours = [_shown(table, line, key, decimals[key]) for key in table.keys]
        theirs = [quoted.get(column, _NO_COUNTERPART) for column in columns] or [_NO_COUNTERPART]
        rows.append([table.method(line.row) + (" †" if line.missing else ""), *ours, *theirs])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _text(cell: Cell | None, decimals: int) -> str:
    return "" if cell is None else cell.text(decimals)


def _quoted(quote: Quote, published: Iterable[Sequence[Quote]]) -> str:
    """A published number, with as many digits as any of its column has."""
    column = [q.value for found in published for q in found if (q.data, q.measure) == (quote.data, quote.measure)]
    return number(quote.value, max(len(f"{value!r}".partition(".")[2]) for value in column))


def _shown(table: Table, line: Line, key: MeasureKey, decimals: int) -> str:
    cell = line.cell(key)
    if cell is None:
        return "missing" if line.missing else ""
    text = cell.text(decimals)
    return f"**{text}**" if cell.mean == table.best(line.row.data, key) else text


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


def _published(plan: Plan, row: Row) -> Sequence[Quote]:
    """Those of the row's data set, or of every one of its task where no paper has it."""
    return quotes(plan.table, row.key, plan.published_on(row))


def _notes(table: Table) -> list[str]:
    plan = table.plan
    seeds = "one seed" if table.seeds == 1 else f"{table.seeds} seeds, each a training run of its own"
    notes = [
        f"Ours: mean over {seeds}" + ("; ± is the standard deviation between them" if table.seeds > 1 else "") + ".",
        "[low to high] is the 95% bootstrap interval over the images of a seed, as a mean over the seeds; where draws "
        "do not differ it is Wilson's of precision and recall and none is shown of others, nor of large samples. Bold: "
        "best. Nothing is bold where the intervals of the best two overlap.",
        f"Images are made from the validation conditions; distances are to the photographs of the {plan.reference} "
        f"split, the centre squares of both at {plan.side} px.",
        *_about_judges(table),
        *_about_photographs(table),
        *_about_objects(table),
        *plan.notes,
    ]  # fmt: skip
    if plan.own_data:
        notes.append(
            "Published numbers are of other data, at 256 px, by other judges: compare the order, not the values."
        )
    notes.append(ABOUT[plan.table])
    return [*notes, *(f"† {what}" for what in table.missing), *_warnings(table)]


def _about_judges(table: Table) -> list[str]:
    """Which judges took part in training, and so favour some rows."""
    lines = [line for line in table.lines if any(line.favoured(key) and line.cell(key) for key in table.keys)]
    if not lines:
        return []
    networks = " and ".join(sorted({key[1] for line in lines for key in table.keys if line.favoured(key)}))
    rows = ", ".join(dict.fromkeys(table.method(line.row) for line in lines))
    return [
        f"{networks} took part in training {rows}, by a perceptual loss, and favours these rows: nothing is bold in "
        "its columns. Compare methods by the other networks, which trained nothing."
    ]


def _about_objects(table: Table) -> list[str]:
    """What small objects are, and objects of a class."""
    names = {name for name, _ in table.keys}
    notes = []
    if names & {"small_recall", "small_found"}:
        notes.append(
            f"Small objects are regions of one class that cover less than {SMALL:.0%} of the image: how much of their "
            "pixels the judge sees right, and how many of them it sees right by at least half."
        )
    if "object_distance" in names:
        notes.append(
            "Objects of a class: how far two regions of one class in one image, each of at least "
            f"{LEAST:.1%} of it, lie apart by the means and deviations of their colours, in levels of 255. The paper "
            "names it as a limitation that they look alike; nearer to the photographs' value is better."
        )
    return notes


def _about_photographs(table: Table) -> list[str]:
    """What the row of photographs is, and why distances are not to these."""
    if table.plan.reference == "val":
        return []
    counts = " or ".join(f"{facts.validation:,}" for facts in table.data.values())
    few = f"the held-out photographs ({counts}) are" if counts else "the held-out photographs are"
    notes = [
        f"Distances are to the photographs of the {table.plan.reference} split because {few} too few for a distance. "
        "That favours methods which remember what they were trained on: no number here tells that from making new ones."
    ]  # fmt: skip
    if table.photographs:
        notes.append(
            f"*{_REFERENCE}* are the validation photographs judged in the place of results: what these judges say of "
            "real photographs. It is no bound, results may exceed it: an image made from a mask can show the mask's "
            "classes more plainly than the street did, and methods learned from the photographs that distances are "
            "to, of which the held-out ones show none."
        )
    return notes


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
        "data": {name: asdict(facts) for name, facts in table.data.items()},
        "rows": [_line_dict(table, line) for line in table.lines],
        "photographs": {data: found.to_dict()["measures"] for data, found in table.photographs.items()},
        "photographs_missing": dict(table.unjudged),
        "networks": _networks(table),
        "notes": _notes(table),
    }


def _line_dict(table: Table, line: Line) -> dict[str, Any]:
    cells = {key: line.cell(key) for key in table.keys}
    return {
        "method": table.method(line.row),
        "data": line.row.data,
        "runs": [training.name for training in line.row.trainings],
        "measures": [
            {
                "name": name,
                "of": of,
                "mean": cell.mean,
                "spread": cell.spread,
                **asdict(cell),
                "values": [*cell.values],
                "judge_took_part": line.favoured((name, of)),
            }
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
