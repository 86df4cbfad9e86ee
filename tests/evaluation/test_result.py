"""Results: JSON that can be read again, tables, numbers that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from piti.core.files import OutputError
from piti.evaluation.judges import OF_REAL, REAL
from piti.evaluation.result import KINDS, Evaluation, Measure, ResultError

FOUND = Evaluation(
    (
        Measure("fd", 12.34567, 10.0, 15.0, of="inception"),
        Measure("fd", 3.0, of="clip"),
        Measure("miou", 41.0, unit="%"),
    ),
    {"generated": {"images": 8}},
    ("small sample",),
)


def test_json_gives_the_same_again(tmp_path: Path) -> None:
    FOUND.write(tmp_path / "deep" / "result.json")
    assert Evaluation.read(tmp_path / "deep" / "result.json") == FOUND
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["result.json"]


def test_an_earlier_result_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("precious")
    with pytest.raises(OutputError, match="give another json"):
        FOUND.write(path)
    assert path.read_text() == "precious"
    FOUND.write(path, overwrite=True)
    assert Evaluation.read(path) == FOUND


def test_values_by_name() -> None:
    assert FOUND.value("fd", "clip") == 3.0
    assert FOUND.value("miou") == 41.0
    with pytest.raises(ResultError, match="no measure 'fd' alone; there are: fd of inception, fd of clip, miou"):
        FOUND.value("fd")
    with pytest.raises(ResultError, match="'kid' of 'clip'"):
        FOUND.value("kid", "clip")


def test_every_measure_of_photographs_has_a_title() -> None:
    assert {REAL + name for name in OF_REAL} <= KINDS.keys()


def test_rows() -> None:
    assert FOUND.rows()[0] == {
        "measure": "Fréchet distance",
        "of": "inception",
        "value": "12.35",
        "95% interval": "10 … 15",
        "unit": "",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float) -> None:
    with pytest.raises(ResultError, match="Fréchet distance, clip came out as"):
        Measure("fd", value, of="clip")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read"), ("[]", "no result"), ('{"format": 1}', "no result"), ('{"format": 9}', "format 9")],
)
def test_files_that_hold_no_result(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=rf"result\.json: .*{said}"):
        Evaluation.read(path)


def test_it_is_plain_json(tmp_path: Path) -> None:
    FOUND.write(tmp_path / "result.json")
    values = json.loads((tmp_path / "result.json").read_text())
    assert values["measures"][1] == {"name": "fd", "value": 3.0, "low": None, "high": None, "of": "clip", "unit": ""}
