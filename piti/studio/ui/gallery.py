"""The results on the page: how far a job is, the emerging pictures, then each picture with its condition."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from piti.studio.service.jobs import Snapshot, State
from piti.studio.service.service import Picture, Result
from piti.studio.ui.element import Element, address_of, shrunk

SHOWN_SIDE = 512
"""The longest side, in pixels, of a condition beside its pictures."""


@dataclass(frozen=True)
class Source:
    """What pictures are made from, as it is shown beside them."""

    name: str
    picture: Image.Image

    @cached_property
    def shown(self) -> dict[str, str]:
        """For the page, which is told again at every step."""
        return {"name": self.name, "source": address_of(shrunk(self.picture, SHOWN_SIDE))}


def nothing_yet(words: str) -> dict[str, Any]:
    """Before there are pictures."""
    return {"state": "empty", "status": words}


def settled(words: str) -> dict[str, Any]:
    """An earlier problem is over; pictures that are shown stay. words: what stands where the problem stood."""
    return {"state": "settled", "status": words}


def refused(problem: str) -> dict[str, Any]:
    """Why there are no pictures, in words."""
    return {"state": "failed", "problem": problem}


def on_the_way(snapshot: Snapshot, sources: Sequence[Source], expected: int) -> dict[str, Any]:
    """A job that has not ended. expected: how many pictures it makes."""
    waiting = snapshot.state is State.WAITING
    return {
        "state": snapshot.state.value,
        "status": _place(snapshot.before) if waiting else _steps(snapshot),
        "done": snapshot.done,
        "total": snapshot.total,
        "conditions": [source.shown for source in sources],
        "previews": [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in snapshot.preview],
        "expected": expected,
        "shape": sources[-1].picture.width / sources[-1].picture.height,
    }


def finished(result: Result, sources: Sequence[Source], editable: bool) -> dict[str, Any]:
    """Every picture, where it can be looked at and downloaded. editable: on this page."""
    count = len(result.pictures)
    made = "One photograph" if count == 1 else f"{count} photographs"
    return {
        "state": "done",
        "status": f"{made} by {result.model}, seed {result.seed}, in {result.seconds:.1f} s",
        "conditions": [source.shown for source in sources],
        "pictures": [_addressed(picture, result, editable) for picture in result.pictures],
        "notes": list(result.notes),
    }


def _addressed(picture: Picture, result: Result, editable: bool) -> dict[str, Any]:
    return {
        "id": picture.id,
        "address": f"pictures/{picture.id}.png",
        "file": f"{result.model.replace('/', '-')}-{result.seed}-{picture.number}.png",
        "editable": editable and picture.raw is not None,
    }


def _place(before: int) -> str:
    if before <= 1:
        return "Waiting: one job before yours"
    return f"Waiting: {before} jobs before yours"


def _steps(snapshot: Snapshot) -> str:
    return f"Step {snapshot.done} of {snapshot.total}" if snapshot.total else "Beginning …"


class Strip(Element):
    """Small pictures to begin with; its event `select` says which one, as `event.name`."""

    stem = "strip"

    def __init__(self, pictures: Mapping[str, Image.Image], **options: Any) -> None:
        shown = [{"name": name, "source": address_of(shrunk(picture, 160))} for name, picture in pictures.items()]
        super().__init__(pictures=shown, **options)


class Gallery(Element):
    """Shows what `nothing_yet`, `refused`, `on_the_way` and `finished` return.

    Its event `select` says which picture is to be edited, as `event.id`.
    """

    stem = "gallery"

    def postprocess(self, value: Any) -> str | None:
        """As one text: of a dictionary Gradio sends what differs, key by key, and the page would show half of it."""
        return None if value is None else json.dumps(value)
