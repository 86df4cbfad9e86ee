"""The painter: masks in class colours and sketches, painted in the browser, as a component of the page.

The script keeps class indices and encodes the PNG itself, so that a painting arrives in exactly the class colours.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Any

from PIL import Image

from piti.conditions.sketch import INK
from piti.core.errors import UserError
from piti.studio.service.inputs import photograph
from piti.studio.ui.element import Element, address_of, shrunk

LARGEST_SIDE = 1024
"""Longest side of a painting in pixels; larger pictures are scaled down."""
LARGEST_FILE = 4_000_000
"""Most bytes of a painting as a PNG; uniform noise of the largest size has 3.1 million."""

_STATIC = files("piti.studio.ui") / "static"
_PARTS = ("pixels", "parts", "hands")
_BEGINNING = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s8xII")  # start of a PNG: signature, length and type of the chunk, width, height


class Kind(StrEnum):
    """What the painter makes."""

    MASK = "mask"
    SKETCH = "sketch"


@dataclass(frozen=True)
class PaintClass:
    """A class to paint, and its RGB in 0..255."""

    name: str
    colour: tuple[int, int, int]


SKETCH_COLOURS = (PaintClass("paper", (255, 255, 255)), PaintClass("line", INK))
"""Colours of a sketch; a picture in these two is read as lines on paper, however dense."""


@dataclass(frozen=True)
class PainterValue:
    """What the painter shows.

    picture: a mask in class colours (other colours are kept, but cannot be painted), or dark lines on white. underlay:
    a photograph with the same framing, shown beneath; changes are then marked and can be undone by area. before: the
    condition of that photograph, if it is not `picture`; same framing.
    """

    picture: Image.Image
    underlay: Image.Image | None = None
    before: Image.Image | None = None


class PaintingError(UserError):
    """The browser sent something that is not a painting."""


class Painter(Element):
    """A tool to paint a mask or draw a sketch.

    As an input of an event: the painting, an RGB picture in exactly the given colours, or None before anything was
    painted. As an output: a PainterValue to continue from (undo brings back what was drawn before, unless a photograph
    is edited), None for a blank one, or `gr.update(kind=…, colours=…, value=…)` for another model. Its event
    `change` comes after every stroke.

    kind: mask or sketch. colours: the classes, in the order of the palette; left out for a sketch.
    """

    stem = "painter"

    def __init__(
        self,
        kind: Kind = Kind.MASK,
        colours: Sequence[PaintClass] = (),
        value: PainterValue | None = None,
        label: str = "Painter",
        **options: Any,
    ) -> None:
        kind = Kind(kind)
        shown = [asdict(colour) for colour in (SKETCH_COLOURS if kind is Kind.SKETCH else colours)]
        if not shown:
            raise ValueError("a mask needs at least one class to paint with")
        super().__init__(value, kind=kind.value, colours=shown, label=label, **{"apply_default_css": False, **options})
        # Gradio loses the properties of a component that was hidden, but keeps its script.
        built = f"const BUILT = {json.dumps({'kind': kind.value, 'colours': shown})};"
        pixels, parts, hands = ((_STATIC / f"painter_{part}.js").read_text("utf-8") for part in _PARTS)
        self.js_on_load = "\n".join([built, pixels, parts, str(self.js_on_load), hands])

    def __getattr__(self, name: str) -> Any:
        """Only defined attributes: Gradio would treat every word that the script quotes as an event."""
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")

    def preprocess(self, payload: Any) -> Image.Image | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The painting in RGB. Raises PaintingError for invalid data; a painting that is too large is not decoded."""
        if not payload:
            return None
        address = payload.get("picture") if isinstance(payload, dict) else None
        if not isinstance(address, str) or not address.startswith(_BEGINNING):
            raise PaintingError("the painting was not received as a PNG; reload the page")
        if len(address) > len(_BEGINNING) + LARGEST_FILE * 4 // 3 + 4:
            raise PaintingError(f"the painting has more than {LARGEST_FILE} bytes; simplify it")
        try:
            content = base64.b64decode(address[len(_BEGINNING) :], validate=True)
            start, width, height = _HEADER.unpack(content[: _HEADER.size])
        except (binascii.Error, ValueError, struct.error):
            raise PaintingError("the painting was received damaged; reload the page") from None
        if start != _SIGNATURE:
            raise PaintingError("the painting was not received as a PNG; reload the page")
        if max(width, height) > LARGEST_SIDE:
            most = f"{LARGEST_SIDE} x {LARGEST_SIDE}"
            raise PaintingError(
                f"the painting has {width} x {height} pixels, at most {most} are allowed; make it smaller"
            )
        try:
            return photograph(content, "the painting", LARGEST_SIDE**2)  # a PNG may hold a second header, which counts
        except UserError:
            raise PaintingError("the painting was received damaged; reload the page") from None

    def postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: PainterValue | None
    ) -> dict[str, Any] | None:
        """What the script loads. `load` is random, so that the same picture can be loaded again."""
        if value is None:
            return None
        sent = {
            "picture": address_of(shrunk(value.picture, LARGEST_SIDE)),
            "load": secrets.token_hex(8),
        }
        if value.underlay is not None:
            sent["underlay"] = address_of(shrunk(value.underlay, LARGEST_SIDE, Image.Resampling.LANCZOS), "JPEG")
        if value.before is not None:
            like = shrunk(value.picture, LARGEST_SIDE).size
            sent["before"] = address_of(value.before.convert("RGB").resize(like, Image.Resampling.NEAREST))
        return sent
