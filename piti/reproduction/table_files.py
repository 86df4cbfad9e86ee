"""Tables as Markdown and JSON, with published numbers, notes and missing results."""

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
    """A table as Markdown."""
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
    """File name of a data set's samples."""
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
    """A published number, with the most decimals in its column."""
    column = [q.value for found in published for q in found if (q.data, q.measure) == (quote.data, quote.measure)]
    return number(quote.value, max(len(f"{value!r}".partition(".")[2]) for value in column))


def _shown(table: Table, line: Line, key: MeasureKey, decimals: int) -> str:
    cell = line.cell(key)
    if cell is None:
        return "missing" if line.missing else ""
    text = cell.text(decimals)
    return f"**{text}**" if cell.mean == table.best(line.row.data, key) else text


def published_of(plan: Plan, row: Row) -> Sequence[Quote]:
    """Published numbers for the row's data set, or with `own_data` for all of its task."""
    return quotes(plan.table, row.key, plan.published_on(row))


def _notes(table: Table) -> list[str]:
    plan = table.plan
    seeds = "one seed" if table.seeds == 1 else f"{table.seeds} seeds, each a separate training run"
    notes = [
        f"Ours: mean over {seeds}" + ("; ± is the standard deviation between them" if table.seeds > 1 else "") + ".",
        "[low to high] is the 95% bootstrap interval over the images of a seed, averaged over the seeds; where draws "
        "do not differ it is Wilson's for precision and recall and omitted for others, as for large samples. Bold: "
        "best; nothing is bold where the intervals of the best two overlap.",
        "Images are generated from the validation conditions; distances are to the photographs of the "
        f"{plan.reference} "
        f"split, the centre squares of both at {plan.side} px.",
        *_about_judges(table),
        *_about_photographs(table),
        *_about_objects(table),
        *plan.notes,
    ]  # fmt: skip
    if plan.own_data:
        notes.append(
            "Published numbers are for other data, at 256 px, with other evaluation networks: compare the order, not "
            "the values."
        )
    notes.append(ABOUT[plan.table])
    return [*notes, *(f"† {what}" for what in table.missing), *_warnings(table)]


def _about_judges(table: Table) -> list[str]:
    """A note on evaluation networks that were used in training, and so favour some rows."""
    lines = [line for line in table.lines if any(line.favoured(key) and line.cell(key) for key in table.keys)]
    if not lines:
        return []
    networks = " and ".join(sorted({key[1] for line in lines for key in table.keys if line.favoured(key)}))
    rows = ", ".join(dict.fromkeys(table.method(line.row) for line in lines))
    return [
        f"{networks} was used to train {rows}, in a perceptual loss, and favours these rows: nothing is bold in its "
        "columns. Compare methods with the other networks, which were not used in training."
    ]


def _about_objects(table: Table) -> list[str]:
    """Notes that define small objects, and objects of a class."""
    names = {name for name, _ in table.keys}
    notes = []
    if names & {"small_recall", "small_found"}:
        notes.append(
            f"Small objects are regions of one class that cover less than {SMALL:.0%} of the image: the share of their "
            "pixels that the segmenter classifies correctly, and the share of objects with at least half of their "
            "pixels correct."
        )
    if "object_distance" in names:
        notes.append(
            "Objects of a class: the distance between two regions of one class in one image, each of at least "
            f"{LEAST:.1%} of it, by the means and standard deviations of their colours, in levels of 255. The paper "
            "states their similarity as a limitation; closer to the photographs' value is better."
        )
    return notes


def _about_photographs(table: Table) -> list[str]:
    """Notes on the row of photographs, and on the reference photographs."""
    if table.plan.reference == "val":
        return []
    counts = " or ".join(f"{facts.validation:,}" for facts in table.data.values())
    few = f"the held-out photographs ({counts}) are" if counts else "the held-out photographs are"
    notes = [
        f"Distances are to the photographs of the {table.plan.reference} split because {few} too few for a distance. "
        "This favours methods that memorise training images: no number here distinguishes that from generating new "
        "ones."
    ]  # fmt: skip
    if table.photographs:
        notes.append(
            f"*{_REFERENCE}* are the validation photographs evaluated instead of results. They are not a bound, "
            "results may exceed them: an image generated from a mask can show the mask's classes more clearly than the "
            "street did, and methods were trained on the photographs that distances refer to, not on the held-out ones."
        )
    return notes


def _warnings(table: Table) -> list[str]:
    """Warnings of the evaluations, each once."""
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
    """The evaluation networks, with the hashes of their weights."""
    for line in table.lines:
        for evaluation in line.found:
            return list(evaluation.facts.get("networks", []))
    return []


def write(table: Table, out: Path) -> Path:
    """Write `TABLE.md` and `TABLE.json` atomically; returns the path of the first."""
    texts = {
        ".json": json.dumps(to_dict(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        ".md": markdown(table),
    }
    for suffix, text in texts.items():
        with whole_file(out / f"{table.plan.table}{suffix}", overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / f"{table.plan.table}.md"
