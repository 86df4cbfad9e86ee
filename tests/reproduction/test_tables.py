"""Tables: means over seeds, intervals, the best in bold, published numbers, and missing results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from piti.evaluation.result import Evaluation, Measure
from piti.reproduction.cells import Cell, best_of, cell_of, decimals_for, number
from piti.reproduction.rows import Plan, Row, Training
from piti.reproduction.table_files import markdown, to_dict, write
from piti.reproduction.tables import Facts, Line, Table

PITI = Row("PITI", "piti", Training("piti", "piti", "camvid"))
SPADE = Row("SPADE", "spade", Training("spade", "spade", "camvid"))
SCRATCH = Row("from scratch", "scratch", Training("scratch", "scratch", "camvid"))
PLAN = Plan("table1", "Table 1: methods", "small", (SPADE, SCRATCH, PITI), 64, "train", ("a note",), own_data=True)
DATA = {"camvid": Facts("CamVid", 1499, 31)}


def found(fd: float, miou: float, note: str = "small sets") -> Evaluation:
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
    return replace(Table(PLAN, 2, lines, {"camvid": found(5, 60)}, DATA), **changes)  # type: ignore[arg-type]


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first of each row."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_a_cell_is_a_mean_with_its_spread_and_interval() -> None:
    assert Cell((30.0, 32.0), 29.5, 33.5).text(1) == "31.0 ± 1.4 [29.5 to 33.5]"
    assert Cell((1630.0,), 1120.4, 1908).text(0) == "1,630 [1,120 to 1,908]"
    assert Cell((30.0,)).text(2) == "30.00"
    assert Cell((1.0,)).spread is None


def test_an_interval_without_a_width_is_none() -> None:
    for low, high in ((0.0, 0.0), (None, None)):
        cell = cell_of([Measure("precision", 0.0, low, high), Measure("precision", 0.0, 0.0, 0.2)])
        assert cell is not None
        assert cell == Cell((0.0, 0.0))
        assert cell.text(3) == "0.000 ± 0.000"
    assert cell_of([Measure("fd", 1, 0, 3), Measure("fd", 2, 1, 4)]) == Cell((1, 2), 0.5, 3.5)
    assert cell_of([]) is None


def test_the_best_is_none_where_intervals_overlap() -> None:
    apart, near, far = Cell((5.0,), 4, 6), Cell((7.0,), 6.5, 8), Cell((7.0,), 5.5, 8)
    assert best_of([near, apart], "low") == 5
    assert best_of([near, apart], "high") == 7
    assert best_of([far, apart], "low") is None
    assert best_of([far, apart, Cell((4.5,), 1, 9)], "low") is None  # the best two alone decide
    assert best_of([Cell((7.0,)), apart], "low") == 5  # one without an interval stands for itself
    assert best_of([Cell((5.5,)), apart], "low") is None
    assert best_of([Cell((5.0,)), Cell((5.0,))], "low") is None
    assert best_of([near, apart], "") is None
    assert best_of([apart], "low") is None


@pytest.mark.parametrize(
    ("values", "decimals"), [((0.0, 0.0882), 3), ((0.2, 1.5), 2), ((-12.3, 4), 1), ((345.6, 3), 1), ((999, 12345), 0)]
)
def test_a_column_has_as_many_digits(values: tuple[float, ...], decimals: int) -> None:
    assert decimals_for(values) == decimals
    assert number(12345.678, decimals).startswith("12,34")
    assert "-" not in number(-1e-9, decimals)


def test_rows_hold_ours_and_what_is_published() -> None:
    cells = rows(markdown(table()))
    assert cells["method"] == [
        "Fréchet distance (squeezenet) ↓",
        "mIoU (judge), % ↑",
        "published: FID-C, ADE20K",
        "published: FID-C, COCO-Stuff",
        "published: FID-C, Flickr",
    ]
    assert cells["*photographs (held out)*"][:2] == ["5.0 [4.0 to 7.0]", "60.0"]
    assert cells["SPADE"] == ["31.0 ± 1.4 [30.0 to 33.0]", "21.0 ± 1.4", "18.9", "15.0", "17.4"]
    assert cells["PITI"] == ["**21.0 ± 1.4 [20.0 to 23.0]**", "21.0 ± 0.0", "8.9", "5.2", "6.1"]
    assert cells["from scratch †"] == ["50.0 [49.0 to 52.0]", "10.0", "16.3", "13.0", "10.6"]
    oasis = Row("OASIS", "oasis", Training("oasis", "oasis", "camvid"))
    alone = Row("SPADE alone", "", Training("alone", "spade", "camvid"))
    lines = (Line(oasis, (found(1, 1),)), Line(alone, (found(2, 2),)))
    cells = rows(markdown(table(lines=lines)))
    assert cells["OASIS"][-3:] == ["14.8", "8.8", "10.5"]
    assert cells["SPADE alone"][-3:] == ["–"] * 3


def test_a_judge_that_trained_a_row_makes_nothing_bold_and_stands_behind_others() -> None:
    def judged(fd: float, miou: float) -> Evaluation:
        both = found(fd, miou)
        return replace(both, measures=(*both.measures, Measure("fd", fd / 10, fd / 10, fd / 10 + 0.1, "zeta")))

    lines = (
        Line(SPADE, (judged(10, 50),), minimised=frozenset({"squeezenet"})),
        Line(SCRATCH, (judged(40, 10),)),
        Line(PITI, (judged(20, 21),)),
    )
    text = markdown(table(lines=lines))
    cells = rows(text)
    assert cells["method"][:2] == [
        "Fréchet distance (zeta) ↓",
        "Fréchet distance (squeezenet, used to train some rows) ↓",
    ]
    assert cells["SPADE"][:3] == ["**1.00 [1.00 to 1.10]**", "10.0 [9.0 to 12.0]", "**50.0**"]
    assert cells["PITI"][:2] == ["2.00 [2.00 to 2.10]", "20.0 [19.0 to 22.0]"]
    assert "- squeezenet was used to train SPADE, in a perceptual loss, and favours these" in text
    measures = to_dict(table(lines=lines))["rows"][0]["measures"]
    assert {one["of"]: one["judge_took_part"] for one in measures} == {
        "squeezenet": True,
        "zeta": False,
        "judge": False,
    }
    assert "took part" not in markdown(table())


def test_objects_have_a_column_for_all_classes_together_and_words_for_what_they_are() -> None:
    seen = (Measure("object_distance", 30.0, 28.0, 33.0), Measure("object_distance", 50.0, of="car"))
    few = Measure("small_found", 40.0)
    lines = (Line(PITI, (replace(found(5, 5), measures=(*seen, few)),)),)
    text = markdown(table(lines=lines))
    assert [title for title in rows(text)["method"] if "objects" in title] == [
        "small objects: half of it right, % ↑",
        "objects of a class: distance of colours in an image, levels",
    ]
    assert rows(text)["PITI"][2:4] == ["40.0", "30.0 [28.0 to 33.0]"]
    assert "- Small objects are regions of one class that cover less than 1% of the image" in text
    assert (
        "- Objects of a class: the distance between two regions of one class in one image, each of at least 0.4%"
        in text
    )
    assert "bjects" not in markdown(table())


def test_names_and_counts_are_those_of_the_data() -> None:
    few, more, every = (replace(PITI, pairs=pairs) for pairs in (31, 2000, 0))
    lines = tuple(Line(row, (found(5, 5),)) for row in (few, more, every, SPADE))
    text = markdown(table(lines=lines[:1] + lines[2:], data={"camvid": Facts("`streets`", 1499, 77)}))
    assert "`streets`, mask to image.\n\n1,499 training pairs, 77 validation conditions.\n" in text
    assert {"PITI, 31 pairs", "PITI, all 1,499 pairs", "SPADE"} <= rows(text).keys()
    assert "CamVid" not in text
    assert "499" not in text.replace("1,499", "")
    assert "(77) are too few" in text
    assert table().method(more) == "PITI, all 1,499 pairs"  # there are no more
    assert table(data={}).method(every) == "PITI, all pairs"


def test_photographs_are_no_bound() -> None:
    text = markdown(table())
    assert "within reach" not in text
    assert "evaluated instead of results. They are not a bound, results may exceed them" in text
    assert "(31) are too few for a distance. This favours methods that memorise" in text
    text = markdown(table(photographs={}, unjudged={"camvid": "the disk is full"}))
    assert rows(text)["*photographs (held out)* †"][:2] == ["missing", "missing"]
    assert "- † photographs of CamVid: the disk is full\n" in text
    assert "They are not a bound" not in text
    assert table(lines=(), unjudged={"camvid": "x"}).missing == ["photographs of CamVid: x"]


def test_what_is_missing_is_named_and_notes_come_once() -> None:
    text = markdown(table())
    assert "it is Wilson's for precision and recall" in text  # as `piti.evaluation.distances` gives
    assert "- † from scratch: seed 1: it diverged\n" in text
    assert text.count("small sets") == 1
    assert "- a note\n" in text
    assert "arXiv 2205.12952" in text
    nothing = table(lines=(Line(PITI, (), ("seed 0: not done yet",)), Line(SPADE, (found(1, 1),))))
    assert rows(markdown(nothing))["PITI †"][:2] == ["missing", "missing"]
    assert nothing.missing == ["PITI: seed 0: not done yet"]
    assert not replace(nothing, lines=nothing.lines[1:]).missing


def test_at_the_papers_scale_numbers_of_the_same_data_stand_beside() -> None:
    row = Row("PITI", "piti", Training("piti-ade20k", "piti", "ade20k"))
    other = Row("PITI", "piti", Training("piti-diode", "piti", "diode"))
    plan = replace(PLAN, scale="paper", rows=(row, other), reference="val", own_data=False)
    text = markdown(Table(plan, 1, (Line(row, (found(9, 9),)), Line(other, (found(8, 8),))), {}))
    assert "## ADE20K, mask to image" in text
    assert "| PITI | 9.00 [8.00 to 11.00] | 9.00 | 8.9 |" in text
    assert "| PITI | 8.00 [7.00 to 10.00] | 8.00 | 11.5 |" in text
    assert "other data" not in text
    assert "too few" not in text
    assert "![samples](table1-diode.jpg)" in text


def test_files_hold_the_same(tmp_path: Path) -> None:
    place = write(table(), tmp_path)
    assert place.read_text() == markdown(table())
    values = json.loads((tmp_path / "table1.json").read_text())
    assert values == to_dict(table())
    piti = values["rows"][2]
    assert piti["measures"][0] == {
        "name": "fd", "of": "squeezenet", "mean": 21, "spread": pytest.approx(2**0.5),
        "values": [20, 22], "low": 20, "high": 23, "judge_took_part": False,
    }  # fmt: skip
    assert piti["published"][0]["source"].endswith("table 1, row 'Ours', column 'ADE20K (mask)'")
    assert values["networks"] == [{"name": "squeezenet", "sha256": "ab"}]
    write(table(seeds=1), tmp_path)  # in the place of the former
    assert json.loads((tmp_path / "table1.json").read_text())["seeds"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table1.json", "table1.md"]
