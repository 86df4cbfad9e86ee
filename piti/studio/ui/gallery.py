"""The results on the page: progress of a job, previews, then each image with its condition."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from piti.studio.service.jobs import Snapshot, State
from piti.studio.service.live import LivePreview
from piti.studio.service.service import Picture, Result
from piti.studio.ui.element import Element, address_of, shrunk

SHOWN_SIDE = 512
"""Longest side in pixels of a condition beside its pictures."""


@dataclass(frozen=True)
class SourceImage:
    """A condition or photograph that pictures are made from, shown beside them."""

    name: str
    picture: Image.Image

    @cached_property
    def shown(self) -> dict[str, str]:
        """In the page's format; sent at every step."""
        return {"name": self.name, "source": address_of(shrunk(self.picture, SHOWN_SIDE))}


def nothing_yet(words: str) -> dict[str, Any]:
    """The state before there are pictures."""
    return {"state": "empty", "status": words}


def settled(words: str) -> dict[str, Any]:
    """Clears an earlier problem; pictures stay. words: shown in place of the problem."""
    return {"state": "settled", "status": words}


def refused(problem: str) -> dict[str, Any]:
    """The state after an error; the last pictures stay beside it. problem: its message."""
    return {"state": "failed", "problem": problem}


def on_the_way(snapshot: Snapshot, sources: Sequence[SourceImage], expected: int) -> dict[str, Any]:
    """The state of a job that has not ended. expected: number of its pictures."""
    waiting = snapshot.state is State.WAITING
    return {
        "state": snapshot.state.value,
        "status": _place(snapshot.before) if waiting else _steps(snapshot),
        "done": snapshot.done,
        "total": snapshot.total,
        "conditions": [source.shown for source in sources],
        "previews": [_data(jpeg) for jpeg in snapshot.preview],
        "expected": expected,
        "shape": sources[-1].picture.width / sources[-1].picture.height,
    }


def live(preview: LivePreview, shape: float) -> dict[str, Any]:
    """The state of a live preview. shape: its width over its height."""
    steps = "one step" if preview.steps == 1 else f"{preview.steps} steps"
    return {
        "state": "live",
        "status": f"Live: a rough preview in {steps}, {preview.seconds:.1f} s",
        "previews": [_data(preview.jpeg)],
        "shape": shape,
    }


def _data(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def finished(result: Result, sources: Sequence[SourceImage], editable: bool) -> dict[str, Any]:
    """The state of a finished job: addresses of its pictures. editable: whether this page can edit them."""
    count = len(result.pictures)
    made = "One photograph" if count == 1 else f"{count} photographs"
    return {
        "state": "done",
        "status": f"{made} by {result.model}, seed {result.seed}, in {result.seconds:.1f} s",
        "conditions": [source.shown for source in sources],
        "pictures": [_addressed(picture, editable) for picture in result.pictures],
        "notes": list(result.notes),
    }


def _addressed(picture: Picture, editable: bool) -> dict[str, Any]:
    return {
        "id": picture.id,
        "address": f"pictures/{picture.id}.png",
        "file": picture.file,
        "editable": editable and picture.raw is not None,
    }


def _place(before: int) -> str:
    if before <= 1:
        return "Waiting: one job before yours"
    return f"Waiting: {before} jobs before yours"


def _steps(snapshot: Snapshot) -> str:
    return f"Step {snapshot.done} of {snapshot.total}" if snapshot.total else "Beginning …"


class Strip(Element):
    """Thumbnails of examples; the event `select` carries the name of one as `event.name`."""

    stem = "strip"

    def __init__(self, pictures: Mapping[str, Image.Image], **options: Any) -> None:
        shown = [{"name": name, "source": address_of(shrunk(picture, 160))} for name, picture in pictures.items()]
        super().__init__(pictures=shown, **options)


class Gallery(Element):
    """Shows what `nothing_yet`, `refused`, `on_the_way` and `finished` return.

    The event `select` carries the id of the picture to edit as `event.id`.
    """

    stem = "gallery"

    def postprocess(self, value: Any) -> str | None:
        """As one JSON text: of a dictionary Gradio sends differences key by key, and the page would show part of it."""
        return None if value is None else json.dumps(value)
