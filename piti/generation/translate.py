"""Translation of condition files to image files, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from piti.core.distributed import Ranks, together
from piti.core.errors import Message, option
from piti.core.files import OutputError
from piti.core.images import PREFIX, open_image, save_png
from piti.core.sheets import grid
from piti.generation.generate import Wanted, make_batch, noise_device
from piti.generation.kept import RequestedImage, check_kept
from piti.generation.metadata import made_with, surroundings
from piti.generation.options import GenerationOptions
from piti.generation.plan import SHEET_SIDE, TranslationJob, TranslationPlan, planned
from piti.generation.sources import TranslationFiles, as_taken
from piti.pipelines.canvas import batches_alike, enlarged
from piti.pipelines.pipeline import PITIPipeline


@dataclass(frozen=True)
class Report:
    """Result of a translation."""

    made: list[Path]
    kept: list[Path]
    sheet: Path | None
    """None for a single image file."""
    notes: list[str]
    """Messages for the user, such as truncated texts."""
    left_out: str
    """A message if the sheet does not show all conditions or images; else empty."""


def translate_files(
    pipeline: PITIPipeline,
    files: TranslationFiles,
    options: GenerationOptions,
    name: str,
    on_step: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Translate condition files and folders to `files.out / STEM_0.png` … and `sheet.png`, or one condition to one
    image if `files.out` ends in .png and is not a folder.

    The noise of an image follows from the seed, the condition's content and the image's number, so it
    does not depend on the file's name, the other files, or the batch. Existing images are kept unless
    `files.overwrite`; their metadata must match the requested seed, settings, weights and condition. If `files.like` is
    an image to recreate, options and pipeline are those of `Record.applied`.

    name: of the model, for the PNG's metadata. on_step: called as (denoising steps done, total). ranks: the processes
    that share the work, see `joined`; each generates every world-th batch of the missing images, and then the first
    makes the sheet.

    Raises TranslationError for unreadable inputs, RemakeError for an image without a condition, and OutputError for an
    existing image that differs from the requested one, before anything is written.
    """
    ranks = ranks or Ranks()
    with together():
        plan = planned(pipeline, files, options)
        where = noise_device(pipeline, options.noise_on)
        common = made_with(plan.sampling, options.seed, name, where) | surroundings(pipeline)
        if not files.overwrite:
            _check_existing(plan, common)
        missing = [job.target for job in plan.jobs if files.overwrite or not job.target.exists()]
    made = ranks.told(missing)  # as seen by the first process, before any image was generated
    todo = set(made)
    with together():
        _make(pipeline, plan, todo, common, where, on_step, ranks)
    with together():
        if ranks.main and plan.sheet is not None:
            save_png(_contact_sheet(plan), plan.sheet)
    kept = [job.target for job in plan.jobs if job.target not in todo]
    return Report(made, kept, plan.sheet, [*map(Message, plan.notes)], plan.left_out)


def _check_existing(plan: TranslationPlan, common: Mapping[str, str]) -> None:
    """Raise OutputError if an existing image differs from the requested one, or is the image to recreate.

    common: metadata of all images, see `image_text`.
    """
    existing = [job for job in plan.jobs if job.target.exists()]
    like = plan.files.like
    if like is not None and Path(like.file).resolve() in {job.target.resolve() for job in existing}:
        raise OutputError(
            "the new image would replace this one",
            remedy=f"give another {option('out')}, or add {option('overwrite')}",
            source=like.file,
        )
    check_kept([_requested(job, common) for job in existing])


def _requested(job: TranslationJob, common: Mapping[str, str]) -> RequestedImage:
    canvas = job.prepared.canvas
    own = {f"{PREFIX}number": str(job.number), f"{PREFIX}condition_sha256": job.condition_sha256}
    return RequestedImage(job.target, (canvas.image_width, canvas.image_height), {**common, **own})


def _make(
    pipeline: PITIPipeline,
    plan: TranslationPlan,
    targets: Set[Path],
    common: Mapping[str, str],
    noise_on: torch.device,
    on_step: Callable[[int, int], None] | None,
    ranks: Ranks,
) -> None:
    """Generate this process's share of the targets in batches of one shape, and write each batch when done.

    Batches do not depend on the number of processes, so that images are bit-identical.
    """
    jobs, options = [job for job in plan.jobs if job.target in targets], plan.options
    batches = ranks.own(batches_alike([job.prepared.canvas for job in jobs], options.batch))
    place = options.place if len(jobs) == 1 else None
    for index, batch in enumerate([jobs[k] for k in rows] for rows in batches):

        def stepped(done: int, total: int, _: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total)

        prepared = {job.source: job.prepared for job in batch}
        order = {source: k for k, source in enumerate(prepared)}
        given = {source: as_taken(plan.readers, source) for source in prepared}
        conditions = [
            one.with_raw(pipeline.read(given[source], one.sampling.square)) for source, one in prepared.items()
        ]
        wanted = [Wanted(order[job.source], job.number, job.seed, job.condition, job.stem) for job in batch]
        images = make_batch(pipeline, conditions, wanted, common, stepped, place, noise_on)
        for job, made in zip(batch, images, strict=True):
            save_png(made.image, job.target, made.text)


def _contact_sheet(plan: TranslationPlan) -> Image.Image:
    """Each condition beside its images, the first `SHEET_ROWS` conditions and `SHEET_IMAGES` images."""
    rows = {source: list(previews) for source, previews in plan.previews.items()}
    for job in plan.jobs:
        if job.source in rows and job.number in plan.on_sheet:
            size = enlarged(job.prepared.canvas, SHEET_SIDE)
            rows[job.source].append(open_image(job.target).resize(size, Image.Resampling.BICUBIC))
    return grid(list(rows.values()))
