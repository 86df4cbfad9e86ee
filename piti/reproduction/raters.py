"""Table 2: preference studies of PITI's images against other methods', and the rates from raters' votes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from piti.core.errors import Message, UserError, option, text_of
from piti.core.files import whole_file
from piti.evaluation.preference.statistics import Preference, count_votes
from piti.evaluation.preference.study import Compared, Study, StudyOptions, write_study
from piti.evaluation.preference.votes import KEY_SUFFIX, StudyError, by_study, read_key
from piti.reproduction.images import sampled
from piti.reproduction.make import Results, check_all, check_alone, dataset_files, trained_once
from piti.reproduction.plans import described
from piti.reproduction.published import ABOUT
from piti.reproduction.rows import SETS, Plan, Row
from piti.reproduction.runs import Workspace
from piti.reproduction.table_files import published_of

OURS = "piti"
"""Key of the row that is compared with each other row."""
_DATA = "data.txt"  # file beside the pages with their data set's title
_SEED = 0  # seed of the images: raters see one run of each method


@dataclass(frozen=True)
class Studies:
    """The written pages, and failures."""

    written: Mapping[str, Study]
    """Studies by the method that PITI is compared with."""
    missing: tuple[str, ...] = ()


def write_studies(plan: Plan, workspace: Workspace, console: Console, limit: int | None = None) -> Studies:
    """Generate every row's images, with training if necessary, and write a page comparing PITI with each method.

    Pages are `OUT/table2/METHOD.html`, their keys beside them; an existing page is replaced only if it would differ,
    and its key is kept as `METHOD-STUDY.key.json`. limit: largest number of pairs per page. Raises UserError for known
    problems of runs, and if PITI's images cannot be generated.
    """
    check_alone()
    check_all(plan, workspace, console, judged=False)
    (data,) = plan.sets
    chosen, found = dataset_files(plan, data, workspace), Results()

    def images(row: Row) -> Path:
        runs = [trained_once(plan, training, _SEED, workspace, console, found) for training in row.trainings]
        return sampled(row, runs, _SEED, workspace, chosen, console)[0]

    ours, others = _sides(plan)
    mine = images(ours)
    _note_data(workspace.out, described(data, workspace.data[data]))
    written: dict[str, Study] = {}
    missing: list[str] = []
    for row in others:
        try:
            compared = Compared(mine, images(row), chosen.conditions, chosen.condition)
            options = StudyOptions(_SEED, limit=limit)
            written[row.key] = _written(compared, page_of(workspace.out, row), options)
        except (UserError, OSError, RuntimeError) as error:
            missing.append(Message(f"{row.method}: {text_of(error)}"))
    return Studies(written, tuple(missing))


def _written(compared: Compared, page: Path, options: StudyOptions) -> Study:
    """Write the page; the key of a page that it replaces is kept, since its votes may still arrive."""
    key = page.with_name(page.stem + KEY_SUFFIX)
    if not key.is_file():
        return write_study(compared, page, options, overwrite=True)
    before = read_key(key).study
    kept = page.with_name(f"{page.stem}-{before}{KEY_SUFFIX}")
    with whole_file(kept, overwrite=True) as partial:
        partial.write_bytes(key.read_bytes())
    try:
        study = write_study(compared, page, options, overwrite=True)
    finally:
        if read_key(key).study == before:
            kept.unlink()
    if study.id == before:
        return study
    note = Message(f"that key is kept as {kept}; count its votes with piti study count VOTES {option('key')} {kept}")
    return replace(study, notes=(*study.notes, note))


def _note_data(out: Path, title: str) -> None:
    """Store the data set's title beside the pages, for counting votes."""
    (out / "table2").mkdir(parents=True, exist_ok=True)
    with whole_file(out / "table2" / _DATA, overwrite=True) as partial:
        partial.write_text(title + "\n", encoding="utf-8")


def _title(plan: Plan, out: Path) -> str:
    """Title of the pages' data set."""
    (data,), kept = plan.sets, out / "table2" / _DATA
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else SETS[data].title


def page_of(out: Path, row: Row) -> Path:
    """Path of a row's page."""
    return out / "table2" / f"{row.key}.html"


def _sides(plan: Plan) -> tuple[Row, list[Row]]:
    """PITI's row, and those that it is compared with."""
    (ours,) = (row for row in plan.rows if row.key == OURS)
    return ours, [row for row in plan.rows if row.key != OURS]


def count_studies(plan: Plan, out: Path, votes: Sequence[Path]) -> Path:
    """Count votes and write `table2.md` and `table2.json`, with the paper's rates; returns the path of the first.

    votes: files from raters, or folders of them, for any of the pages. Raises StudyError for votes of other studies,
    and if a page's key is missing.
    """
    files = by_study(votes)
    counted: dict[str, Preference] = {}
    for row in _sides(plan)[1]:
        key = page_of(out, row).with_name(f"{row.key}{KEY_SUFFIX}")
        mine = files.pop(read_key(key).study, []) if key.is_file() else []
        if mine:
            counted[row.key] = count_votes(mine, key)
    if files:
        named = ", ".join(str(path) for paths in files.values() for path in paths)
        raise StudyError(
            f"{named}: votes of other pages than those in {out / 'table2'}; remove them, or count them separately with "
            "piti study count and their own key"
        )
    values = {
        "table": plan.table,
        "scale": plan.scale,
        "rows": [{"method": row.method, "rate": _plain(counted.get(row.key))} for row in _sides(plan)[1]],
        "published": [q.__dict__ for row in _sides(plan)[1] for q in published_of(plan, row)],
    }
    texts = {
        ".json": json.dumps(values, indent=1, ensure_ascii=False) + "\n",
        ".md": _markdown(plan, counted, _title(plan, out)),
    }
    for suffix, text in texts.items():
        with whole_file(out / f"{plan.table}{suffix}", overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / f"{plan.table}.md"


def _plain(found: Preference | None) -> object:
    return found.to_dict() if found else None


def _markdown(plan: Plan, counted: Mapping[str, Preference], title: str) -> str:
    """The rates as a table. title: of the data."""
    ours, others = _sides(plan)
    (data,) = plan.sets
    lines = [
        f"# {plan.title}, {plan.scale} scale\n",
        f"How often raters prefer *{ours.method}*, %; {title}, {SETS[data].task}.\n",
        "| against | preferred, % | votes | raters | pairs | published: ours preferred, %, COCO-Stuff |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in others:
        quoted = ", ".join(f"{q.value:.1f}" for q in published_of(plan, row)) or "–"
        found = counted.get(row.key)
        cells = ["no votes", "", "", ""]
        if found:
            rate = f"{found.rate:.1%} [{found.low:.1%} to {found.high:.1%}]".replace("%", "")
            cells = [rate, str(found.votes), str(found.raters), str(found.pairs)]
        lines.append(f"| {row.method} | {' | '.join(cells)} | {quoted} |")
    notes = [
        "[low to high] is the 95% interval; table2.json states its kind and the totals of every rater.",
        "Images of seed 0, one per condition; pages are in table2/.",
        *plan.notes,
        ABOUT[plan.table],
        *(note for found in counted.values() for note in found.notes),
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in dict.fromkeys(notes))]) + "\n"
