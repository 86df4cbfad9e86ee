"""Tables: means over seeds, intervals, the best in bold, published numbers, and what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from piti.evaluation.result import Evaluation, Measure
from piti.reproduction.plans import Plan, Row, Training
from piti.reproduction.tables import Cell, Line, Table, compact, markdown, to_dict, write

PITI = Row("PITI", "piti", Training("piti", "piti", "camvid"))
SPADE = Row("SPADE", "spade", Training("spade", "spade", "camvid"))
SCRATCH = Row("from scratch", "scratch", Training("scratch", "scratch", "camvid"))
PLAN = Plan("table1", "Table 1: methods", "small", (SPADE, SCRATCH, PITI), 64, "train", ("a note",))


def found(fd: float, miou: float, note: str = "few images") -> Evaluation:
    measures = (
        Measure("fd", fd, fd - 1, fd + 2, "squeezenet"),
        Measure("miou", miou, of="judge"),
        Measure("iou", 3.0, of="sky"),
    )
    return Evaluation(measures, {"networks": [{"name": "squeezenet", "sha256": "ab"}]}, (note,))


def table(**changes: object) -> Table:
    lines = (
        Line(SPADE, (found(30, 20), found(32, 22))),
        Line(SCRATCH, (found(50, 10),), ("seed 1: it diverged",)),
        Line(PITI, (found(20, 21), found(22, 21))),
    )
    return replace(Table(PLAN, 2, lines, {"camvid": found(5, 60)}), **changes)  # type: ignore[arg-type]


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first of each row."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_a_cell_is_a_mean_with_its_spread_and_interval() -> None:
    assert str(Cell((30.0, 32.0), 29.5, 33.5)) == "31 ± 1.41 [29.5, 33.5]"
    assert str(Cell((30.0,))) == "30"
    assert Cell((1.0,)).spread is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.04567, "0.0457"), (12.345, "12.3"), (345.67, "345.7"), (12345.6, "12,346")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_rows_hold_ours_and_what_is_published() -> None:
    cells = rows(markdown(table()))
    assert cells["method"] == [
        "Fréchet distance (squeezenet) ↓",
        "mIoU (judge), % ↑",
        "published: mIoU, ADE20K",
        "published: FID, ADE20K",
        "published: mIoU, COCO-Stuff",
        "published: FID, COCO-Stuff",
    ]
    assert cells["*photographs (held out)*"][:2] == ["5 [4, 7]", "60"]
    assert cells["SPADE"] == ["31 ± 1.41 [30, 33]", "**21 ± 1.41**", "38.5", "33.9", "37.4", "22.6"]
    assert cells["PITI"][:2] == ["**21 ± 1.41 [20, 23]**", "**21 ± 0**"]
    assert cells["from scratch †"] == ["50 [49, 52]", "10", *["not at hand"] * 4]


def test_the_best_is_by_the_measures_direction_and_ties_share_it() -> None:
    assert table().best("camvid", ("fd", "squeezenet")) == 21
    assert table().best("camvid", ("miou", "judge")) == 21
    lines = tuple(replace(line, found=(found(7, 7),)) for line in table().lines)
    assert table(lines=lines).best("camvid", ("fd", "squeezenet")) is None  # nobody is better


def test_what_is_missing_is_named_and_notes_come_once() -> None:
    text = markdown(table())
    assert "- † from scratch: seed 1: it diverged\n" in text
    assert text.count("few images") == 1
    assert "- a note\n" in text
    assert "PLACE" in text
    nothing = table(lines=(Line(PITI, (), ("seed 0: not made yet",)), Line(SPADE, (found(1, 1),))))
    assert rows(markdown(nothing))["PITI †"][:2] == ["missing", "missing"]
    assert not nothing.complete


def test_at_the_papers_scale_numbers_of_the_same_data_stand_beside() -> None:
    row = Row("PITI", "piti", Training("piti-ade20k", "piti", "ade20k"))
    other = Row("PITI", "piti", Training("piti-diode", "piti", "diode"))
    plan = replace(PLAN, scale="paper", rows=(row, other), reference="val")
    text = markdown(Table(plan, 1, (Line(row, (found(9, 9),)), Line(other, (found(8, 8),))), {}))
    assert "## ADE20K, mask to image" in text
    assert "| PITI | 9 [8, 11] | 9 | 29.4 | 27.9 |" in text
    assert "| PITI | 8 [7, 10] | 8 | not at hand |" in text
    assert "![samples](table1-diode.jpg)" in text


def test_files_hold_the_same(tmp_path: Path) -> None:
    place = write(table(), tmp_path)
    assert place.read_text() == markdown(table())
    values = json.loads((tmp_path / "table1.json").read_text())
    assert values == to_dict(table())
    piti = values["rows"][2]
    assert piti["measures"][0] == {
        "name": "fd", "of": "squeezenet", "mean": 21, "spread": pytest.approx(2**0.5),
        "values": [20, 22], "low": 20, "high": 23,
    }  # fmt: skip
    assert piti["published"][0]["source"].startswith("Lv et al.")
    assert values["networks"] == [{"name": "squeezenet", "sha256": "ab"}]
    write(table(seeds=1), tmp_path)  # in the place of the former
    assert json.loads((tmp_path / "table1.json").read_text())["seeds"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table1.json", "table1.md"]
