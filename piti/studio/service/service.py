"""The service behind the page and the HTTP interface: loaded models, inputs, jobs, stored images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from piti.checkpoints.folder import ModelFolder
from piti.conditions import ConditionError, GeometryCondition, TextCondition
from piti.conditions.coverage import unlabelled_note
from piti.core.errors import UserError, option
from piti.core.images import to_pil
from piti.core.spec import choices
from piti.data.edges import draw_lines
from piti.diffusion.samplers import OnStep
from piti.editing import EditInput, prepare_edit
from piti.editing.options import check_exact
from piti.generation.edits import THE_IMAGES_OWN, Names
from piti.generation.generate import make_images
from piti.generation.metadata_schema import carried_condition
from piti.pipelines.canvas import Canvas, check_proportions
from piti.pipelines.computing import TORCH, Computing
from piti.studio.service.edits import Edit, held_edit
from piti.studio.service.inputs import (
    Upload,
    checked_upload,
    opened,
    photograph,
    read_arrays,
    read_painted,
    read_picture,
    shown,
)
from piti.studio.service.jobs import Job, Queue, one_thread
from piti.studio.service.live import LivePreview, live_batch, live_sampling
from piti.studio.service.models import Loaded, load
from piti.studio.service.schema import EditRequest, Limits, TranslateRequest
from piti.studio.service.storage import Picture, Store, held_prepared

Drawn = tuple[list[Picture], tuple[str, ...]]
"""A job's images, with notes."""

__all__ = ["Loaded", "Picture", "Result", "Studio", "UnknownModel"]

_LINES_SIDE = 1024  # largest side of photographs for line extraction


class UnknownModel(UserError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Result:
    """Result of a job."""

    model: str
    seed: int
    pictures: tuple[Picture, ...]
    seconds: float
    notes: tuple[str, ...] = ()


class Studio:
    """Loaded models, one queue for all of them, and recent images.

    names: bundled models, folders, runs or hub ids. computing: device and engine of the networks, by default torch on
    the fastest device; engines and compiled blocks are prepared here, which takes up to a minute the first time. Raises
    UserError for a model that cannot be loaded or is not supported, and for an unavailable engine, device or dtype.
    """

    def __init__(
        self,
        names: Sequence[str] = ("street", "sketch"),
        limits: Limits | None = None,
        computing: Computing = TORCH,
    ) -> None:
        self.limits = limits or Limits()
        if not names:
            raise UserError("no model is given", remedy=f"give one with {option('model')}, such as street")
        self.queue = Queue(self.limits.waiting, self.limits.seconds, self.limits.waiting_bytes)
        try:
            # in the sampling thread, see one_thread
            self.models: Mapping[str, Loaded] = self.queue.done(lambda: self._loaded(names, computing))
        except BaseException:
            self.queue.close(wait=False)
            raise
        self._store = Store(self.limits.kept_results, self.limits.kept_bytes)

    def _loaded(self, names: Sequence[str], computing: Computing) -> dict[str, Loaded]:
        models = {name: load(name, computing, self.limits) for name in dict.fromkeys(names)}
        for loaded in models.values():
            if computing.compile or loaded.pipeline.engine.name != "torch":
                loaded.pipeline.warm()
        return models

    def close(self, wait: bool = True) -> None:
        """Cancel all jobs and accept no more."""
        self.queue.close(wait)

    def model(self, name: str) -> Loaded:
        """A served model. Raises UnknownModel."""
        if name not in self.models:
            raise UnknownModel(f"model '{name}' is not served here; {choices(name, self.models)}")
        return self.models[name]

    # Inputs

    @one_thread()
    def read_condition(self, model: str, image: Image.Image | bytes | Path, source: str) -> Tensor:
        """A condition in raw form, from a file, its bytes, or an image from the painter.

        Masks may be class ids, palette images or colours; inexact colours are mapped to the nearest class, see
        `snapped`. Sketches may be dark on light or light on dark; the painter's are dark on light. Depth may be a NumPy
        file, by its suffix. source: its name in errors. Raises ConditionError, ImageError, and TooLarge before
        decoding.
        """
        pipeline, raw = self.model(model).pipeline, None
        if isinstance(pipeline.condition, GeometryCondition) and not isinstance(image, Image.Image):
            raw = read_arrays(pipeline.condition, image, source, self.limits.pixels)
        if raw is None:
            read = read_painted if isinstance(image, Image.Image) else read_picture
            raw = read(pipeline.condition, opened(image, source, self.limits.pixels), source)
        if pipeline.condition.spatial:
            check_proportions(raw.shape[-2], raw.shape[-1], source)
        return raw

    def read_text(self, model: str, text: str) -> str:
        """A text for a prior, with collapsed white space. Raises ConditionError for another kind of model, or an empty
        text."""
        loaded = self.model(model)
        if not isinstance(loaded.condition, TextCondition):
            raise ConditionError(f"text: model '{model}' reads a {loaded.kind}; send an image as 'condition'")
        text = " ".join(text.split())
        loaded.condition.tokens(text, "text")
        return text

    @one_thread()
    def lines_of_photograph(self, image: Image.Image | bytes | Path, source: str = "the photograph") -> Image.Image:
        """Lines of a photograph, black on white. Raises ImageError."""
        picture = photograph(image, source, self.limits.pixels)
        picture.thumbnail((_LINES_SIDE, _LINES_SIDE))
        lines = draw_lines(np.asarray(picture)).numpy()
        return Image.fromarray(np.where(lines, 0, 255).astype(np.uint8)).convert("RGB")

    @one_thread()
    def read_photograph(
        self, model: str, data: bytes | Path, source: str = "the photograph"
    ) -> tuple[Image.Image, Tensor | None, Upload]:
        """A photograph to edit, RGB; its condition if the file contains one that the model reads; the file.

        Raises as `read_condition`.
        """
        condition, most = self.model(model).condition, self.limits.pixels
        upload = checked_upload(data, source, most)
        return photograph(upload, source, most), carried_condition(upload, condition), upload

    def read_region(self, data: bytes, source: str) -> Image.Image:
        """The region to repaint, in its own mode: white and not transparent. Raises ImageError."""
        return opened(data, source, self.limits.pixels)

    @one_thread()
    def drawn(self, model: str, raw: Tensor) -> Image.Image:
        """A condition as the painter shows it: RGB in class colours, or black on white."""
        return shown(self.model(model).condition, raw)

    @one_thread()
    def examples(self, model: str) -> dict[str, Image.Image]:
        """The model's example conditions, as the painter shows them, by name."""
        loaded = self.model(model)
        files = ModelFolder.open(loaded.folder).examples()
        return {file.stem: shown(loaded.condition, loaded.condition.load(file)) for file in files}

    # Jobs

    @one_thread()
    def translate(self, request: TranslateRequest, raw: Tensor | str, source: str = "drawing.png") -> Job[Result]:
        """Submit a translation, with the same images as `piti translate` for the same condition, settings and seed.

        raw: from `read_condition` or `read_text`. source: the condition's name in the metadata. Raises QueueFull,
        LimitError, and UserError for settings or a condition that the model cannot use.
        """
        loaded = self.model(request.model)
        self.limits.check(request)
        pipeline, options = loaded.pipeline, request.options()
        prepared = pipeline.prepare(raw, options.sampling)
        said, notes = raw if isinstance(raw, str) else source, _notes(loaded, raw, request)
        held = held_prepared(prepared)

        def made(on_step: OnStep) -> Drawn:
            prepared = held.out()
            images = make_images(pipeline, prepared, options, loaded.name, said, on_step)
            return [Picture.of(image, loaded.name, prepared.raw, request.seed) for image in images], notes

        return self._submitted(request, made, prepared.canvas, held.size)

    @one_thread()
    def edit(
        self,
        request: EditRequest,
        image: Image.Image,
        to: Tensor,
        from_: Tensor | None = None,
        region: Image.Image | None = None,
        upload: Upload | None = None,
        names: Names | None = None,
    ) -> Job[Result]:
        """Submit an edit of `image` from condition `from_` (None: unknown) to `to`; see `piti.editing.edit`.

        region: white is repainted, instead of where the conditions differ. upload: the photograph's file, which takes
        less memory while the job waits. names: of the inputs, for the metadata; by default those of the page. Raises as
        `translate`, and EditError if 8-bit RGB cannot keep the image exactly; other errors of editing are raised by the
        job.
        """
        loaded = self.model(request.model)
        self.limits.check(request)
        settings = request.settings()
        if settings.keep_exact and upload is not None:
            check_exact(upload, upload.name)
        given = EditInput(image, prepare_edit(loaded.pipeline, image, to, settings), from_, region)
        own = None if from_ is None else THE_IMAGES_OWN
        names = names or Names(loaded.name, "photograph.png", "the drawing", own)
        asked = Edit(loaded, request, settings, given, names)
        held = held_edit(asked, upload)
        return self._submitted(request, lambda on_step: held.out().made(on_step), given.to.canvas, held.size)

    @one_thread()
    def live(self, model: str, raw: Tensor | str, seed: int, guidance: float | None = None) -> Job[LivePreview]:
        """Submit a live preview of a raw condition from `read_condition` or `read_text`. guidance: w; None: the model's
        own.

        It is rough, with other noise than the images of `translate`, and is not stored. Raises QueueFull, and UserError
        for a condition that the model cannot use.
        """
        pipeline = self.model(model).pipeline
        held = held_prepared(pipeline.prepare(raw, live_sampling(pipeline, guidance)))

        def work(job: Job[LivePreview]) -> LivePreview:
            prepared = held.out()
            (image,) = pipeline.generate(live_batch(pipeline, prepared, seed), job.stepped)
            return LivePreview(_jpeg(image, LIVE_SIDE), prepared.sampling.steps, job.snapshot().seconds)

        return self.queue.submit(work, size=held.size)

    def _submitted(
        self,
        request: TranslateRequest | EditRequest,
        made: Callable[[OnStep], Drawn],
        canvas: Canvas,
        size: int,
    ) -> Job[Result]:
        """Submit a job that stores the images of `made`. size: bytes that it holds. Raises QueueFull."""

        def work(job: Job[Result]) -> Result:
            pictures, notes = made(job.stepped)
            self._store.add(pictures)
            return Result(request.model, request.seed, tuple(pictures), job.snapshot().seconds, tuple(notes))

        pipeline = self.model(request.model).pipeline
        return self.queue.submit(work, lambda x0: drawn_previews(canvas, pipeline.shown(x0)), size)

    def kept(self, picture_id: str) -> Picture:
        """A recent image. Raises NotKept."""
        return self._store.get(picture_id)


def _notes(loaded: Loaded, raw: Tensor | str, request: TranslateRequest) -> tuple[str, ...]:
    """Notes for the user."""
    notes = []
    if isinstance(raw, str) and isinstance(loaded.condition, TextCondition):
        notes.append(loaded.condition.cut(raw))
    if isinstance(raw, Tensor):
        notes += unlabelled_note(loaded.condition, raw)
    if request.num > 1 and not loaded.pipeline.draws_noise(request.base_only):
        notes.append("this model takes no noise: all images of one condition are the same")
    return tuple(note for note in notes if note)


SIDE = 256
"""The longest side of a preview, in pixels."""
LIVE_SIDE = 512
"""The longest side of a live preview, in pixels."""
_QUALITY = 80


def drawn_previews(canvas: Canvas, x0: Float[Tensor, "B 3 H W"]) -> tuple[bytes, ...]:
    """A JPEG of each image, cropped from the canvas of either network. x0: x̂₀ in [-1, 1].

    Non-finite values are drawn grey; the pipeline decides whether they are errors.
    """
    zoom = x0.shape[-1] / canvas.size[1]  # 1, or less for the base's canvas
    height, width = (max(1, round(side * zoom)) for side in (canvas.image_height, canvas.image_width))
    cut = torch.nan_to_num(x0[..., :height, :width].detach().float().cpu(), 0.0, 1.0, -1.0)
    return tuple(_jpeg(image) for image in to_pil(cut))


def _jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    image.thumbnail((side, side))
    file = BytesIO()
    image.save(file, format="JPEG", quality=_QUALITY)
    return file.getvalue()
