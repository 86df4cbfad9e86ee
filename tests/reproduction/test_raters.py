"""Table 2 from images to rates: pages, votes, and the paper's rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from piti.core.errors import UserError
from piti.evaluation.preference.statistics import count_votes
from piti.evaluation.preference.votes import Key, StudyError, read_key
from piti.reproduction import raters
from piti.reproduction.plans import plan_of
from piti.reproduction.raters import count_studies, page_of, write_studies
from piti.reproduction.rows import Plan, Row, Training
from piti.reproduction.runs import Workspace
from tests.evaluation.tiny_judges import noise

QUIET = Console(quiet=True)
PLAN = plan_of("table2", "small")


@pytest.fixture
def workspace(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Every row has its images, but OASIS, whose run fails."""

    def images(row: Row, runs: list[Path], seed: int, *rest: object) -> tuple[Path, dict[str, object]]:
        folder = tmp_path / "images" / row.images
        folder.mkdir(parents=True, exist_ok=True)
        for k, stem in enumerate(("scene-09", "scene-10", "scene-11")):
            noise(32, 32, len(row.images) + k).save(folder / f"{stem}_0.png")
        return folder, {}

    def trained(plan: Plan, training: Training, *rest: object) -> Path:
        if training.name == "oasis":
            raise UserError("it diverged")
        return tmp_path

    monkeypatch.setattr(raters, "check_all", lambda *rest, **more: None)
    monkeypatch.setattr(raters, "trained_once", trained)
    monkeypatch.setattr(raters, "sampled", images)
    return Workspace(tmp_path / "out", {"camvid": tiny_data}, device="cpu")


def votes(key: Key, for_a: int, rater: str) -> dict[str, object]:
    """A rater who prefers A in the first `for_a` pairs."""
    answers = [
        {"pair": p.id, "left": p.a, "right": p.b, "chosen": p.a if k < for_a else p.b, "repeat": False, "seconds": 2.0}
        for k, p in enumerate(key.pairs)
    ]
    return {"format": "piti votes 1", "study": key.study, "rater": rater, "votes": answers}


def test_pages_out_and_rates_in(workspace: Workspace, tmp_path: Path) -> None:
    made = write_studies(PLAN, workspace, QUIET)
    assert set(made.written) == {"spade", "scratch"}
    assert made.missing == ("OASIS: it diverged",)
    page = workspace.out / "table2/spade.html"
    assert page == page_of(workspace.out, PLAN.rows[0])
    assert "scene-09" not in page.read_text()  # blind
    sent = tmp_path / "sent"
    sent.mkdir()
    for name, for_a, rater in (("spade", 3, "a" * 16), ("spade", 2, "b" * 16), ("scratch", 1, "a" * 16)):
        key = read_key(page.with_name(f"{name}.key.json"))
        (sent / f"votes-{name}-{rater[0]}.json").write_text(json.dumps(votes(key, for_a, rater)))
    text = count_studies(PLAN, workspace.out, [sent]).read_text()
    data = workspace.data["camvid"].name  # which is not CamVid
    assert f"How often raters prefer *PITI as in the paper*, %; `{data}` (instead of CamVid), mask to image." in text
    assert "| SPADE | 83.3 [" in text
    assert "| OASIS | no votes |  |  |  | 84.1 |" in text
    assert "| 1 | 3 | 87.4 |" in text  # from scratch: one rater, three pairs
    values = json.loads((workspace.out / "table2.json").read_text())
    assert [row["method"] for row in values["rows"]] == ["SPADE", "OASIS", "from scratch as in the paper"]
    assert len(values["published"]) == 3


def test_votes_of_another_page_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    write_studies(PLAN, workspace, QUIET)
    key = workspace.out / "table2/spade.key.json"
    (tmp_path / "votes-x.json").write_text(json.dumps(votes(read_key(key), 2, "a" * 16)))
    key.unlink()
    with pytest.raises(StudyError, match=r"votes-x\.json: votes of other pages"):
        count_studies(PLAN, workspace.out, [tmp_path / "votes-x.json"])


def test_the_key_of_a_page_that_is_replaced_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    """Its raters may not have sent back their votes yet."""
    write_studies(PLAN, workspace, QUIET)
    place = workspace.out / "table2"
    before = read_key(place / "spade.key.json")
    again = write_studies(PLAN, workspace, QUIET)
    assert not again.written["spade"].notes
    assert len(list(place.glob("spade*.json"))) == 1
    other = write_studies(PLAN, workspace, QUIET, limit=2)
    kept = place / f"spade-{before.study}.key.json"
    assert f"kept as {kept}" in other.written["spade"].notes[-1]
    (tmp_path / "votes-x.json").write_text(json.dumps(votes(before, 2, "a" * 16)))
    assert count_votes([tmp_path / "votes-x.json"], kept).pairs == 3
    with pytest.raises(StudyError, match=r"votes-x\.json: votes of other pages"):
        count_studies(PLAN, workspace.out, [tmp_path / "votes-x.json"])


def test_ours_must_be_there(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="it diverged"):
        write_studies(replace(PLAN, rows=_ours_is_oasis()), workspace, QUIET)


def _ours_is_oasis() -> tuple[Row, ...]:
    others = [row for row in PLAN.rows if row.key != "piti"]
    return (*others, replace(others[1], key="piti"))
