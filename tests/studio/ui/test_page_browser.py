"""The studio end to end: `piti studio` in its own process, its page in a real browser."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, chromium
from tests.conftest import ROOT
from tests.studio.ui.visitor import PHONE, Visitor, jobs, post

pytestmark = pytest.mark.browser

_FOCUS = """const e = document.activeElement, seen = (n) => {
    const s = getComputedStyle(n);
    return s.outlineStyle !== "none" || s.boxShadow !== "none";
};
return [e.id || e.className, [e, e.parentElement, e.parentElement?.parentElement].some((n) => n && seen(n))]"""
"""What is in focus, and whether that shows on it or around it."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a studio with `street` and `sketch`."""
    command = [sys.executable, "-m", "piti", "studio", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield next(word for line in server.stdout if "http" in line for word in line.split() if "http" in word)
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    assert server.returncode in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def visitor(window: Browser, address: str) -> Visitor:
    """At the page, freshly loaded."""
    visitor = Visitor(window, address)
    visitor.open()
    return visitor


class TestLive:
    """A preview after every stroke, where it is asked for."""

    def preview(self, visitor: Visitor) -> str:
        """The address of the preview that is shown; empty where there is none."""
        if visitor.state() != "live":
            return ""
        return visitor.browser.run("return document.querySelector('#street-gallery .pictures img')?.src ?? ''")

    def test_a_stroke_is_followed_by_another_preview(self, visitor: Visitor, address: str) -> None:
        visitor.example()
        visitor.stroke("car", (0.3, 0.8), (0.5, 0.8))
        time.sleep(0.5)
        assert visitor.state() == "empty"  # it is off
        visitor.browser.click("#street-live input")
        visitor.until(lambda: self.preview(visitor), "the first preview")
        for k in range(3):
            before = self.preview(visitor)
            visitor.stroke("", (0.2 + 0.1 * k, 0.6), (0.3 + 0.1 * k, 0.9))
            begun = time.monotonic()
            visitor.until(lambda seen=before: self.preview(visitor) not in ("", seen), "the next preview")
            assert time.monotonic() - begun < 10  # 1 s on an idle machine
        assert jobs(address) == 0
        assert "rough preview in" in visitor.words()

    def test_photographs_are_not_disturbed_and_later_strokes_win(self, visitor: Visitor, address: str) -> None:
        visitor.example()
        visitor.browser.click("#street-live input")
        visitor.until(lambda: self.preview(visitor), "the first preview")
        for k in range(4):  # faster than previews come: the older ones are given up
            visitor.stroke("car" if k == 0 else "", (0.2 + 0.1 * k, 0.6), (0.25 + 0.1 * k, 0.9))
        visitor.browser.click("#street-make")
        visitor.until(lambda: visitor.state() == "done", "photographs")
        time.sleep(0.5)
        assert visitor.state() == "done"
        visitor.until(lambda: jobs(address) == 0, "the end of all previews")


class TestMask:
    def test_the_first_press_on_an_untouched_page_shows_a_street(self, visitor: Visitor) -> None:
        """The same street as that of the example by its button: it is drawn from the beginning."""
        visitor.until(lambda: "480 × 360" in visitor.below(), "the first example")
        visitor.set("street-num", 1)
        (first,) = visitor.made()
        visitor.example()
        (same,) = visitor.made()
        assert first.shape == (256, 341, 3)
        assert first.std() > 20
        assert np.array_equal(first, same)

    def test_paint_a_stroke_and_see_four_pictures(self, visitor: Visitor, tmp_path: Path) -> None:
        """One of them is then made again, to the bit, of its file alone."""
        visitor.example()
        visitor.stroke("car", (0.3, 0.85), (0.6, 0.85), width=60)
        pictures = visitor.made()
        assert [picture.shape for picture in pictures] == [(256, 341, 3)] * 4
        assert visitor.shown() == [[341, 256]] * 4
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 2
        assert "4 photographs by street, seed 0" in visitor.words()
        visitor.shot("studio-mask")

        file = tmp_path / "kept.png"
        file.write_bytes(visitor.files()[2])
        again = [sys.executable, "-m", "piti", "translate", "--like", str(file), "--out", str(tmp_path / "again")]
        subprocess.run(again, check=True, cwd=ROOT)
        (copy,) = (path for path in (tmp_path / "again").glob("*.png") if path.name != "sheet.png")
        assert np.array_equal(np.asarray(Image.open(copy)), pictures[2])

    def test_the_stroke_is_in_the_condition(self, visitor: Visitor) -> None:
        """The picture differs from that without it."""
        visitor.example()
        visitor.set("street-num", 1)
        (before,) = visitor.made()
        visitor.stroke("tree", (0.2, 0.8), (0.5, 0.7), (0.8, 0.8), width=90)
        (after,) = visitor.made()
        assert np.abs(before.astype(int) - after).mean() > 5

    def test_a_reload_keeps_the_drawing(self, visitor: Visitor) -> None:
        visitor.example()
        visitor.stroke("car", (0.3, 0.85), (0.6, 0.85), width=60)
        pixel = (
            "return [...document.querySelector('#street-drawing .picture').getContext('2d')"
            ".getImageData(216, 306, 1, 1).data].slice(0, 3)"
        )
        visitor.until(lambda: visitor.browser.run(pixel) == [64, 0, 128], "the stroke")
        visitor.until(lambda: visitor.kept().getpixel((216, 306)) == (64, 0, 128), "the stroke in what is kept")
        visitor.browser.open(visitor.address)
        visitor.browser.wait("document.querySelector('#street-drawing .picture')")
        visitor.until(lambda: visitor.browser.run(pixel) == [64, 0, 128], "the stroke again")

    def test_pictures_emerge_and_another_seed_makes_others(self, visitor: Visitor) -> None:
        visitor.example(1)
        visitor.set("street-num", 2)
        visitor.slowly(60)
        first = visitor.made()
        visitor.browser.click("#street-another")
        previews = "document.querySelectorAll('#street-gallery img[src^=\"data:image/jpeg\"]').length"
        visitor.until(lambda: visitor.browser.run(f"return {previews}") == 2, "previews")
        visitor.until(lambda: visitor.state() == "done", "the pictures")
        second = [np.asarray(Image.open(BytesIO(file))) for file in visitor.files()]
        assert np.abs(first[0].astype(int) - second[0]).mean() > 2
        assert "seed 0," not in visitor.words()

    def test_cancel(self, visitor: Visitor, address: str) -> None:
        visitor.example()
        visitor.set("street-num", 8)
        visitor.slowly()
        visitor.browser.click("#street-make")
        visitor.until(lambda: "Step " in visitor.words(), "progress")
        visitor.browser.click("#street-cancel")
        visitor.until(lambda: "Cancelled" in visitor.words(), "the end")
        visitor.until(lambda: jobs(address) == 0, "an idle studio")
        assert not visitor.files()

    def test_who_leaves_cancels(self, visitor: Visitor, address: str) -> None:
        visitor.example()
        visitor.set("street-num", 8)
        visitor.slowly()
        visitor.browser.click("#street-make")
        visitor.until(lambda: jobs(address) == 1, "the job")
        visitor.browser.open("about:blank")
        visitor.until(lambda: jobs(address) == 0, "an idle studio")

    def test_a_second_visitor_sees_the_place_in_the_queue(self, visitor: Visitor, address: str) -> None:
        visitor.example()
        mask = ROOT / "examples/street/avenue.png"
        others = [post(address, {"model": "street", "num": 8, "steps": 250, "seed": k}, mask) for k in range(2)]
        visitor.until(lambda: jobs(address) == 2, "the others' jobs")
        visitor.browser.click("#street-make")
        visitor.until(lambda: "2 jobs before yours" in visitor.words(), "the place")
        others[1].kill()
        visitor.until(lambda: "one job before yours" in visitor.words(), "the next place")
        others[0].kill()
        visitor.until(lambda: visitor.state() == "done", "the pictures")
        assert len(visitor.files()) == 4


class TestUploads:
    def test_a_file_that_is_no_picture_is_told_in_words(self, visitor: Visitor, tmp_path: Path) -> None:
        broken = tmp_path / "broken.png"
        broken.write_text("no picture")
        visitor.browser.choose_file("input:has(+ #street-upload)", broken)
        problem = "return document.querySelector('#street-gallery .problem').innerText"
        visitor.until(lambda: "broken.png" in visitor.browser.run(problem), "the error")
        assert "is not a supported image; save it as" in visitor.browser.run(problem)
        visitor.example()
        visitor.until(lambda: visitor.state() == "empty", "the end of the error")
        assert not visitor.browser.run(problem)

    def test_a_map_of_class_ids_is_recognised(self, visitor: Visitor, tmp_path: Path) -> None:
        ids = np.full((90, 120), 3, np.uint8)
        ids[:40] = 0
        Image.fromarray(ids).save(tmp_path / "ids.png")
        visitor.browser.choose_file("input:has(+ #street-upload)", tmp_path / "ids.png")
        visitor.until(lambda: "120 × 90" in visitor.below(), "the mask")
        script = """const canvas = document.querySelector('#street-drawing .picture');
            const at = (x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3);
            return [at(5, 5), at(5, 80)]"""
        assert visitor.browser.run(script) == [[128, 128, 128], [128, 64, 128]]


class TestEditing:
    def test_a_result_is_changed_where_its_mask_is(self, visitor: Visitor) -> None:
        visitor.example()
        visitor.set("street-num", 1)
        (before,) = visitor.made()
        visitor.browser.click("#street-gallery .edit")
        visitor.browser.wait("document.querySelector('#street-editing')?.offsetHeight > 0")
        visitor.browser.wait("!document.querySelector('#street-drawing .underlay').hidden")
        visitor.stroke("car", (0.35, 0.8), (0.6, 0.8), width=70)
        visitor.browser.click("#street-exact input")
        visitor.set("street-num", 2)
        after = visitor.made()
        visitor.shot("studio-edit")
        changed = [np.abs(before.astype(int) - image).max(axis=-1) for image in after]
        for difference in changed:
            assert difference.shape == (256, 341)
            assert not difference[:100].any()  # kept to the bit
            assert difference[190:220, 130:190].mean() > 10
        visitor.browser.click("#street-stop")
        visitor.browser.wait("document.querySelector('#street-make').innerText === 'Make photographs'")

    def test_another_mask_is_marked_as_a_change(self, visitor: Visitor, tmp_path: Path) -> None:
        """An upload while editing; and there is one job at a time."""
        visitor.example()
        visitor.set("street-num", 1)
        visitor.made()
        visitor.browser.click("#street-gallery .edit")
        visitor.browser.wait("!document.querySelector('#street-drawing .underlay').hidden")
        marked = """const c = document.querySelector('#street-drawing .changes');
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n"""
        assert visitor.browser.run(marked) == 0
        visitor.browser.choose_file("input:has(+ #street-upload)", ROOT / "examples/street/crossing.png")
        visitor.until(lambda: visitor.browser.run(marked) > 1000, "the changes")
        assert visitor.browser.run("return document.querySelector('#street-drawing .new').hidden")
        visitor.browser.click("#street-make")
        visitor.browser.wait("document.querySelector('#street-make').disabled")
        assert visitor.browser.run("return document.querySelector('#street-another').disabled")
        visitor.until(lambda: visitor.state() == "done", "the change")
        visitor.browser.wait("!document.querySelector('#street-make').disabled")

    def test_nothing_changed_is_told_in_words(self, visitor: Visitor) -> None:
        visitor.example()
        visitor.set("street-num", 1)
        visitor.made()
        visitor.browser.click("#street-gallery .edit")
        visitor.browser.wait("!document.querySelector('#street-drawing .underlay').hidden")
        visitor.browser.click("#street-make")
        visitor.until(lambda: visitor.state() == "failed", "the error")
        assert "differ" in visitor.words() or "change" in visitor.words()

    def test_a_photograph_from_elsewhere_needs_its_mask(self, visitor: Visitor, tmp_path: Path) -> None:
        photograph = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
        Image.fromarray(photograph).save(tmp_path / "photograph.png")
        chooser = "input:has(+ #street-photograph)"
        visitor.browser.choose_file(chooser, tmp_path / "photograph.png")
        visitor.browser.wait("document.querySelector('#street-editing')?.innerText.includes('carries no mask')")


class TestSketch:
    def test_draw_lines_and_see_four_pictures(self, visitor: Visitor) -> None:
        visitor.browser.click("[role=tab]:nth-of-type(2)")
        visitor.browser.wait("document.querySelector('#sketch-drawing .surface')?.offsetHeight > 0")
        visitor.stroke("", (0.02, 0.6), (0.3, 0.3), (0.5, 0.55), (0.7, 0.25), (0.98, 0.6), width=3, model="sketch")
        assert len(visitor.made("sketch")) == 4
        assert visitor.shown("sketch") == [[256, 256]] * 4  # of the example that the page opens with, drawn on
        visitor.shot("studio-sketch")


class TestManners:
    def test_nothing_is_asked_of_other_machines(self, visitor: Visitor, address: str) -> None:
        """Neither when the page loads, nor when pictures are made, nor by the page of the interface."""
        visitor.browser.messages()
        visitor.browser.requests()
        visitor.open()
        visitor.set("street-num", 1)
        visitor.example()
        visitor.made()
        visitor.browser.open(f"{address}docs")
        visitor.browser.wait("document.querySelector('.opblock')")
        asked = visitor.browser.requests()
        assert len(asked) > 20
        assert not [a for a in asked if not a.startswith((address, "data:", "blob:", "about:", "chrome:"))]
        loud = [message for message in visitor.browser.messages() if message.startswith("SEVERE")]
        assert not loud

    @pytest.mark.parametrize("dark", [False, True])
    def test_a_phone(self, visitor: Visitor, dark: bool) -> None:
        """Nothing is wider than the screen, and a finger paints."""
        visitor.open(PHONE, dark)
        visitor.example(2)
        assert visitor.browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
        visitor.set("street-num", 2)
        visitor.made()
        assert visitor.browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
        visitor.browser.run("window.scrollTo(0, 0)")
        visitor.shot(f"studio-phone{'-dark' if dark else ''}")

    def test_the_keyboard_alone(self, visitor: Visitor) -> None:
        """From the top of the page to the button, which Enter presses; every stop shows where it is."""
        visitor.set("street-num", 1)
        stops = []
        for _ in range(60):
            visitor.browser.press("tab")
            stop, visible = visitor.browser.run(_FOCUS)
            stops.append(str(stop))
            assert visible, stop
            if stop == "street-make":
                break
        assert stops[-1] == "street-make"
        assert any("surface" in stop for stop in stops)
        visitor.browser.press("enter")
        visitor.until(lambda: visitor.state() == "done", "the picture")
