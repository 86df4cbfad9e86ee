"""The page without a browser: answers of its handlers."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.diffusion.guidance import Guidance
from piti.pipelines.options import OWN_SAMPLING, NetworkOptions, SamplingOptions
from piti.studio.service.jobs import Cancelled, Job
from piti.studio.service.service import Studio
from piti.studio.ui.gallery import Gallery
from piti.studio.ui.inputs import FileSurface, TextSurface
from piti.studio.ui.page import build_page
from piti.studio.ui.panel import Editing, Panel, slug
from tests.studio.tiny import file_of, ids, painted

SETTINGS = {"num": 2, "seed": 0, "guidance": 1.0, "sampler": "ddim", "steps": 3, "variety": 0.5, "edit_steps": 3}


@pytest.fixture
def panel(studio: Studio) -> Panel:
    """Of the masks' model, laid out."""
    return laid_out(studio, "mask")


def laid_out(studio: Studio, name: str) -> Panel:
    import gradio as gr

    panel = Panel(studio, studio.models[name])
    with gr.Blocks(analytics_enabled=False), gr.Tab(name):
        panel.build()
    return panel


def made(panel: Panel, drawn: Any, editing: Editing | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Every value that the gallery is given."""

    async def run() -> list[dict[str, Any]]:
        values = (SETTINGS | {"exact": False} | changes).values()
        return [shown async for shown, *_ in panel._made(drawn, editing, *values)]

    return asyncio.run(run())


def test_the_page_opens_with_the_first_example_drawn(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    first = painted(ids())
    monkeypatch.setattr(studio, "examples", lambda name: {"one": first, "two": first.rotate(180)})
    panel = laid_out(studio, "mask")
    drawn = panel._first_drawn()
    assert drawn is not None
    raw: Any = panel.surface.read(first)
    assert drawn.tobytes() == studio.drawn("mask", raw).tobytes()
    assert made(panel, drawn)[-1]["state"] == "done"
    monkeypatch.setattr(studio, "examples", lambda name: {})
    assert laid_out(studio, "mask")._first_drawn() is None


class TestMaking:
    def test_a_drawing_becomes_pictures(self, panel: Panel, studio: Studio) -> None:
        shown = made(panel, painted(ids()))
        assert {value["state"] for value in shown[:-1]} <= {"waiting", "running"}
        done = shown[-1]
        assert (done["state"], len(done["pictures"]), len(done["conditions"])) == ("done", 2, 1)
        assert "2 photographs by mask, seed 0" in done["status"]
        kept = studio.kept(done["pictures"][0]["id"])
        assert (kept.width, kept.height) == (21, 16)
        assert all(picture["editable"] for picture in done["pictures"])

    def test_the_models_own_settings_are_its_own(self, panel: Panel, studio: Studio) -> None:
        """What the visitor leaves alone is not said again, so that the metadata is that of `piti translate`."""
        own = OWN_SAMPLING.resolve(studio.models["mask"].pipeline).base
        changes = {"guidance": own.guidance.w, "sampler": own.sampler, "steps": panel.own["steps"]}
        done = made(panel, painted(ids()), **changes)[-1]
        text = Image.open(__import__("io").BytesIO(studio.kept(done["pictures"][0]["id"]).png)).info
        assert own.guidance.model_dump_json() in text.values()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"seed": None}, "Seed: is empty"), ({"num": 99}, "at most 4"), ({"steps": 9999}, "at most 500")],
    )
    def test_impossible_settings_are_told(self, panel: Panel, changes: dict[str, Any], words: str) -> None:
        (shown,) = made(panel, painted(ids()), **changes)
        assert shown["state"] == "failed"
        assert words in shown["problem"]

    def test_nothing_drawn_is_told(self, panel: Panel) -> None:
        (shown,) = made(panel, None)
        assert "Nothing is drawn yet" in shown["problem"]

    def test_who_leaves_ends_the_job(self, panel: Panel, studio: Studio) -> None:
        async def run() -> None:
            values = (SETTINGS | {"exact": False, "steps": 500, "num": 4}).values()
            stream: AsyncIterator[Any] = panel._made(painted(ids()), None, *values)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]

        asyncio.run(run())
        while len(studio.queue):
            time.sleep(0.01)

    def test_who_leaves_while_a_drawing_is_read_leaves_no_job(
        self, panel: Panel, studio: Studio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, gone, jobs, translate = threading.Event(), threading.Event(), list[Job[Any]](), studio.translate

        def slow(*given: Any) -> Job[Any]:
            begun.set()
            gone.wait(20)
            jobs.append(translate(*given))
            return jobs[0]

        async def run() -> None:
            values = (SETTINGS | {"exact": False, "steps": 500, "num": 4}).values()
            first = asyncio.ensure_future(anext(panel._made(painted(ids()), None, *values)))
            await asyncio.to_thread(begun.wait)
            first.cancel()
            await asyncio.wait([first])
            gone.set()

        monkeypatch.setattr(studio, "translate", slow)
        asyncio.run(run())
        with pytest.raises(Cancelled):
            asyncio.run(jobs[0].result())


def test_a_student_offers_no_edit_and_no_settings_of_its_weights(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, its refusal came after the photograph and the drawing."""
    served = studio.models["mask"]
    info = served.info.model_copy(update={"fixed": ["guidance", "steps", "sampler"], "edits": False})
    monkeypatch.setitem(studio.models, "mask", dataclasses.replace(served, info=info))
    panel = laid_out(studio, "mask")
    assert panel.photograph is None
    assert not any(one.interactive for one in (panel.guidance, panel.steps, panel.sampler))
    own = {key: panel.own[key] for key in ("guidance", "sampler", "steps")}
    done = made(panel, painted(ids()), **own)[-1]
    assert not any(picture["editable"] for picture in done["pictures"])


@pytest.mark.parametrize("most", [1, 2])
def test_limits_below_what_a_model_takes_by_itself_leave_a_page_that_works(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """One of anything ended in Gradio's error, and beyond a slider's end the page refused its own settings."""
    monkeypatch.setattr(studio, "limits", dataclasses.replace(studio.limits, samples=most, steps=most))
    pipeline = studio.models["mask"].pipeline
    strong = SamplingOptions(base=NetworkOptions(guidance=Guidance(w=9)))
    monkeypatch.setattr(pipeline, "defaults", strong.networks_over(pipeline.defaults))
    panel = laid_out(studio, "mask")
    sliders = {"num": panel.num, "guidance": panel.guidance, "steps": panel.steps, "edit_steps": panel.edit_steps}
    begun: dict[str, Any] = {name: slider.preprocess(slider.value) for name, slider in sliders.items()}
    assert begun == {"num": most, "guidance": 9, "steps": 3, "edit_steps": most}
    assert len(made(panel, painted(ids()), **begun | {"sampler": panel.own["sampler"]})[-1]["pictures"]) == most


class TestEditing:
    def test_a_result_is_edited(self, panel: Panel, studio: Studio) -> None:
        picture = made(panel, painted(ids()))[-1]["pictures"][0]
        changes = panel._picked(SimpleNamespace(id=picture["id"]))  # type: ignore[arg-type]
        editing = changes[panel.editing]
        assert changes[panel.drawing].underlay.size == (21, 16)
        assert np.array_equal(np.asarray(changes[panel.drawing].picture), np.asarray(painted(ids())))
        other = ids()
        other[18:28, 22:36] = 2
        done = made(panel, painted(other), editing, exact=True)[-1]
        assert [source["name"] for source in done["conditions"]] == ["before", "mask"]
        before, after = (
            np.asarray(image) for image in (editing.photograph, studio.kept(done["pictures"][0]["id"]).image())
        )
        assert np.array_equal(before[:6], after[:6])
        assert not np.array_equal(before, after)

    def test_nothing_changed_is_told(self, panel: Panel, studio: Studio) -> None:
        raw = studio.read_condition("mask", painted(ids()), "mask")
        shown = made(panel, painted(ids()), Editing(Image.new("RGB", (40, 30)), raw))[-1]
        assert "are equal" in shown["problem"]

    def test_a_photograph_of_unknown_content_is_first_described(self, panel: Panel, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(file_of(Image.new("RGB", (40, 30), "grey"), "JPEG"))
        changes = panel._photograph_given(str(tmp_path / "photo.jpg"))
        editing = changes[panel.editing]
        assert editing.raw is None
        assert "carries no mask" in changes[panel.words]
        assert "is unknown" in made(panel, painted(ids()), editing)[-1]["problem"]
        described = panel._traced(painted(ids()), editing)
        assert described[panel.editing].raw is not None
        assert described[panel.traced]["visible"] is False
        stopped = panel._stopped(painted(ids()))
        assert stopped[panel.editing] is None
        assert stopped[panel.drawing].underlay is None

    def test_what_pixels_cannot_keep_exactly_is_told(self, panel: Panel, tmp_path: Path) -> None:
        """It was dropped without a word."""
        clear = painted(ids())
        clear.putalpha(100)
        clear.save(tmp_path / "clear.png")
        begun = panel._photograph_given(str(tmp_path / "clear.png"))
        editing = panel._traced(painted(ids()), begun[panel.editing])[panel.editing]
        other = painted(np.where(ids() == 2, 1, ids()))
        assert "clear.png: images are written as 8-bit RGB" in made(panel, other, editing, exact=True)[-1]["problem"]
        assert made(panel, other, editing)[-1]["state"] == "done"

    def test_another_mask_while_editing_is_the_change(self, panel: Panel, studio: Studio, tmp_path: Path) -> None:
        """What it differs in from the photograph's own is what the painter marks."""
        raw = studio.read_condition("mask", painted(ids()), "mask")
        editing = Editing(Image.new("RGB", (40, 30)), raw)
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "sky.png")
        changes = panel._uploaded(str(tmp_path / "sky.png"), editing)
        canvas = changes[panel.drawing]
        assert np.array_equal(np.asarray(canvas.before), np.asarray(painted(ids())))
        assert not np.array_equal(np.asarray(canvas.picture), np.asarray(canvas.before))
        assert changes[panel.editing] is editing
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "square.png")
        refused = panel._uploaded(str(tmp_path / "square.png"), editing)
        assert set(refused) == {panel.gallery}
        assert "40 x 40 and the photograph 40 x 30" in refused[panel.gallery]["problem"]

    def test_a_photographs_own_lines(self, studio: Studio) -> None:
        photograph = Image.new("RGB", (64, 48), "white")
        photograph.paste("black", (16, 12, 48, 36))
        panel = laid_out(studio, "lines")
        begun = panel._begun(Editing(photograph, None))
        assert begun[panel.own_lines]["visible"]
        described = panel._own_lines(begun[panel.editing])
        assert described[panel.editing].raw.any()

    def test_a_picture_that_is_no_longer_kept(self, panel: Panel) -> None:
        changes = panel._picked(SimpleNamespace(id="gone"))  # type: ignore[arg-type]
        assert "no longer kept; generate" in changes[panel.gallery]["problem"]
        assert set(changes) == {panel.gallery}


class TestUploads:
    def test_ids_and_rubbish(self, panel: Panel, tmp_path: Path) -> None:
        Image.fromarray(ids()).save(tmp_path / "ids.png")
        loaded = panel._uploaded(str(tmp_path / "ids.png"), None)[panel.drawing]
        assert np.array_equal(np.asarray(loaded.picture), np.asarray(painted(ids())))
        (tmp_path / "x.png").write_text("no picture")
        assert "x.png" in panel._uploaded(str(tmp_path / "x.png"), None)[panel.gallery]["problem"]

    def test_lines_of_a_photograph(self, studio: Studio, tmp_path: Path) -> None:
        photograph = Image.new("RGB", (64, 48), "white")
        photograph.paste("black", (16, 12, 48, 36))
        photograph.save(tmp_path / "p.png")
        panel = laid_out(studio, "lines")
        drawn = np.asarray(panel._lines_drawn(str(tmp_path / "p.png"), None)[panel.drawing].picture)
        assert {tuple(colour) for colour in drawn.reshape(-1, 3)} == {(0, 0, 0), (255, 255, 255)}


def test_text_has_a_line_to_write_on() -> None:
    studio = Studio(("scenes-prior",))
    try:
        panel = laid_out(studio, "scenes-prior")
        assert isinstance(panel.surface, TextSurface)
        assert "The text is empty: describe" in made(panel, "  ")[-1]["problem"]
        done = made(panel, "a photo of a forest", num=1, steps=2, sampler="ddim")[-1]
        assert done["conditions"][0]["name"] == "a photo of a forest"
        assert not done["pictures"][0]["editable"]
        assert len(done["pictures"]) == 1
    finally:
        studio.close()


def test_other_kinds_are_files(studio: Studio) -> None:
    surface = FileSurface(studio, studio.models["mask"])
    with pytest.raises(Exception, match="upload a mask"):
        surface.read(None)


def test_the_page_has_a_tab_a_model(studio: Studio) -> None:
    page = build_page(studio)
    labels = [block.label for block in page.blocks.values() if type(block).__name__ == "Tab"]  # type: ignore[attr-defined]
    assert labels == ["Paint a mask", "Draw a sketch"]
    assert slug("someone/Model_2") == "someone-model-2"


def test_the_gallery_gets_whole_values() -> None:
    """As text; of a dictionary Gradio would send parts."""
    assert Gallery().postprocess({"state": "done"}) == '{"state": "done"}'
    assert Gallery().postprocess(None) is None


def test_components_write_no_files_beside_themselves() -> None:
    import piti.studio

    assert not list(Path(piti.studio.__path__[0]).glob("*.pyi"))


class TestLive:
    request: Any = SimpleNamespace(session_hash="one")

    def shown(self, panel: Panel, *drawings: Any, editing: Any = None, on: bool = True) -> list[Any]:
        """What the gallery is given for drawings that come at once."""

        async def run() -> list[Any]:
            mode = panel.live_mode
            calls = [mode.previewed(drawn, editing, on, 0, 1.0, self.request) for drawn in drawings]
            return list(await asyncio.gather(*calls))

        return asyncio.run(run())

    def test_the_last_of_several_strokes_is_previewed(self, panel: Panel, studio: Studio) -> None:
        skipped, shown = self.shown(panel, painted(ids()), painted(ids()[::-1].copy()))
        assert skipped == gr_skip()
        assert (shown["state"], len(shown["previews"])) == ("live", 1)
        assert "rough preview in" in shown["status"]
        deadline = time.monotonic() + 20
        while len(studio.queue) and time.monotonic() < deadline:  # it leaves the queue a moment after its last preview
            time.sleep(0.01)
        assert len(studio.queue) == 0

    def test_nothing_is_shown_while_it_is_off_or_a_photograph_is_edited(self, panel: Panel) -> None:
        editing = Editing(painted(ids()), None)
        assert self.shown(panel, painted(ids()), on=False) == self.shown(panel, None) == [gr_skip()]
        assert self.shown(panel, painted(ids()), editing=editing) == [gr_skip()]

    def test_what_cannot_be_previewed_is_told(self, panel: Panel) -> None:
        (shown,) = self.shown(panel, painted(ids(400, 4)))
        assert shown["state"] == "failed"

    def test_it_is_off_at_first_and_for_painters_alone(self, panel: Panel) -> None:
        assert panel.live.value is False
        assert panel.live.visible


def gr_skip() -> Any:
    import gradio as gr

    return gr.skip()
