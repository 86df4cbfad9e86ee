"""Images of conditions that are in memory, each with the metadata that makes it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch import Tensor

from piti.conditions import TextCondition
from piti.diffusion.samplers import OnStep
from piti.generation.metadata import condition_text, image_text, made_with, surroundings
from piti.generation.options import GenerationOptions, Place, seed_of
from piti.pipelines.cascade import Batch, Prepared
from piti.pipelines.pipeline import PITIPipeline


@dataclass(frozen=True)
class Wanted:
    """One image to make."""

    condition: int
    """An index into the conditions of its batch."""
    number: int
    seed: int
    source: str
    """What a person calls the condition: a file's name, or the text itself."""
    stem: str
    """What the image is named after."""


@dataclass(frozen=True)
class MadeImage:
    """An image, and the text that its PNG holds."""

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
    stem: str | None = None,
) -> list[MadeImage]:
    """The images of one condition: `options.wanted()`, those that `translate_files` makes of its file.

    prepared: by `pipeline.prepare` with `options.sampling`. name: of the model, see `model_name`; source: what the
    condition is called, a file's name or the text itself; stem: what the images are named after, by default the
    source. At most `options.batch` are made at once. on_step: called with (steps done, steps in all,
    x̂₀ [B, 3, H, W] in [-1, 1], the whole canvas), counted over all batches; what it raises goes through.
    """
    stem, numbers = stem or _stem_of(pipeline, source), options.wanted()
    seeds = {number: seed_of(options.seed, prepared.content_hash, number) for number in numbers}
    wanted = [Wanted(0, number, seeds[number], source, stem) for number in numbers]
    common = made_with(prepared.sampling, options.seed, name) | surroundings(pipeline)
    batches = [wanted[k : k + options.batch] for k in range(0, len(wanted), options.batch)]
    made: list[MadeImage] = []
    for index, batch in enumerate(batches):

        def stepped(done: int, total: int, x0: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total, x0)

        made += make_batch(pipeline, [prepared], batch, common, stepped, options.place)
    return made


def make_batch(
    pipeline: PITIPipeline,
    conditions: Sequence[Prepared],
    wanted: Sequence[Wanted],
    common: Mapping[str, str],
    on_step: OnStep | None = None,
    place: Place | None = None,
) -> list[MadeImage]:
    """Images of canvases of one size, made at once.

    common: metadata of all images, see `image_text`. place: where in a batch one image alone is made. Raises what
    `on_step` raises.
    """
    batch, places = _batch(conditions, wanted, place)
    images = pipeline.generate(batch, on_step)
    sources = {one.condition: one.source for one in wanted}
    texts = {k: condition_text(pipeline, conditions[k], source) for k, source in sources.items()}
    return [
        MadeImage(
            images[at.row], image_text(common, texts[one.condition], one.number, one.source, one.stem, at), one.number
        )
        for one, at in zip(wanted, places, strict=True)
    ]


def _batch(conditions: Sequence[Prepared], wanted: Sequence[Wanted], place: Place | None) -> tuple[Batch, list[Place]]:
    """The batch in which images are made, and the place of each."""
    seeds = [one.seed for one in wanted]
    if place is not None and len(wanted) == 1:
        same = [conditions[wanted[0].condition]] * place.distinct
        return Batch(same, place.conditions(), _generators(seeds * place.rows)), [place]
    batch = Batch.of(conditions, [one.condition for one in wanted], _generators(seeds))
    rows, distinct = len(batch.rows), len(batch.conditions)
    return batch, [Place(row, rows, order, distinct) for row, order in enumerate(batch.rows)]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stem_of_text(text: str) -> str:
    """A file's name for a text: its words, as far as they are letters and digits."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:60] or "text"


def _stem_of(pipeline: PITIPipeline, source: str) -> str:
    return stem_of_text(source) if isinstance(pipeline.condition, TextCondition) else PurePath(source).stem
