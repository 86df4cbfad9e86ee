"""Parts of the page that Gradio lacks: HTML, CSS and JavaScript of our own, in files of one stem beside this module."""

from __future__ import annotations

from abc import ABCMeta
from importlib.resources import files
from typing import Any, ClassVar

import gradio as gr
from gradio.component_meta import ComponentMeta, updateable

_PARTS = ("html", "css", "js")


class _NoInterfaceFile(ComponentMeta):
    """Gradio writes a .pyi file beside every module that defines a component; not beside ours."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        if "__init__" in attrs:
            attrs["__init__"] = updateable(attrs["__init__"])
        return ABCMeta.__new__(cls, name, bases, attrs)


class Element(gr.HTML, metaclass=_NoInterfaceFile):
    """`stem`.html, `stem`.css and `stem`.js as a component; options: Gradio's, and properties that the script reads."""

    stem: ClassVar[str]

    def __init__(self, value: Any = None, **options: Any) -> None:
        html, css, js = ((files("piti.studio") / f"{self.stem}.{suffix}").read_text("utf-8") for suffix in _PARTS)
        super().__init__(value, html_template=html, css_template=css, js_on_load=js, **options)

    def api_info(self) -> dict[str, Any]:
        """What its value is, for Gradio."""
        return {"type": "object"}
