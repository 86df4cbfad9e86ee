"""The gallery's script in a real browser, on a page of its own."""

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


def test_pictures_stay_beside_a_problem(browser: Browser, tmp_path: Path) -> None:
    html, script = ((STATIC / f"gallery.{kind}").read_text("utf-8") for kind in ("html", "js"))
    (tmp_path / "gallery.html").write_text(PAGE.format(html=html, script=script), encoding="utf-8")
    browser.open(tmp_path / "gallery.html")
    invited = {"state": "settled", "status": "draw"}
    assert shown(browser, {"state": "failed", "problem": "no picture"}) == ("failed", 0, "", "no picture")
    assert shown(browser, invited) == ("empty", 0, "draw", "")
    assert shown(browser, DONE) == ("done", 2, "2 photographs", "")
    assert shown(browser, {"state": "failed", "problem": "no picture"}) == ("failed", 2, "", "no picture")
    assert shown(browser, invited) == ("done", 2, "2 photographs", "")
    assert shown(browser, {"state": "running", "status": "Step 1 of 2", "expected": 1})[1] == 0
    assert shown(browser, {"state": "failed", "problem": "cancelled"}) == ("failed", 2, "", "cancelled")
