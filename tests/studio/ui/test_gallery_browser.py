"""The gallery's script in a real browser, on its own page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, chromium

pytestmark = pytest.mark.browser

STATIC = files("piti.studio.ui") / "static"
PAGE = """<!doctype html><div id="element">{html}</div><script>
const element = document.querySelector("#element"), props = {{ value: "" }}, trigger = () => {{}};
const watch = (_, changed) => (window.show = (value) => {{ props.value = JSON.stringify(value); changed(); }});
{script}</script>"""
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
DONE = {"state": "done", "status": "2 photographs", "pictures": [{"address": DOT, "file": "m-0-0.png"}] * 2}


def result(*numbers: int, editable: bool = False) -> dict[str, Any]:
    """A finished result of pictures by their numbers."""
    pictures = [{"id": f"p{k}", "address": f"{DOT}#{k}", "file": f"m-0-{k}.png", "editable": editable} for k in numbers]
    return {"state": "done", "status": f"{len(numbers)} photographs", "pictures": pictures}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as window:
        yield window


def shown(browser: Browser, value: dict[str, Any]) -> tuple[str, int, str, str]:
    """The state, the number of finished pictures, the status and the problem, once the page has this value."""
    browser.run("show(arguments[0])", value)
    script = """const text = (name) => element.querySelector(name).textContent;
        const count = element.querySelectorAll(".download").length;
        return [element.dataset.state, count, text(".status"), text(".problem")]"""
    return tuple(browser.run(script))  # type: ignore[return-value]


def earlier(browser: Browser) -> list[str]:
    """The numbers of the pictures of earlier results, as they are shown."""
    script = """return element.querySelector(".earlier").hidden ? []
        : [...element.querySelectorAll(".thumbnails img")].map((image) => image.src.split("#")[1])"""
    return browser.run(script)


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    html, script = ((STATIC / f"gallery.{kind}").read_text("utf-8") for kind in ("html", "js"))
    (tmp_path / "gallery.html").write_text(PAGE.format(html=html, script=script), encoding="utf-8")
    browser.open(tmp_path / "gallery.html")
    return browser


def test_pictures_of_earlier_results_can_be_had_again(page: Browser) -> None:
    """Making others, or a live preview, took finished pictures away for good."""
    shown(page, result(0, 1))
    assert earlier(page) == []
    shown(page, {"state": "live", "status": "Live", "previews": [DOT]})
    assert earlier(page) == ["0", "1"]
    shown(page, result(2, editable=True))
    assert earlier(page) == ["0", "1"]
    shown(page, result(2, editable=True))  # sent again
    assert earlier(page) == ["0", "1"]
    shown(page, {"state": "running", "status": "Step 1 of 2", "expected": 1})
    assert earlier(page) == ["2", "0", "1"]
    page.click(".thumbnails .view")
    seen = """const dialog = element.querySelector(".viewer"), save = element.querySelector(".save");
        return [dialog.open, dialog.querySelector("img").src.split("#")[1], save.download,
            element.querySelector(".change").hidden]"""
    assert page.run(seen) == [True, "2", "m-0-2.png", False]
    page.click(".bar .next")
    assert page.run(seen) == [True, "0", "m-0-0.png", True]
    page.run("element.querySelector('.viewer').close()")
    broken = result(3)
    broken["pictures"][0]["address"] = "nowhere.png#3"
    shown(page, broken)
    shown(page, result(4))
    page.wait("element.querySelectorAll('.thumbnails img').length === 3")
    assert earlier(page) == ["2", "0", "1"]


def test_pictures_stay_beside_a_problem(page: Browser) -> None:
    browser, invited = page, {"state": "settled", "status": "draw"}
    assert shown(browser, {"state": "failed", "problem": "no picture"}) == ("failed", 0, "", "no picture")
    assert shown(browser, invited) == ("empty", 0, "draw", "")
    assert shown(browser, DONE) == ("done", 2, "2 photographs", "")
    assert shown(browser, {"state": "failed", "problem": "no picture"}) == ("failed", 2, "", "no picture")
    assert shown(browser, invited) == ("done", 2, "2 photographs", "")
    assert shown(browser, {"state": "running", "status": "Step 1 of 2", "expected": 1})[1] == 0
    assert shown(browser, {"state": "failed", "problem": "cancelled"}) == ("failed", 2, "", "cancelled")
