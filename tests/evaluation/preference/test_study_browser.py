"""Voting on the page in a real browser, by keys and clicks, up to a valid votes file."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piti.evaluation.preference.statistics import count_votes
from piti.evaluation.preference.study import Compared, Study, StudyOptions, write_study
from piti.evaluation.preference.votes import read_key
from tests.browser import Browser, chromium
from tests.evaluation.preference.studies import folders, page_data

pytestmark = pytest.mark.browser

PAIRS, REPEATS = 12, 3
SEEDS = itertools.count()
SIDES = "return ['left', 'right'].map((id) => document.querySelector(`#${id} img`).src)"
READY = "!document.getElementById('stage').classList.contains('waiting')"
VOTE_FOR_A = """
const ours = new Set(arguments[0]), limit = arguments[1];
const vote = document.getElementById("vote"), stage = document.getElementById("stage");
for (let count = 0; !vote.hidden && count < limit;) {
  if (stage.classList.contains("waiting")) { await new Promise((resolve) => setTimeout(resolve, 1)); continue; }
  const key = ours.has(document.querySelector("#left img").src) ? "ArrowLeft" : "ArrowRight";
  document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  count += 1;
}
return document.getElementById("text").value;
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Browser]:
    with chromium(downloads) as window:
        yield window


@pytest.fixture
def made(tmp_path: Path) -> Study:
    """A study, new to the browser, whose pictures of B are twice as large as those of A."""
    a, b = folders(tmp_path, PAIRS, (16, 16), (32, 32))
    return write_study(Compared(a, b), tmp_path / "study.html", StudyOptions(next(SEEDS), ties=True, repeats=REPEATS))


def pictures_of_a(made: Study) -> set[str]:
    ours = {pair.a for pair in read_key(made.key).pairs}
    pairs = page_data(made.page)["pairs"]
    return {image["src"] for pair in pairs for image in pair["images"] if image["id"] in ours}


def count_shown(browser: Browser) -> str:
    return browser.run("return document.getElementById('count').textContent")


def test_a_person_votes_and_the_file_counts(browser: Browser, made: Study, downloads: Path) -> None:
    ours = pictures_of_a(made)
    browser.resize(1366, 768)
    browser.open(made.page)
    assert browser.run("return document.getElementById('total').textContent") == str(PAIRS + REPEATS)
    browser.click("#name")
    browser.press("A")
    browser.click("#begin")
    browser.wait(READY)
    left, _ = browser.run(SIDES)
    browser.press("right" if left in ours else "left")  # B, which is taken back
    browser.wait(READY)
    browser.press("back")
    browser.wait(READY)
    assert browser.run("return document.querySelectorAll('.choice[aria-pressed=true]').length") == 1
    assert browser.run(SIDES)[0] == left
    browser.click("#left" if left in ours else "#right")
    browser.wait(READY)
    browser.press("up")  # no preference
    browser.wait(READY)
    assert count_shown(browser) == f"3 of {PAIRS + REPEATS}"

    browser.open(made.page)  # closed and opened again: it goes on
    assert "2 of 15" in browser.run("return document.getElementById('begin').textContent")
    assert browser.run("return document.getElementById('name').value") == "A"
    browser.click("#begin")
    browser.wait(READY)
    assert count_shown(browser) == f"3 of {PAIRS + REPEATS}"
    browser.run(f"return (async () => {{ {VOTE_FOR_A} }})()", sorted(ours), 1000)
    browser.click("#save")
    files: list[Path] = []
    while not files:  # which are made before they are filled
        files = [one for one in downloads.glob("votes-*.json") if one.stat().st_size]
        time.sleep(0.01)
    assert files[0].name.startswith(f"votes-{made.id[:6]}-a-")

    found = count_votes([*files, made.key])
    assert (found.wins_a, found.wins_b, found.ties) == (PAIRS - 1, 0, 1)
    assert found.per_rater[0].name == "A"
    assert found.per_rater[0].repeats == REPEATS
    assert found.per_rater[0].consistent >= REPEATS - 1  # the pair without preference may be among them


def test_every_rater_gets_another_order_and_even_sides(browser: Browser, made: Study, tmp_path: Path) -> None:
    ours = pictures_of_a(made)
    a = {pair.a for pair in read_key(made.key).pairs}
    browser.open(made.page)
    files, orders, left = [], set(), []
    for rater in range(8):
        browser.click("#begin")
        browser.wait(READY)
        text = browser.run(f"return (async () => {{ {VOTE_FOR_A} }})()", sorted(ours), 1000)
        votes = json.loads(text)["votes"]
        files.append(tmp_path / f"votes-{rater}.json")
        files[-1].write_text(text)
        orders.add(tuple(vote["pair"] for vote in votes))
        left += [vote["left"] in a for vote in votes if not vote["repeat"]]
        for index, vote in enumerate(votes):
            if vote["repeat"]:
                assert vote["pair"] in {earlier["pair"] for earlier in votes[: index - 1]}  # not right after the first
        browser.run("window.confirm = () => true")
        browser.click("#next")
    found = count_votes(files)
    assert (found.rate, found.raters, found.votes, found.consistency) == (1, 8, 8 * PAIRS, 1)
    assert len(orders) == 8
    assert 33 <= sum(left) <= 63  # of 96, three standard deviations


def test_a_rater_may_stop_early(browser: Browser, made: Study, tmp_path: Path) -> None:
    browser.open(made.page)
    browser.click("#begin")
    browser.wait(READY)
    browser.run(f"return (async () => {{ {VOTE_FOR_A} }})()", sorted(pictures_of_a(made)), 4)
    browser.click("#stop")
    file = tmp_path / "votes.json"
    file.write_text(browser.run("return document.getElementById('text').value"))
    found = count_votes([file])
    assert (found.rate, found.votes) == (1, 4)
    assert any("answered 4 of 12 pairs" in note for note in found.notes)
    browser.click("#resume")
    browser.wait(READY)
    assert count_shown(browser) == f"5 of {PAIRS + REPEATS}"


@pytest.mark.parametrize(("width", "height", "density"), [(1366, 768, 1.0), (390, 844, 3.0), (844, 390, 2.0)])
def test_both_pictures_have_one_size_in_whole_pixels(
    browser: Browser, made: Study, width: int, height: int, density: float
) -> None:
    browser.resize(width, height, density)
    browser.open(made.page)
    browser.click("#begin")
    browser.wait(READY)
    boxes = browser.run(
        "return [...document.querySelectorAll('.choice img')].map((image) => {"
        " const box = image.getBoundingClientRect();"
        " return [box.width, box.height, box.left, box.top, box.right, box.bottom, image.alt]; })"
    )
    assert boxes[0][:2] == boxes[1][:2]
    scale = boxes[0][0] * density / 32  # of the larger picture; the smaller one has half its pixels
    assert scale == pytest.approx(round(scale), abs=0.02)
    assert scale >= 2
    assert all(0 <= x <= width and 0 <= y <= height for box in boxes for x, y in (box[2:4], box[4:6]))
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth && scrollY === 0")
    assert {box[6] for box in boxes} in ({"Left picture", "Right picture"}, {"Upper picture", "Lower picture"})
