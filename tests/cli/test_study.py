"""`piti study`: a page for raters, and their votes counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from piti.core.images import save_png
from tests.cli.running import misspelt, mistake, run


@pytest.mark.parametrize(
    ("make", "count"), [("study make", "study count"), ("evaluate --study", "evaluate --votes")], ids=["new", "old"]
)
def test_a_study_and_its_votes(make: str, count: str, tiny_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    images = tiny_data / "images"
    other = tmp_path / "other"
    for path in images.iterdir():
        save_png(Image.open(path).rotate(180), other / path.name)
    given = ("--out", page, "--labels", tiny_data / "labels", "--limit", 6, "--question", "Eh?")
    said = run(*make.split(), images, other, *given)
    assert page.is_file()
    assert "6 of 12 pairs" in said
    assert ("old spelling" in said) == make.startswith("evaluate")
    key = json.loads((tmp_path / "study.key.json").read_text())
    assert key["question"] == "Eh?"
    files = [_voted(key, tmp_path / f"votes-{rater}.json", rater) for rater in ("0123456789abcdef", "f" * 16)]
    said = run(*count.split(), *files, "--json", tmp_path / "votes.json")
    assert "100.0%" in said
    assert json.loads((tmp_path / "votes.json").read_text())["rate"] == 1
    assert "give another --json" in mistake(*count.split(), *files, "--json", tmp_path / "votes.json")


def test_mistakes(tiny_data: Path) -> None:
    both = ("--labels", tiny_data / "labels", "--sketches", tiny_data / "images")
    assert "--labels and --sketches: a study displays one kind" in mistake("study", "make", "a", "b", *both)
    assert "--classes has no effect without --labels" in mistake("study", "make", "a", "b", "--classes", "x.json")
    assert "No such option: --real" in misspelt("study", "make", "a", "b", "--real", "x")
    assert "No such option: --real" in misspelt("evaluate", "--study", "a", "b", "--real", "x")


def _voted(key: dict, path: Path, rater: str) -> Path:
    """Votes for A throughout."""
    votes = [
        {"pair": pair["id"], "left": pair["a"], "right": pair["b"], "chosen": pair["a"], "repeat": False, "seconds": 1}
        for pair in key["pairs"]
    ]
    values = {"format": "piti votes 1", "study": key["study"], "rater": rater, "votes": votes}
    path.write_text(json.dumps(values))
    return path
