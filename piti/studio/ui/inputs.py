"""The inputs of a model, by its kind of condition: a painter, a file or a text."""

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
from piti.studio.ui.gallery import SourceImage
from piti.studio.ui.painter import Kind, PaintClass, Painter, PainterValue

BLANK = (512, 384)
"""Width and height of an untouched painter."""


class Surface(ABC):
    """The input for one kind of condition."""

    drawn = False
    """Whether it is a painter, which can load examples, uploads and results."""
    takes_lines = False
    """Whether it can load the lines of a photograph."""
    empty = (255, 255, 255)
    """The colour of an untouched painter."""
    invitation = ""
    """Text in place of the photographs."""
    editing = ""
    """Instruction while a photograph is edited, Markdown."""
    upload_label = ""

    def __init__(self, studio: Studio, loaded: Loaded) -> None:
        self.studio, self.loaded = studio, loaded

    @abstractmethod
    def build(self, elem_id: str, first: Image.Image | None = None) -> Component:
        """Add the component to the current layout. first: what is drawn when the page opens, on what is drawn on."""

    @abstractmethod
    def read(self, value: Any) -> Tensor | str:
        """The condition in raw form, or a text. Raises UserError."""

    def source(self, raw: Tensor | str) -> SourceImage:
        """The condition as shown beside its photographs."""
        assert isinstance(raw, Tensor)
        return SourceImage(self.loaded.kind, self.studio.drawn(self.loaded.name, raw))


class PainterSurface(Surface):
    """A painter, see its subclasses."""

    drawn = True

    def read(self, value: Image.Image | None) -> Tensor:
        """The painting as a condition."""
        if value is None:
            raise UserError("Nothing is drawn yet: draw something, or start with an example")
        return self.studio.read_condition(self.loaded.name, value, "the drawing")


class MaskSurface(PainterSurface):
    """A painter of masks, with the model's classes."""

    upload_label = "Upload a mask"
    editing = "**Editing a photograph.** Repaint what is to change; the rest is kept."
    invitation = "Paint a mask, or begin with an example; then press “Make photographs”."

    def __init__(self, studio: Studio, loaded: Loaded) -> None:
        super().__init__(studio, loaded)
        self.colours = [PaintClass(entry.name, entry.colour) for entry in loaded.info.classes]
        self.empty = self.colours[0].colour

    def build(self, elem_id: str, first: Image.Image | None = None) -> Component:
        """The painter with the first example, or filled with the first class."""
        begun = PainterValue(first or Image.new("RGB", BLANK, self.empty))
        return Painter(Kind.MASK, self.colours, begun, label="Mask", elem_id=elem_id)


class SketchSurface(PainterSurface):
    """A painter of sketches."""

    takes_lines = True
    upload_label = "Upload a drawing"
    editing = "**Editing a photograph.** Erase lines and draw others; the rest is kept."
    invitation = "Draw lines, or begin with an example; then press “Make photographs”."

    def build(self, elem_id: str, first: Image.Image | None = None) -> Component:
        """The painter with the first example, or empty."""
        begun = PainterValue(first or Image.new("RGB", BLANK, self.empty))
        return Painter(Kind.SKETCH, value=begun, label="Sketch", elem_id=elem_id)


class FileSurface(Surface):
    """A file, for conditions that are not drawn by hand, such as depth."""

    invitation = "Upload a file; then press “Make photographs”."

    def build(self, elem_id: str, first: Image.Image | None = None) -> Component:
        """The file input."""
        return gr.File(label=self.loaded.kind.capitalize(), file_count="single", type="filepath", elem_id=elem_id)

    def read(self, value: str | None) -> Tensor:
        """The condition in the file."""
        if value is None:
            raise UserError(f"Nothing is uploaded yet: upload a {self.loaded.kind}")
        return self.studio.read_condition(self.loaded.name, Path(value), Path(value).name)


class TextSurface(Surface):
    """A text."""

    invitation = "Say what is to be seen; then press “Make photographs”."

    def build(self, elem_id: str, first: Image.Image | None = None) -> Component:
        """The text input."""
        return gr.Textbox(
            label="What is to be seen", placeholder="a photo of a forest", max_length=500, elem_id=elem_id
        )

    def read(self, value: str | None) -> str:
        """The text."""
        if not (value or "").strip():
            raise UserError("The text is empty: describe the image")
        return self.studio.read_text(self.loaded.name, str(value))

    def source(self, raw: Tensor | str) -> SourceImage:
        """The text on a card."""
        card = Image.new("RGB", (256, 256), "white")
        words = "\n".join(wrap(str(raw), 22))
        draw = ImageDraw.Draw(card)
        draw.multiline_text((128, 128), words, "black", ImageFont.load_default(20), anchor="mm", align="center")
        return SourceImage(str(raw), card)


SURFACES: dict[str, type[Surface]] = {
    "mask": MaskSurface,
    "palette": MaskSurface,
    "sketch": SketchSurface,
    "text": TextSurface,
}
"""By kind of condition; other kinds are files."""


def surface_of(studio: Studio, loaded: Loaded) -> Surface:
    """The surface for a model's kind of condition."""
    return SURFACES.get(loaded.kind, FileSurface)(studio, loaded)
