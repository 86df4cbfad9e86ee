"""Live mode: a rough preview after every stroke, off by default."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from piti.core.errors import UserError
from piti.studio.service.jobs import Cancelled
from piti.studio.service.live import PAUSE, Newest
from piti.studio.service.schema import for_browser
from piti.studio.service.service import Studio
from piti.studio.ui.gallery import Gallery, live, refused
from piti.studio.ui.inputs import Surface


class LiveMode:
    """The switch and its events. guidance: the model's own w."""

    def __init__(self, studio: Studio, surface: Surface, guidance: float) -> None:
        self.studio, self.surface, self.guidance = studio, surface, guidance
        self.newest = Newest()

    def build(self, elem_id: str) -> gr.Checkbox:
        """Add the switch to the current layout; the painter's script looks for its class."""
        return gr.Checkbox(
            False, label="Live", info="a rough preview after every stroke", elem_id=elem_id, elem_classes="live",
            visible=self.surface.drawn, min_width=130,
        )  # fmt: skip

    def connect(self, given: Sequence[Any], gallery: Gallery, how: dict[str, Any]) -> list[Any]:
        """Connect the events that start previews: strokes and the switch. given: the inputs of `previewed`, with the
        drawing first and the switch third."""
        if not self.surface.drawn:
            return []
        drawing, _, switch, *_ = given
        events = (drawing.input, switch.input)
        return [event(self.previewed, given, gallery, trigger_mode="multiple", **how) for event in events]

    async def previewed(
        self,
        drawn: Image.Image | None,
        editing: Any,
        on: bool,
        seed: float | None,
        guidance: float,
        request: gr.Request,
    ) -> Any:
        """Updates of the gallery: a preview of the drawing, unless the visitor continues drawing; nothing if it is off,
        or if a photograph is edited."""
        if not on or editing is not None or seed is None or drawn is None:
            return gr.skip()
        try:
            with self.newest.turn(str(request.session_hash)) as turn:
                await asyncio.sleep(PAUSE)
                turn.check()
                raw = await asyncio.to_thread(self.surface.read, drawn)
                w = None if guidance == self.guidance else guidance
                name, begin = self.surface.loaded.name, self.studio.live
                job = await asyncio.to_thread(lambda: turn.holds(begin(name, raw, int(seed), w)))
                return live(await job.result(), drawn.width / drawn.height)
        except Cancelled:
            return gr.skip()
        except UserError as error:
            return refused(for_browser(error))
