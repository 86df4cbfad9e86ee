"""What a model's condition is drawn, written or handed in on, by its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from textwrap import wrap
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from piti.core.errors import UserError
from piti.studio.service.service import Loaded, Studio
from piti.studio.ui.gallery import Source
from piti.studio.ui.painter import Canvas, Colour, Kind, Painter

BLANK = (512, 384)
"""Width and height of an untouched painter."""


class Surface(ABC):
    """Where a person says what is to be seen."""

    drawn = False
    """Whether it is a painter, on which examples, uploads and results can be laid."""
    takes_lines = False
    """Whether a photograph's lines can be drawn on it."""
    empty = (255, 255, 255)
    """The colour of an untouched painter."""
    invitation = ""
    """What stands where the photographs will be."""
    editing = ""
    """What to do while a photograph is edited."""
    upload_label = ""

    def __init__(self, studio: Studio, loaded: Loaded) -> None:
        self.studio, self.loaded = studio, loaded

    @abstractmethod
    def build(self, elem_id: str) -> Component:
        """The component, inside the present layout."""

    @abstractmethod
    def read(self, value: Any) -> Tensor | str:
        """The condition in raw form, or a text. Raises UserError in words."""

    def source(self, raw: Tensor | str) -> Source:
        """The condition as it is shown beside its photographs."""
        assert isinstance(raw, Tensor)
        return Source(self.loaded.kind, self.studio.drawn(self.loaded.name, raw))


class PainterSurface(Surface):
    """A painter."""

    drawn = True

    def read(self, value: Image.Image | None) -> Tensor:
        """What is painted."""
        if value is None:
            raise UserError("Nothing is drawn yet: draw something, or begin with an example")
        return self.studio.read_condition(self.loaded.name, value, "the drawing")


class MaskSurface(PainterSurface):
    """A painter with the model's classes."""

    upload_label = "Upload a mask"
    editing = "**Editing a photograph.** Repaint what is to change; the rest is kept."
    invitation = "Paint a mask, or begin with an example; then press “Make photographs”."

    def __init__(self, studio: Studio, loaded: Loaded) -> None:
        super().__init__(studio, loaded)
        self.colours = [Colour(entry.name, entry.colour) for entry in loaded.info.classes]
        self.empty = self.colours[0].colour

    def build(self, elem_id: str) -> Component:
        """The painter, of the first class all over."""
        blank = Canvas(Image.new("RGB", BLANK, self.empty))
        return Painter(Kind.MASK, self.colours, blank, label="Mask", elem_id=elem_id)


class SketchSurface(PainterSurface):
    """A painter with a pen."""

    takes_lines = True
    upload_label = "Upload a drawing"
    editing = "**Editing a photograph.** Erase lines and draw others; the rest is kept."
    invitation = "Draw lines, or begin with an example; then press “Make photographs”."

    def build(self, elem_id: str) -> Component:
        """The painter, empty."""
        blank = Canvas(Image.new("RGB", BLANK, self.empty))
        return Painter(Kind.SKETCH, value=blank, label="Sketch", elem_id=elem_id)


class FileSurface(Surface):
    """A file, for conditions that nobody draws by hand, such as depth."""

    invitation = "Upload a file; then press “Make photographs”."

    def build(self, elem_id: str) -> Component:
        """Where a file is dropped."""
        return gr.File(label=self.loaded.kind.capitalize(), file_count="single", type="filepath", elem_id=elem_id)

    def read(self, value: str | None) -> Tensor:
        """What the file holds."""
        if value is None:
            raise UserError(f"Nothing is uploaded yet: upload a {self.loaded.kind}")
        return self.studio.read_condition(self.loaded.name, Path(value), Path(value).name)


class TextSurface(Surface):
    """Words."""

    invitation = "Say what is to be seen; then press “Make photographs”."

    def build(self, elem_id: str) -> Component:
        """A line to write on."""
        return gr.Textbox(
            label="What is to be seen", placeholder="a photo of a forest", max_length=500, elem_id=elem_id
        )

    def read(self, value: str | None) -> str:
        """The words."""
        if not (value or "").strip():
            raise UserError("Nothing is written yet: say what is to be seen")
        return self.studio.read_text(self.loaded.name, str(value))

    def source(self, raw: Tensor | str) -> Source:
        """The words on a card."""
        card = Image.new("RGB", (256, 256), "white")
        words = "\n".join(wrap(str(raw), 22))
        draw = ImageDraw.Draw(card)
        draw.multiline_text((128, 128), words, "black", ImageFont.load_default(20), anchor="mm", align="center")
        return Source(str(raw), card)


SURFACES: dict[str, type[Surface]] = {
    "mask": MaskSurface,
    "palette": MaskSurface,
    "sketch": SketchSurface,
    "text": TextSurface,
}
"""By kind of condition; others are files."""


def surface_of(studio: Studio, loaded: Loaded) -> Surface:
    """The surface for a model's kind of condition."""
    return SURFACES.get(loaded.kind, FileSurface)(studio, loaded)
