"""Tables on disk: Markdown and JSON, with published numbers, notes and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from piti.core.files import whole_file
from piti.evaluation.masks import SMALL
from piti.evaluation.objects import LEAST
from piti.reproduction.cells import Cell, MeasureKey, cell_for, number, title_of
from piti.reproduction.published import ABOUT, Quote, quotes
from piti.reproduction.rows import SETS, Plan, Row
from piti.reproduction.tables import Line, Table

_REFERENCE = "photographs (held out)"
_NO_COUNTERPART = "–"


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
    published = [published_of(table.plan, line.row) for line in lines]
    columns = list(dict.fromkeys((q.data, q.measure) for found in published for q in found))
    ours = [title_of(key, table.partial(key)) for key in table.keys]
    titles = ["method", *ours, *(f"published: {m}, {SETS[d].title}" for d, m in columns)]
    titles = titles if columns else [*titles, "published"]
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    if data in table.photographs or data in table.unjudged:
        found = [table.photographs[data]] if data in table.photographs else []
        cells = [_text(cell_for(found, key), decimals[key]) or ("" if found else "missing") for key in table.keys]
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


def published_of(plan: Plan, row: Row) -> Sequence[Quote]:
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
        "published": [asdict(quote) for quote in published_of(table.plan, line.row)],
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
