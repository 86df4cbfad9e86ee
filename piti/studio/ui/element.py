"""Custom components of the page: HTML, CSS and JavaScript in static/, in files with one stem."""

from __future__ import annotations

import base64
from abc import ABCMeta
from importlib.resources import files
from io import BytesIO
from typing import Any, ClassVar

import gradio as gr
import numpy as np
from gradio.component_meta import ComponentMeta, updateable
from PIL import Image

_STATIC = files("piti.studio.ui") / "static"
_PARTS = ("html", "css", "js")


class _NoInterfaceFile(ComponentMeta):
    """Gradio writes a .pyi file beside every module that defines a component; this prevents it."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        if "__init__" in attrs:
            attrs["__init__"] = updateable(attrs["__init__"])
        return ABCMeta.__new__(cls, name, bases, attrs)


class Element(gr.HTML, metaclass=_NoInterfaceFile):
    """`stem`.html, `stem`.css and `stem`.js as a component. options: Gradio's, and properties that the script reads."""

    stem: ClassVar[str]

    def __init__(self, value: Any = None, **options: Any) -> None:
        html, css, js = ((_STATIC / f"{self.stem}.{suffix}").read_text("utf-8") for suffix in _PARTS)
        super().__init__(value, html_template=html, css_template=css, js_on_load=js, **options)

    def api_info(self) -> dict[str, Any]:
        """Schema of the value, for Gradio."""
        return {"type": "object"}


def shrunk(picture: Image.Image, side: int, resample: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """In RGB, scaled down to at most `side` pixels, without metadata; by default not smoothed, as masks require."""
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    small = picture.convert("RGB")
    small = small if scale == 1 else small.resize((width, height), resample)
    return Image.fromarray(np.asarray(small))


def address_of(picture: Image.Image, form: str = "PNG") -> str:
    """A picture as a data URL. form: PNG or JPEG."""
    file = BytesIO()
    picture.save(file, format=form, **({"quality": 90} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
