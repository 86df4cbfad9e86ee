"""Painting in a real browser: strokes by mouse, touch and keys arrive in exactly the chosen colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from piti.studio.ui.painter import SKETCH_COLOURS, Kind, PaintClass, Painter, PainterValue
from tests.browser import FORGET, Browser, chromium

pytestmark = pytest.mark.browser

CLASSES = tuple(PaintClass(f"class {k}", (10 * k, 255 - 10 * k, 5 * k % 256)) for k in range(4))
MANY = tuple(PaintClass(f"thing {k}", (k, 255 - k, 7 * k % 256)) for k in range(182))
SKY, ROAD, TREE, CAR = (colour.colour for colour in CLASSES)
WIDTH, HEIGHT = 128, 96
Received = dict[str, Image.Image | None]


def scene() -> np.ndarray:
    """The lower half road, a tree within it, and a patch of no class."""
    pixels = np.full((HEIGHT, WIDTH, 3), SKY, np.uint8)
    pixels[48:] = ROAD
    pixels[60:70, 20:40] = TREE
    pixels[80:84, 100:110] = (1, 2, 250)
    return pixels


@dataclass
class Page:
    """Two painters on a page, and what they sent last."""

    browser: Browser
    address: str
    received: Received = field(default_factory=dict)

    def surface(self, name: str = "mask") -> str:
        return f"#{name} .surface"

    def until(self, test: Callable[[np.ndarray], object], name: str = "mask") -> np.ndarray:
        """Wait for a painting that passes, [h, w, 3]."""
        while (image := self.received.get(name)) is None or not test(np.asarray(image)):
            time.sleep(0.02)
        return np.asarray(image)

    def choose(self, label: str, name: str = "mask") -> None:
        """A tool or a class."""
        self.browser.click(f'#{name} [role=radio][aria-label="{label}"]')

    def size(self, pixels: int, name: str = "mask") -> None:
        script = """const slider = document.querySelector(arguments[0]);
            slider.value = arguments[1]; slider.dispatchEvent(new Event("input", { bubbles: true }));"""
        self.browser.run(script, f"#{name} .size input", pixels)

    def load(self, button: str) -> None:
        self.browser.click(f"#{button}")
        self.browser.wait(f"document.querySelector('#mask .picture').width === {WIDTH}")


def blocks(received: Received) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as page:
        mask = Painter(Kind.MASK, CLASSES, label="Mask", elem_id="mask")
        sketch = Painter(Kind.SKETCH, label="Sketch", elem_id="sketch")
        canvas = PainterValue(Image.fromarray(scene()))
        photograph = Image.effect_noise((WIDTH * 2, HEIGHT * 2), 60)
        gr.Button("load", elem_id="load").click(lambda: canvas, None, mask)
        gr.Button("edit", elem_id="edit").click(lambda: PainterValue(canvas.picture, photograph), None, mask)
        gr.Button("many", elem_id="many").click(lambda: gr.update(kind=Kind.MASK, colours=MANY), None, mask)
        gr.Button("none", elem_id="none").click(lambda: None, None, mask)
        gr.Button("hide", elem_id="hide").click(lambda: gr.update(visible=False), None, mask)
        gr.Button("show", elem_id="show").click(lambda: gr.update(visible=True), None, mask)
        gr.Button("rename", elem_id="rename").click(lambda: gr.update(label="Other"), None, mask)
        mask.change(lambda image: received.update(mask=image), mask, None, show_progress="hidden")
        sketch.change(lambda image: received.update(sketch=image), sketch, None, show_progress="hidden")
    return page


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Received]]:
    received: Received = {}
    app = gr.mount_gradio_app(FastAPI(), blocks(received), "/", footer_links=[], ssr_mode=False, theme=gr.themes.Base())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", received
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as window:
        yield window


@pytest.fixture
def page(browser: Browser, served: tuple[str, Received]) -> Page:
    """Loaded anew."""
    address, received = served
    browser.resize(1366, 1400)
    browser.run(FORGET)
    browser.open(address)
    browser.wait("document.querySelectorAll('.surface[aria-describedby]').length === 2")
    received.clear()
    return Page(browser, address, received)


def where(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(colour, np.uint8)).all(-1)


def test_a_stroke_has_the_chosen_colour_and_no_other(page: Page) -> None:
    page.choose("class 3")
    page.size(20)
    page.browser.drag(page.surface(), (0.2, 0.5), (0.3, 0.5), (0.4, 0.5), (0.6, 0.5))
    pixels = page.until(lambda image: where(image, CAR)[192, 300])
    assert pixels.shape == (384, 512, 3)
    car = where(pixels, CAR)
    assert (car | where(pixels, SKY)).all(), "nothing between the colours"
    rows, columns = np.flatnonzero(car.any(1)), np.flatnonzero(car.any(0))
    assert 19 <= len(rows) <= 21
    assert abs(len(columns) - (0.4 * 512 + 20)) <= 3
    assert car[192, columns[0] : columns[-1]].all(), "without a gap"


def test_shapes_cover_what_they_span(page: Page) -> None:
    page.choose("class 2")
    page.choose("Rectangle")
    page.browser.drag(page.surface(), (0.9, 0.9), (0.3, 0.6), (0.5, 0.5))
    tree = where(page.until(lambda image: where(image, TREE).any()), TREE)
    rows, columns = np.flatnonzero(tree.any(1)), np.flatnonzero(tree.any(0))
    assert tree.sum() == len(rows) * len(columns), "the last corner counts, the ones before leave nothing"
    assert abs(len(rows) - 0.4 * 384) <= 2
    assert abs(len(columns) - 0.4 * 512) <= 2
    page.choose("class 3")
    page.choose("Area")
    page.browser.drag(page.surface(), (0.1, 0.1), (0.3, 0.1), (0.3, 0.4), (0.1, 0.4))
    car = where(page.until(lambda image: where(image, CAR).any()), CAR)
    assert abs(car.sum() - 0.2 * 512 * 0.3 * 384) < 500
    page.choose("class 1")
    page.choose("Line")
    page.size(1)
    page.browser.drag(page.surface(), (0.05, 0.95), (0.2, 0.2), (0.25, 0.95))
    road = where(page.until(lambda image: where(image, ROAD).any()), ROAD)
    assert len(np.flatnonzero(road.any(1))) <= 2
    assert abs(road.sum() - 0.2 * 512) <= 3


def test_fill_takes_one_region(page: Page) -> None:
    page.load("load")
    page.choose("class 3")
    page.choose("Fill")
    page.browser.drag(page.surface(), (0.5, 0.9))
    pixels = page.until(lambda image: where(image, CAR).any())
    expected = scene()
    expected[where(expected, ROAD)] = CAR
    assert np.array_equal(pixels, expected), "tree, sky, and what is of no class stay"


def test_undo_redo_clear_and_new(page: Page) -> None:
    page.choose("class 1")
    page.size(30)
    page.browser.drag(page.surface(), (0.3, 0.3), (0.4, 0.3))
    one = page.until(lambda image: where(image, ROAD).any())
    page.browser.drag(page.surface(), (0.3, 0.7), (0.4, 0.7))
    two = page.until(lambda image: where(image, ROAD).sum() > where(one, ROAD).sum())
    page.browser.press("z", "control")
    page.until(lambda image: np.array_equal(image, one))
    page.browser.press("z", "control", "shift")
    page.until(lambda image: np.array_equal(image, two))
    page.browser.click("#mask .clear")
    page.until(lambda image: where(image, ROAD).all())
    page.browser.click("#mask .new summary")
    page.browser.click("#mask .menu button:last-child")
    page.until(lambda image: image.shape == (360, 640, 3) and where(image, SKY).all())
    for expected in (np.full((384, 512, 3), ROAD), two, one):
        page.browser.click("#mask .undo")
        page.until(lambda image, expected=expected: np.array_equal(image, expected))
    page.browser.click("#mask .undo")
    assert page.browser.run("return document.querySelector('#mask .undo').disabled")


def test_painting_by_keys(page: Page) -> None:
    page.browser.run("document.querySelector('#mask .surface').focus()")
    for key in ("3", "[", "[", " "):
        page.browser.press(key)
    dot = where(page.until(lambda image: where(image, TREE).any()), TREE)
    assert dot[192, 256]
    page.browser.press("4")
    page.browser.press("enter")
    for _ in range(3):
        page.browser.press("right", "shift")
    page.browser.press("enter")
    car = where(page.until(lambda image: where(image, CAR)[192, 376]), CAR)
    assert car[192, 256:376].all()
    assert not car[:150].any()
    assert "class 3" in page.browser.run(
        "return document.querySelector('#mask [role=radio][aria-label=\"class 3\"]').title"
    )
    page.browser.press("p")
    page.browser.press("left")
    page.browser.press("f")
    page.browser.press("2")
    page.browser.press(" ")
    page.until(lambda image: where(image, ROAD).sum() == car.sum())
    assert page.browser.run("return document.querySelector('#mask .said').textContent") == "Painted"


def test_a_class_that_is_picked_by_keys_is_said(page: Page) -> None:
    page.load("load")
    page.browser.run("document.querySelector('#mask .surface').focus()")
    said = "return document.querySelector('#mask .said').textContent"
    page.browser.press("p")
    page.browser.press(" ")
    assert page.browser.run(said) == "class 1"


def test_brackets_are_keys_where_they_are_typed_with_others(page: Page) -> None:
    script = """const held = { key: arguments[0], altKey: arguments[1], ctrlKey: true, bubbles: true };
        document.querySelector("#mask .surface").dispatchEvent(new KeyboardEvent("keydown", held));
        return Number(document.querySelector("#mask .size input").value)"""
    assert page.browser.run(script, "]", False) == 28, "Ctrl alone is the browser's"
    assert page.browser.run(script, "]", True) == 34
    assert page.browser.run(script, "b", True) == 34


def test_classes_by_arrow_keys(page: Page) -> None:
    page.browser.run("document.querySelector('#mask .classes [tabindex=\"0\"]').focus()")
    for key in ("down", "down", "down", "up"):
        page.browser.press(key)
    chosen = "return document.querySelector('#mask .classes [aria-checked=true]').getAttribute('aria-label')"
    assert page.browser.run(chosen) == "class 3"
    assert page.browser.run("return document.querySelectorAll('#mask .classes [tabindex=\"0\"]').length") == 1


def test_a_finger_paints_and_the_page_stays(page: Page) -> None:
    page.browser.resize(390, 844, 2)
    page.browser.run("document.querySelector('#mask .stage').scrollIntoView({ block: 'center' })")
    at = page.browser.run("return scrollY")
    page.choose("class 2")
    page.browser.run("document.querySelector('#mask .stage').scrollIntoView({ block: 'center' })")
    page.browser.drag(page.surface(), (0.5, 0.9), (0.5, 0.5), (0.5, 0.1), finger=True)
    tree = where(page.until(lambda image: where(image, TREE)[:60].any()), TREE)
    assert tree[60:330, 256].all()
    assert page.browser.run("return scrollY") == at
    assert page.browser.run("return document.documentElement.scrollWidth") <= 390


def test_what_the_server_sends_is_shown_to_the_pixel(page: Page) -> None:
    page.load("load")
    page.until(lambda image: np.array_equal(image, scene()))
    page.choose("class 3")
    page.size(12)
    page.browser.drag(page.surface(), (0.2, 0.2), (0.6, 0.2))
    page.until(lambda image: where(image, CAR).any())
    page.browser.click("#rename")
    page.browser.wait("document.querySelector('#mask .painter').getAttribute('aria-label') === 'Other'")
    page.browser.drag(page.surface(), (0.2, 0.4), (0.6, 0.4))
    page.until(lambda image: where(image, CAR)[16:24].any() and where(image, CAR)[35:42].any())
    before = np.asarray(page.received["mask"])
    page.browser.click("#load")
    page.until(lambda image: np.array_equal(image, scene()))
    page.browser.click("#mask .undo")
    page.until(lambda image: np.array_equal(image, before))
    page.browser.click("#mask .redo")
    page.until(lambda image: np.array_equal(image, scene()))
    page.browser.click("#none")
    page.browser.wait("document.querySelector('#mask .picture').width === 512")


def test_editing_marks_and_puts_back(page: Page) -> None:
    page.load("edit")
    page.browser.wait("!document.querySelector('#mask .underlay').hidden")
    opacity = "return Number(document.querySelector('#mask .picture').style.opacity)"
    assert 0.3 < page.browser.run(opacity) < 0.8
    marked = """const canvas = document.querySelector('#mask .changes');
        const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return all.filter((value, k) => k % 4 === 3 && value > 0).length;"""
    assert page.browser.run(marked) == 0
    page.choose("class 3")
    page.size(10)
    page.browser.drag(page.surface(), (0.3, 0.3), (0.8, 0.3))
    page.until(lambda image: where(image, CAR).any())
    many = page.browser.run(marked)
    assert many > 50
    page.browser.click("#mask .undo")
    page.until(lambda image: np.array_equal(image, scene()))
    assert page.browser.run("return document.querySelector('#mask .undo').disabled"), "of what was before, nothing"
    page.browser.click("#mask .redo")
    page.until(lambda image: where(image, CAR).any())
    page.browser.click("#hide")
    page.browser.wait("!document.querySelector('#mask .underlay')?.checkVisibility()")
    page.browser.click("#show")
    page.browser.wait("document.querySelector('#mask .underlay')?.checkVisibility()")
    assert page.browser.run(marked) == many, "what was painted outlives a time out of sight"
    page.choose("Put back")
    page.size(40)
    page.browser.drag(page.surface(), (0.2, 0.3), (0.9, 0.3))
    page.until(lambda image: np.array_equal(image, scene()))
    assert page.browser.run(marked) == 0


def test_another_model_brings_its_classes(page: Page) -> None:
    page.browser.drag(page.surface(), (0.2, 0.2), (0.6, 0.2))
    page.until(lambda image: True)
    page.browser.click("#many")
    page.browser.wait("document.querySelectorAll('#mask .classes [role=radio]').length === 182")
    page.browser.type("#mask .search", "thing 15")
    shown = "return [...document.querySelectorAll('#mask .classes [role=radio]')].filter((b) => !b.hidden).length"
    assert page.browser.run(shown) == 12, "15, 115, and 150 to 159"
    page.choose("thing 157")
    page.browser.drag(page.surface(), (0.5, 0.5), (0.6, 0.5))
    pixels = page.until(lambda image: where(image, MANY[157].colour).any())
    assert (where(pixels, MANY[0].colour) | where(pixels, MANY[157].colour)).all()


def test_pen_and_eraser(page: Page) -> None:
    paper, ink = (colour.colour for colour in SKETCH_COLOURS)
    page.browser.drag(page.surface("sketch"), (0.1, 0.5), (0.9, 0.5))
    drawn = page.until(lambda image: where(image, ink).any(), "sketch")
    assert (where(drawn, ink) | where(drawn, paper)).all()
    page.choose("Eraser", "sketch")
    page.size(60, "sketch")
    page.browser.drag(page.surface("sketch"), (0.5, 0.2), (0.5, 0.8))
    left = where(page.until(lambda image: where(image, ink).sum() < where(drawn, ink).sum(), "sketch"), ink)
    assert left.any()
    assert not left[:, 230:280].any()
    assert "mask" not in page.received, "the other painter on the page is not touched"


def test_nothing_is_asked_of_other_servers_and_nothing_goes_wrong(page: Page, tmp_path: Path) -> None:
    page.browser.messages()
    page.browser.requests()
    page.browser.open(page.address)
    page.browser.wait("document.querySelectorAll('.surface[aria-describedby]').length === 2")
    page.load("edit")
    page.browser.drag(page.surface(), (0.2, 0.2), (0.6, 0.2))
    page.until(lambda image: True)
    foreign = [a for a in page.browser.requests() if not a.startswith((page.address, "data:", "blob:", "chrome"))]
    assert foreign == []
    assert [message for message in page.browser.messages() if message.startswith("SEVERE")] == []
