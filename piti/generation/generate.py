"""Images of conditions that are in memory, each with the metadata that makes it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from piti.conditions import TextCondition
from piti.diffusion.samplers import OnStep
from piti.generation.metadata import condition_text, image_text, made_with, surroundings
from piti.generation.options import GenerationOptions, Place, seed_of
from piti.pipelines.canvas import Frame
from piti.pipelines.pipeline import PITIPipeline


@dataclass(frozen=True)
class Wanted:
    """One image to make."""

    raw: Tensor
    """Its condition in raw form, [K, h, w]; the same tensor where it is the same condition."""
    frame: Frame
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
    raw: Shaped[Tensor, "K h w"],
    options: GenerationOptions,
    name: str,
    source: str,
    on_step: OnStep | None = None,
    stem: str | None = None,
) -> list[MadeImage]:
    """The images of one condition in raw form: `options.wanted()`, those that `translate_files` makes of its file.

    name: of the model, see `model_name`; source: what the condition is called, a file's name or the text itself; stem:
    what the images are named after, by default the source. At most `options.batch` are made at once. on_step: called
    with (steps done, steps in all, x̂₀ [B, 3, H, W] in [-1, 1], the whole canvas), counted over all batches; what it
    raises goes through.
    Raises ConditionError for a tensor that is none of the model's conditions, UserError for impossible options.
    """
    sampling = options.sampling.resolve(pipeline)
    raw = narrowed(pipeline, pipeline.read(raw, sampling.square))
    frame = pipeline.frame(raw, sampling)
    fitted, stem = pipeline.fitted(raw, frame), stem or _stem_of(pipeline, source)
    wanted = [
        Wanted(raw, frame, number, seed_of(options.seed, fitted, number), source, stem) for number in options.wanted()
    ]
    common = made_with(sampling, options.seed, name) | surroundings(pipeline)
    batches = [wanted[k : k + options.batch] for k in range(0, len(wanted), options.batch)]
    made: list[MadeImage] = []
    for index, batch in enumerate(batches):

        def stepped(done: int, total: int, x0: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total, x0)

        made += make_batch(pipeline, batch, options, common, stepped)
    return made


def make_batch(
    pipeline: PITIPipeline,
    wanted: Sequence[Wanted],
    options: GenerationOptions,
    common: Mapping[str, str],
    on_step: OnStep | None = None,
) -> list[MadeImage]:
    """Images of equal canvases, made at once. common: metadata of all images, see `image_text`.

    One alone is made in `options.place`, where there is one. Raises as `PITIPipeline.__call__`.
    """
    place = options.place if len(wanted) == 1 else None
    raws, places, seeds = [one.raw for one in wanted], _places(wanted), [one.seed for one in wanted]
    if place is not None:
        raws, places, seeds = place.filled(raws[0]), [place], seeds * place.rows
    images = pipeline(
        raws,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        batch_size=len(raws),
        on_step=on_step,
        **options.sampling.to_flat(),
    ).images
    of_condition = {
        id(one.raw): condition_text(pipeline, one.raw, one.frame, one.source)
        for one in {id(one.raw): one for one in wanted}.values()
    }
    return [
        MadeImage(
            images[at.row],
            image_text(common, of_condition[id(one.raw)], one.number, one.source, one.stem, at),
            one.number,
        )
        for one, at in zip(wanted, places, strict=True)
    ]


def narrowed(pipeline: PITIPipeline, raw: Shaped[Tensor, "K h w"]) -> Shaped[Tensor, "K h w"]:
    """A raw tensor in the type that files are read in, on the CPU: noise follows from the bytes of a condition."""
    condition = pipeline.condition
    return raw.cpu().to(torch.int32 if isinstance(condition, TextCondition) else condition.raw_dtype)


def stem_of_text(text: str) -> str:
    """A file's name for a text: its words, as far as they are letters and digits."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:60] or "text"


def _stem_of(pipeline: PITIPipeline, source: str) -> str:
    return stem_of_text(source) if isinstance(pipeline.condition, TextCondition) else PurePath(source).stem


def _places(wanted: Sequence[Wanted]) -> list[Place]:
    order: dict[int, int] = {}
    for one in wanted:
        order.setdefault(id(one.raw), len(order))
    return [Place(row, len(wanted), order[id(one.raw)], len(order)) for row, one in enumerate(wanted)]
