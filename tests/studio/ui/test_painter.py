"""Data that the painter receives from and sends to a browser."""

from __future__ import annotations

import base64
import dataclasses
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.conditions.sketch import SketchCondition
from piti.studio.ui.painter import (
    LARGEST_FILE,
    LARGEST_SIDE,
    SKETCH_COLOURS,
    Kind,
    PaintClass,
    Painter,
    PainterValue,
    PaintingError,
)

CLASSES = (PaintClass("sky", (128, 128, 128)), PaintClass("road", (128, 64, 128)), PaintClass("car", (64, 0, 128)))


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(Kind.MASK, CLASSES, label="Mask")


def mask(width: int, height: int) -> Image.Image:
    colours = np.array([colour.colour for colour in CLASSES], np.uint8)
    return Image.fromarray(colours[np.random.default_rng(0).integers(0, len(CLASSES), (height, width))])


def address(content: bytes, form: str = "png") -> dict[str, str]:
    return {"picture": f"data:image/{form};base64,{base64.b64encode(content).decode()}"}


def png(picture: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    picture.save(file, format=form)
    return file.getvalue()


def claimed_png(width: int, height: int, rows: bytes = bytes(99)) -> bytes:
    """A PNG whose header says how large it is, and which holds few pixels, or `rows`."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows)]
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def decoded(sent: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(sent.partition(",")[2])))


def test_a_painting_arrives_to_the_pixel(painter: Painter) -> None:
    picture = mask(37, 23)
    taken = painter.preprocess(address(png(picture)))
    assert taken is not None
    assert taken.mode == "RGB"
    assert np.array_equal(np.asarray(taken), np.asarray(picture))


@pytest.mark.parametrize("payload", [None, "", {}])
def test_nothing_painted_is_none(painter: Painter, payload: Any) -> None:
    assert painter.preprocess(payload) is None


@pytest.mark.parametrize(
    "payload",
    [
        "data:image/png;base64,AAAA",
        ["data:image/png;base64,AAAA"],
        {"picture": None},
        {"picture": 3},
        {"picture": {"path": "/etc/passwd"}},
        {"picture": "/etc/passwd"},
        {"picture": "http://127.0.0.1/a.png"},
        {"picture": "data:image/svg+xml;base64,PHN2Zy8+"},
        address(png(Image.new("RGB", (4, 4)), "JPEG"), "jpeg"),
        address(png(Image.new("RGB", (4, 4)), "GIF")),
        address(claimed_png(8, 8).replace(b"PNG", b"PMG")),
        {"picture": "data:image/png;base64,é"},
        {"picture": "data:image/png;base64,AAA"},
        {"picture": "data:image/png;base64,iVBO\nRw0K"},
    ],
)
def test_what_is_no_png_is_refused_in_words(painter: Painter, payload: Any) -> None:
    with pytest.raises(PaintingError, match=r"the painting .*; reload the page"):
        painter.preprocess(payload)


def test_large_files_are_refused_before_they_are_unpacked(painter: Painter) -> None:
    with pytest.raises(PaintingError, match=f"more than {LARGEST_FILE} bytes"):
        painter.preprocess({"picture": "data:image/png;base64," + "!" * (LARGEST_FILE * 4 // 3 + 8)})


@pytest.mark.parametrize("size", [(LARGEST_SIDE + 1, 4), (4, LARGEST_SIDE + 1), (60_000, 60_000)])
def test_large_pictures_are_refused_before_they_are_decoded(painter: Painter, size: tuple[int, int]) -> None:
    with pytest.raises(PaintingError, match=f"{size[0]} x {size[1]} pixels, at most 1024 x 1024"):
        painter.preprocess(address(claimed_png(*size)))


def test_a_second_header_cannot_make_a_picture_large(painter: Painter) -> None:
    """Decoders take a PNG's last header; a painting of few bytes could so be of many millions of pixels."""
    large = claimed_png(2 * LARGEST_SIDE, LARGEST_SIDE, bytes(2 * LARGEST_SIDE * LARGEST_SIDE * 3 + LARGEST_SIDE))
    first = claimed_png(8, 8)
    twice = first[: first.index(b"IDAT") - 4] + large[len(b"\x89PNG\r\n\x1a\n") :]
    assert Image.open(BytesIO(twice)).convert("RGB").size == (2 * LARGEST_SIDE, LARGEST_SIDE)
    with pytest.raises(PaintingError, match="the painting was received damaged"):
        painter.preprocess(address(twice))


@pytest.mark.parametrize("content", [claimed_png(8, 8), png(mask(64, 64))[:-200], png(mask(8, 8))[:20]])
def test_broken_pictures_are_refused_in_words(painter: Painter, content: bytes) -> None:
    with pytest.raises(PaintingError, match="the painting was received damaged; reload the page"):
        painter.preprocess(address(content))


def test_the_largest_painting_passes(painter: Painter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (LARGEST_SIDE, LARGEST_SIDE, 3), dtype=np.uint8)
    taken = painter.preprocess(address(png(Image.fromarray(noise))))
    assert taken is not None
    assert np.array_equal(np.asarray(taken), noise)


def test_a_canvas_is_sent_exactly_and_differs_each_time(painter: Painter) -> None:
    picture = mask(40, 30)
    picture.info["comment"] = "not for the page"
    first, second = (painter.postprocess(PainterValue(picture)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(np.asarray(decoded(first["picture"])), np.asarray(picture))
    assert "underlay" not in first
    assert first["load"] != second["load"]
    assert painter.postprocess(None) is None
    assert painter.preprocess(first) is not None, "a canvas that nobody painted on yet is taken as it is"


def test_large_canvases_shrink_without_new_colours(painter: Painter) -> None:
    sent = painter.postprocess(PainterValue(mask(1600, 800), mask(1600, 800)))
    assert sent is not None
    shown = decoded(sent["picture"])
    assert shown.size == (1024, 512)
    assert {colour for _, colour in shown.getcolors() or []} == {colour.colour for colour in CLASSES}
    assert decoded(sent["underlay"]).size == (1024, 512)
    assert decoded(sent["underlay"]).format == "JPEG"


def test_the_page_is_told_kind_and_colours(painter: Painter) -> None:
    config = painter.get_config()
    assert config["props"]["kind"] == "mask"
    assert config["props"]["colours"] == [dataclasses.asdict(colour) for colour in CLASSES]
    assert [colour["name"] for colour in Painter(Kind.SKETCH).get_config()["props"]["colours"]] == ["paper", "line"]
    with pytest.raises(ValueError, match="at least one class"):
        Painter(Kind.MASK)


def test_a_word_that_the_script_quotes_is_no_event(painter: Painter) -> None:
    assert "brush" in str(painter.js_on_load)
    assert not hasattr(painter, "brush")
    assert hasattr(painter, "change")


def test_a_dense_sketch_is_read_as_it_was_drawn() -> None:
    paper, line = (np.array(colour.colour, np.uint8) for colour in SKETCH_COLOURS)
    drawn = np.random.default_rng(0).random((16, 16)) < 0.9
    picture = Image.fromarray(np.where(drawn[..., None], line, paper))
    assert np.array_equal(SketchCondition().read(picture, "drawn")[0].numpy() == 1, drawn)
