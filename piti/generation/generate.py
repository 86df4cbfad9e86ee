"""Generation of images from conditions in memory, each with metadata for recreating it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch import Tensor

from piti.conditions import TextCondition
from piti.core.errors import UserError, option
from piti.core.seeding import draws_on
from piti.diffusion.samplers import OnStep
from piti.generation.metadata import condition_text, image_text, made_with, surroundings
from piti.generation.options import GenerationOptions, NoiseOn, Place, seed_of
from piti.pipelines.cascade import Batch, Prepared
from piti.pipelines.pipeline import PITIPipeline


@dataclass(frozen=True)
class Wanted:
    """One image to generate."""

    condition: int
    """An index into the conditions of its batch."""
    number: int
    seed: int
    source: str
    """Name of the condition: a file name, or the text itself."""
    stem: str
    """Stem of the image's file name."""


@dataclass(frozen=True)
class MadeImage:
    """An image, and the metadata of its PNG."""

    image: Image.Image
    text: dict[str, str]
    number: int


def make_images(
    pipeline: PITIPipeline,
    prepared: Prepared,
    options: GenerationOptions,
    name: str,
    source: str,
    on_step: OnStep | None = None,
) -> list[MadeImage]:
    """The images of one condition, numbers `options.wanted()`, as from `translate_files`.

    prepared: from `pipeline.prepare` with `options.sampling`. name: of the model, see `model_name`; source: name of the
    condition, a file name or the text itself, after which images are named. At most `options.batch` images are
    generated at once. on_step: called as (steps done, total, x̂₀ [B, 3, H, W] in [-1, 1], the whole canvas), counted
    over all batches; its exceptions propagate.
    """
    stem, numbers = _stem_of(pipeline, source), options.wanted()
    seeds = {number: seed_of(options.seed, prepared.content_hash, number) for number in numbers}
    wanted = [Wanted(0, number, seeds[number], source, stem) for number in numbers]
    where = noise_device(pipeline, options.noise_on)
    common = made_with(prepared.sampling, options.seed, name, where) | surroundings(pipeline)
    batches = [wanted[k : k + options.batch] for k in range(0, len(wanted), options.batch)]
    made: list[MadeImage] = []
    for index, batch in enumerate(batches):

        def stepped(done: int, total: int, x0: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total, x0)

        made += make_batch(pipeline, [prepared], batch, common, stepped, options.place, where)
    return made


def make_batch(
    pipeline: PITIPipeline,
    conditions: Sequence[Prepared],
    wanted: Sequence[Wanted],
    common: Mapping[str, str],
    on_step: OnStep | None = None,
    place: Place | None = None,
    noise_on: torch.device | str = "cpu",
) -> list[MadeImage]:
    """Generate images with canvases of one size, in one batch.

    common: metadata of all images, see `image_text`. place: position in a batch, for a single image. noise_on: device
    of the noise, see `noise_device`. Exceptions of `on_step` propagate.
    """
    batch, places = _batch(conditions, wanted, place, noise_on)
    images = pipeline.generate(batch, on_step)
    sources = {one.condition: one.source for one in wanted}
    texts = {k: condition_text(pipeline, conditions[k], source) for k, source in sources.items()}
    return [
        MadeImage(
            images[at.row], image_text(common, texts[one.condition], one.number, one.source, one.stem, at), one.number
        )
        for one, at in zip(wanted, places, strict=True)
    ]


def noise_device(pipeline: PITIPipeline, wanted: NoiseOn | None) -> torch.device:
    """The device of a pipeline's noise. wanted: its kind, such as that of an image to recreate. Raises UserError if it
    is not available.
    """
    own = draws_on(pipeline.device)
    if wanted in (None, own.type):
        return own
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "the noise of the image was drawn on a CUDA device, and none is available here",
            remedy=f"give {option('seed')} for another image of its condition",
        )
    return torch.device(wanted or own)


def _batch(
    conditions: Sequence[Prepared], wanted: Sequence[Wanted], place: Place | None, noise_on: torch.device | str
) -> tuple[Batch, list[Place]]:
    """The batch for the images, and the place of each."""
    seeds = [one.seed for one in wanted]
    if place is not None and len(wanted) == 1:
        same = [conditions[wanted[0].condition]] * place.distinct
        return Batch(same, place.conditions(), _generators(seeds * place.rows, noise_on)), [place]
    batch = Batch.of(conditions, [one.condition for one in wanted], _generators(seeds, noise_on))
    rows, distinct = len(batch.rows), len(batch.conditions)
    return batch, [Place(row, rows, order, distinct) for row, order in enumerate(batch.rows)]


def _generators(seeds: Sequence[int], device: torch.device | str) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def stem_of_text(text: str) -> str:
    """A file stem for a text: the letters and digits of its words."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:60] or "text"


def _stem_of(pipeline: PITIPipeline, source: str) -> str:
    return stem_of_text(source) if isinstance(pipeline.condition, TextCondition) else PurePath(source).stem
