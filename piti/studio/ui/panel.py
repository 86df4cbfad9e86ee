"""One model's tab: input, settings, results, and editing them."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError
from piti.core.images import same_proportions
from piti.editing import STEPS, VARIETY
from piti.pipelines.options import OWN_SAMPLING
from piti.studio.service.inputs import Upload
from piti.studio.service.jobs import Job
from piti.studio.service.live import Turn
from piti.studio.service.schema import EditRequest, TranslateRequest, for_browser
from piti.studio.service.service import Loaded, Result, Studio
from piti.studio.ui.gallery import Gallery, SourceImage, Strip, finished, nothing_yet, on_the_way, refused, settled
from piti.studio.ui.inputs import BLANK, surface_of
from piti.studio.ui.live import LiveMode
from piti.studio.ui.painter import PainterValue

_LARGEST_SEED = 2**31 - 1
_TRACED = "My drawing shows the photograph"

Changes = dict[Any, Any]
"""New values by component; other components stay as they are."""


@dataclass(frozen=True)
class Editing:
    """A photograph that is being edited, and its condition in raw form if that is known."""

    photograph: Image.Image
    raw: Tensor | None
    upload: Upload | None = None
    """The file that it was read from, if any."""


class Settings(NamedTuple):
    """The settings of a tab, in the order in which the page sends them."""

    num: float
    seed: float | None
    guidance: float
    sampler: str | None
    steps: float
    variety: float
    edit_steps: float
    exact: bool


def slug(name: str) -> str:
    """A model's name as part of the ids of page elements."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


_ABOUT = {
    "street": "*street* is a small model, trained on two CPU cores with 499 photographs of one town's streets: it "
    "shows the method, streets as such, recognisable and soft; no other scenes, and nothing to rely on in traffic.",
    "sketch": "*sketch* is a small model, trained on two CPU cores with 7,603 photographs of 96 pixels. It shows the "
    "method: buildings, forests, glaciers, mountains, seas and streets; no people, animals or objects.",
}
_ABOUT |= {f"{name}-fast": text.replace(f"*{name}*", f"*{name}-fast*") for name, text in _ABOUT.items()}
"""A line on a bundled model's limits, under its drawing, in Markdown."""


class Panel:
    """The controls of one model. `build` adds them to the current gr.Tab.

    panel_id: prefix of the ids of its elements; the model's name by default.
    """

    def __init__(self, studio: Studio, loaded: Loaded, panel_id: str | None = None) -> None:
        self.studio, self.loaded = studio, loaded
        self.surface = surface_of(studio, loaded)
        self.id = panel_id or slug(loaded.name)
        own = OWN_SAMPLING.resolve(loaded.pipeline).base
        self.own = {
            "guidance": own.guidance.w,
            "sampler": own.sampler,
            "steps": loaded.pipeline.base_network().steps(own),
        }
        self.live_mode = LiveMode(studio, self.surface, own.guidance.w)

    # Layout

    def build(self) -> None:
        """Add the components and connect their events."""
        self.editing = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                self._build_beginnings()
                self.drawing = self.surface.build(f"{self.id}-drawing", self._first_drawn())
                if self.loaded.name in _ABOUT:
                    gr.Markdown(_ABOUT[self.loaded.name], elem_id=f"{self.id}-about")
            with gr.Column(scale=5, min_width=320):
                self._build_banner()
                self._build_settings()
                self.gallery = Gallery(nothing_yet(self.surface.invitation), elem_id=f"{self.id}-gallery")
        self._connect_beginnings()
        self._connect_making()

    def _first_drawn(self) -> Image.Image | None:
        """The first example in the painter's format, so that generating works at once."""
        if not (self.surface.drawn and self.examples):
            return None
        raw = self.surface.read(next(iter(self.examples.values())))
        return None if isinstance(raw, str) else self.studio.drawn(self.loaded.name, raw)

    def _build_beginnings(self) -> None:
        self.examples = self.studio.examples(self.loaded.name)
        self.strip = None
        if not self.surface.drawn:
            return
        with gr.Row(equal_height=False):
            if self.examples:
                with gr.Column(scale=3, min_width=300):
                    self.strip = Strip(self.examples, elem_id=f"{self.id}-examples")
            with gr.Column(scale=1, min_width=170, elem_classes="uploads"):
                self.upload = self._upload_button(self.surface.upload_label, "upload")
                self.lines = self._upload_button("Lines of a photograph", "lines") if self.surface.takes_lines else None
                edits = self.loaded.info.edits
                self.photograph = self._upload_button("Edit a photograph", "photograph") if edits else None

    def _upload_button(self, label: str, name: str) -> gr.UploadButton:
        return gr.UploadButton(label, file_types=["image"], size="sm", elem_id=f"{self.id}-{name}", min_width=130)

    def _build_banner(self) -> None:
        with gr.Column(visible=False, elem_classes="editing", elem_id=f"{self.id}-editing") as self.banner:
            self.words = gr.Markdown(self.surface.editing)
            with gr.Row():
                self.variety = gr.Slider(
                    0, 1, value=VARIETY, step=0.05, label="How freely", elem_id=f"{self.id}-variety",
                    info="0 keeps what the photograph had there as far as it fits; 1 invents it anew",
                )  # fmt: skip
                most = self.studio.limits.steps
                self.edit_steps = gr.Slider(
                    **_counted(most, min(STEPS, most)), label="Editing steps", elem_id=f"{self.id}-edit-steps",
                    info="more keep the rest more exactly",
                )  # fmt: skip
            self.exact = gr.Checkbox(False, label="Keep the rest pixel for pixel", elem_id=f"{self.id}-exact")
            with gr.Row():
                self.traced = gr.Button(_TRACED, size="sm", visible=False, elem_id=f"{self.id}-traced")
                self.own_lines = gr.Button("Take its lines", size="sm", visible=False, elem_id=f"{self.id}-own-lines")
                self.stop = gr.Button("Stop editing", size="sm", elem_id=f"{self.id}-stop")

    def _build_settings(self) -> None:
        limits, own = self.studio.limits, self.own
        with gr.Row(equal_height=True, elem_classes="amounts"):
            most = limits.samples
            self.num = gr.Slider(
                **_counted(most, min(4, most)), label="Photographs", elem_id=f"{self.id}-num", min_width=180
            )
            self.seed = gr.Number(0, precision=0, label="Seed", elem_id=f"{self.id}-seed", min_width=100)
            self.live = self.live_mode.build(f"{self.id}-live")
        with gr.Accordion("More settings", open=False, elem_id=f"{self.id}-more"):
            self.guidance = gr.Slider(
                0, max(8, own["guidance"]), value=own["guidance"], step=0.25, label="Guidance w",
                elem_id=f"{self.id}-guidance",
                **self._settable("guidance", "how strongly the photographs follow the drawing; 0 is off"),
            )  # fmt: skip
            self.sampler = gr.Dropdown(
                list(self.loaded.samplers), value=own["sampler"], label="Sampler", elem_id=f"{self.id}-sampler",
                **self._settable("sampler"),
            )  # fmt: skip
            self.steps = gr.Slider(
                **_counted(limits.steps, own["steps"])
                | self._settable("steps", "fewer are quicker, more are finer"),
                label="Steps", elem_id=f"{self.id}-steps",
            )  # fmt: skip
        with gr.Row(elem_classes="actions"):
            self.make = gr.Button("Make photographs", variant="primary", size="md", scale=3, elem_id=f"{self.id}-make")
            self.another = gr.Button("Another seed", size="md", scale=2, elem_id=f"{self.id}-another", min_width=120)
            self.cancel = gr.Button(
                "Cancel", size="md", scale=1, visible=False, elem_id=f"{self.id}-cancel", min_width=90
            )

    def _settable(self, key: str, info: str | None = None) -> dict[str, Any]:
        """Whether a setting can be changed, and its description."""
        fixed = key in self.loaded.info.fixed
        return {"interactive": not fixed, "info": "part of this model's weights" if fixed else info}

    # Events

    def _connect_making(self) -> None:
        inputs = [
            self.drawing, self.editing, self.num, self.seed, self.guidance, self.sampler, self.steps, self.variety,
            self.edit_steps, self.exact,
        ]  # fmt: skip
        outputs = [self.gallery, self.cancel, self.make, self.another]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        running: dict[str, Any] = {**quiet, "concurrency_limit": None}
        asking = [self.drawing, self.editing, self.live, self.seed, self.guidance]
        previews = self.live_mode.connect(asking, self.gallery, running)
        made = self.make.click(self._made, inputs, outputs, cancels=previews, **running)
        reseeded = self.another.click(_other_seed, self.seed, self.seed, cancels=previews, **quiet)
        again = reseeded.then(self._made, inputs, outputs, **running)
        stopped = self.cancel.click(
            lambda: (nothing_yet("Cancelled."), gr.update(visible=False)),
            None, outputs[:2], cancels=[made, reseeded, again], **quiet,
        )  # fmt: skip
        # after the page has the cancellation; until then it ignores clicks
        stopped.then(lambda: _buttons(running=False)[1:], None, outputs[2:], **quiet)

    def _connect_beginnings(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": None}
        if not self.surface.drawn:
            return
        begun = [
            self.drawing, self.editing, self.banner, self.words, self.traced, self.own_lines, self.make, self.sampler,
            self.steps, self.gallery,
        ]  # fmt: skip
        if self.strip is not None:
            self.strip.select(self._example, self.editing, begun, **quiet)
        self.upload.upload(self._uploaded, [self.upload, self.editing], begun, **quiet)
        if self.lines is not None:
            self.lines.upload(self._lines_drawn, [self.lines, self.editing], begun, **quiet)
        if self.photograph is not None:
            self.photograph.upload(self._photograph_given, self.photograph, begun, **quiet)
        self.gallery.select(self._picked, None, begun, **quiet)
        self.traced.click(self._traced, [self.drawing, self.editing], begun, **quiet)
        self.own_lines.click(self._own_lines, self.editing, begun, **quiet)
        self.stop.click(self._stopped, self.drawing, begun, **quiet)

    async def _made(self, drawn: Any, editing: Editing | None, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Progress, then the pictures. Cancels the job if the visitor cancels or leaves."""
        turn = Turn()
        try:
            sources, count, job = await asyncio.to_thread(self._begin, drawn, editing, Settings(*values), turn)
            async for snapshot in job.changes():
                if not snapshot.state.ended:
                    yield on_the_way(snapshot, sources, count), *_buttons(running=True)
            editable = self.surface.drawn and self.loaded.info.edits
            yield finished(await job.result(), sources, editable), *_buttons(running=False)
        except UserError as error:
            yield refused(for_browser(error)), *_buttons(running=False)
        finally:
            turn.end()

    def _begin(
        self, drawn: Any, editing: Editing | None, said: Settings, turn: Turn
    ) -> tuple[list[SourceImage], int, Job[Result]]:
        """Submit the job of a turn; returns its source images, number of images, and the job.

        Raises UserError for an invalid drawing or settings, Cancelled if the turn has ended meanwhile.
        """
        if said.seed is None:
            raise UserError("Seed: is empty; enter a whole number, or press 'Another seed'")
        asked = {"guidance": said.guidance, "sampler": said.sampler, "steps": int(said.steps)}
        chosen = {key: value for key, value in asked.items() if value != self.own[key]}  # else the model's own
        shared: dict[str, Any] = {"model": self.loaded.name, "num": int(said.num), "seed": int(said.seed)}
        raw = self.surface.read(drawn)
        if editing is None:
            request = TranslateRequest.parse(shared | (chosen if self.loaded.samplers else {}), "settings")
            return [self.surface.source(raw)], request.num, turn.holds(self.studio.translate(request, raw))
        if editing.raw is None or isinstance(raw, str):
            kind = self.loaded.kind
            raise UserError(
                f"The photograph's current {kind} is unknown: first upload it, or draw it and press “{_TRACED}”"
            )
        if "guidance" in chosen:
            shared["guidance"] = said.guidance
        shared |= {"steps": int(said.edit_steps), "variety": said.variety, "keep_exact": said.exact}
        request = EditRequest.parse(shared, "settings")
        job = turn.holds(self.studio.edit(request, editing.photograph, raw, editing.raw, upload=editing.upload))
        return [SourceImage("before", editing.photograph), self.surface.source(raw)], request.num, job

    # Inputs and edits; each returns what changes on the page

    def _example(self, editing: Editing | None, event: gr.EventData) -> Changes:
        return self._put(lambda: self.surface.read(self.examples[event.name]), editing)

    def _uploaded(self, path: str, editing: Editing | None) -> Changes:
        """A drawing from a file; it describes the edited photograph if that has no condition yet."""
        file = Path(path)
        return self._put(lambda: self.studio.read_condition(self.loaded.name, file, file.name), editing, describes=True)

    def _lines_drawn(self, path: str, editing: Editing | None) -> Changes:
        file = Path(path)
        return self._put(lambda: self.surface.read(self.studio.lines_of_photograph(file, file.name)), editing)

    def _own_lines(self, editing: Editing | None) -> Changes:
        """The lines of the edited photograph become its condition."""
        if editing is None:
            return {}
        lines = self.studio.lines_of_photograph
        return self._put(lambda: self.surface.read(lines(editing.photograph)), editing, describes=True)

    def _put(self, read: Callable[[], Any], editing: Editing | None, describes: bool = False) -> Changes:
        """Load another condition, in raw form, into the painter. describes: it may describe the edited photograph."""
        try:
            raw = read()
            drawn = self.studio.drawn(self.loaded.name, raw)
            if editing is not None:
                _check_framing(drawn.size, editing.photograph.size)
        except UserError as error:
            return self._refused(error)
        if editing is not None and editing.raw is None and describes:
            editing = replace(editing, raw=raw)
        return self._laid(drawn, editing)

    def _photograph_given(self, path: str) -> Changes:
        """A photograph to edit; PNGs written by piti contain their condition."""
        file = Path(path)
        try:
            given = self.studio.read_photograph(self.loaded.name, file, file.name)
        except UserError as error:
            return self._refused(error)
        return self._begun(Editing(*given))

    def _picked(self, event: gr.EventData) -> Changes:
        """Edit one of the results."""
        try:
            picture = self.studio.kept(event.id)
        except UserError as error:
            return self._refused(error)
        return self._begun(Editing(picture.image(), picture.raw))

    def _traced(self, drawn: Any, editing: Editing | None) -> Changes:
        """The drawing becomes the photograph's condition; further changes are edits."""
        try:
            raw = self.surface.read(drawn)
        except UserError as error:
            return self._refused(error)
        if editing is None or isinstance(raw, str):
            return {}
        return self._laid(drawn, replace(editing, raw=raw))

    def _begun(self, editing: Editing) -> Changes:
        if editing.raw is not None:
            return self._laid(self.studio.drawn(self.loaded.name, editing.raw), editing)
        return self._laid(Image.new("RGB", editing.photograph.size, self.surface.empty), editing)

    def _laid(self, drawn: Image.Image, editing: Editing | None) -> Changes:
        """Load a drawing into the painter, over the edited photograph if there is one."""
        edits, photograph, raw = editing is not None, editing and editing.photograph, editing and editing.raw
        before, unknown = None if raw is None else self.studio.drawn(self.loaded.name, raw), edits and raw is None
        return {
            self.drawing: PainterValue(drawn, photograph, before),
            self.editing: editing,
            self.banner: gr.update(visible=edits),
            self.words: self._unknown() if unknown else self.surface.editing,
            self.traced: gr.update(visible=unknown),
            self.own_lines: gr.update(visible=unknown and self.surface.takes_lines),
            self.make: gr.update(value="Apply the change" if edits else "Make photographs"),
            self.sampler: gr.update(visible=not edits),
            self.steps: gr.update(visible=not edits),
            self.gallery: settled(self.surface.invitation),
        }

    def _unknown(self) -> str:
        kind = self.loaded.kind
        return (
            f"**This photograph carries no {kind}.** Upload its {kind}, or draw over it what it shows and press "
            f"“{_TRACED}”. Then change that, and the rest is kept."
        )

    def _stopped(self, drawn: Any) -> Changes:
        """Stop editing; the drawing stays."""
        return self._laid(drawn or Image.new("RGB", BLANK, self.surface.empty), None)

    def _refused(self, error: UserError) -> Changes:
        return {self.gallery: refused(for_browser(error))}


def _counted(most: int, value: int) -> dict[str, Any]:
    """A slider from 1 to `most`, or to its initial value if larger, which Gradio would refuse otherwise; disabled if
    there is no choice, since Gradio has no slider with a single value."""
    return {"minimum": 1, "maximum": max(most, value, 2), "value": value, "step": 1, "interactive": most > 1}


def _buttons(running: bool) -> tuple[Any, Any, Any]:
    """The buttons Cancel, Make photographs and Another seed; one job at a time."""
    return gr.update(visible=running), gr.update(interactive=not running), gr.update(interactive=not running)


def _check_framing(size: tuple[int, int], photograph: tuple[int, int]) -> None:
    """Raises UserError unless a drawing and a photograph have the same aspect ratio."""
    if not same_proportions(size, photograph):
        (width, height), (columns, rows) = size, photograph
        raise UserError(
            f"This drawing is {width} x {height} and the photograph {columns} x {rows}, but both must show the same "
            "image: give both the same aspect ratio, or stop editing first"
        )


def _other_seed(seed: float | None) -> int:
    """A random seed other than the current one."""
    other = random.randrange(_LARGEST_SEED)
    return other if other != seed else other + 1
