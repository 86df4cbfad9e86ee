"""Damaged inputs raise user errors in all readers; `benchmarks/fuzz.py` does the same for longer."""

from __future__ import annotations

import pytest

from benchmarks import fuzz

NAMES = ("pictures", "arrays", "EXR", "classes.json", "splits.json", "recipes", "manifests", "weights", "model folders")


@pytest.mark.parametrize("name", [*NAMES, "PNG metadata"])
def test_damaged_inputs_are_read_or_refused_in_words(name: str) -> None:
    report = fuzz.run({name}, 20, seed=1).get(name)
    if report is None:
        pytest.skip("OpenEXR is not installed")
    assert not report.faults, report.faults[0]
    assert report.outcomes["refused in words"] > 0
