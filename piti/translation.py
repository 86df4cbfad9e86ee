"""Files in, files out: conditions on disk to images on disk, resumable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from piti.cascade import NetworkSampling, Sampling
from piti.conditions import ConditionError, TextCondition
from piti.errors import UserError
from piti.images import IMAGE_SUFFIXES, ImageError, grid, image_size, list_files, open_image, save_png
from piti.pipeline import PITIPipeline
from piti.seeding import derive_seed

SHEET = "sheet.png"
SHEET_ROWS = 64
SHEET_SIDE = 192


class TranslationError(UserError):
    """The inputs of a translation cannot be used. The message lists every one of them."""


@dataclass(frozen=True)
class Settings:
    """How to sample; None takes the model's default."""

    num: int = 1
    seed: int = 0
    guidance: float | None = None
    steps: int | None = None
    sampler: str | None = None
    batch: int = 8
    base_only: bool = False
    """Stop at the base's small images."""
    upsampler_steps: int | str | None = None
    upsampler_sampler: str | None = None

    def sampling(self, pipeline: PITIPipeline) -> Sampling:
        """Everything decided for this pipeline. Raises UserError for impossible settings."""
        return pipeline.sampling(
            self.guidance, self.steps, self.sampler, self.base_only, self.upsampler_steps, self.upsampler_sampler
        )


@dataclass(frozen=True)
class Job:
    """One image to make, of a file or of a text."""

    source: Path | str
    number: int
    seed: int
    target: Path


@dataclass(frozen=True)
class Report:
    """What a translation did."""

    made: list[Path]
    kept: list[Path]
    sheet: Path
    notes: list[str]
    """What else a person should know, such as which texts were too long."""
    left_out: str
    """What to say where the sheet does not show every condition; else nothing."""


def translate_files(
    pipeline: PITIPipeline,
    inputs: Sequence[Path],
    out: Path,
    settings: Settings,
    name: str,
    overwrite: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    texts: Sequence[str] = (),
) -> Report:
    """Translate condition files and folders of them into `out/STEM_0.png` … and `out/sheet.png`.

    texts: for a prior; their images are named after their words.

    The noise of an image follows from the seed, the condition's content and the image's number, so it
    does not depend on the file's name, the other files, or the batch. Existing images are kept unless
    `overwrite`; they must have the size that is asked for. name: of the model, for the PNG's
    metadata. on_step: (denoising steps done, in all).

    Raises TranslationError for unreadable inputs before anything is made or written.
    """
    sampling = settings.sampling(pipeline)
    if out.resolve() in {path.resolve() for path in inputs}:
        raise TranslationError(f"{out}: the results would lie among the inputs; give another --out")
    if texts and not isinstance(pipeline.condition, TextCondition):
        kind = pipeline.condition.kind
        raise TranslationError(f"--text: this model reads a {kind}; give a file, or name a prior with --model")
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    jobs = _jobs(pipeline, _sources(inputs, texts, pipeline.condition.suffixes), out, settings)
    todo = [job for job in jobs if overwrite or not job.target.exists()]
    if not overwrite:
        _check_sizes(jobs, pipeline.image_size(sampling))
    notes = [pipeline.condition.cut(text) for text in texts] if isinstance(pipeline.condition, TextCondition) else []
    out.mkdir(parents=True, exist_ok=True)
    _make(pipeline, todo, settings, sampling, name, on_step)
    sheet = out / SHEET
    save_png(contact_sheet(pipeline, jobs), sheet)
    made = {job.target for job in todo}
    kept = [job.target for job in jobs if job.target not in made]
    conditions = len({job.source for job in jobs})
    left_out = f" (the first {SHEET_ROWS} of {conditions} conditions)" if conditions > SHEET_ROWS else ""
    return Report([job.target for job in todo], kept, sheet, [f"--text: {note}" for note in notes if note], left_out)


def _check_sizes(jobs: list[Job], side: int) -> None:
    """Raises TranslationError if an image that would be kept has another size."""
    for job in jobs:
        width, height = image_size(job.target) if job.target.exists() else (side, side)
        if (width, height) != (side, side):
            raise TranslationError(
                f"{job.target}: is there already, {width} x {height}, where {side} x {side} are to be made; "
                "add --overwrite to make it anew, or give another --out"
            )


def _make(
    pipeline: PITIPipeline,
    jobs: list[Job],
    settings: Settings,
    sampling: Sampling,
    name: str,
    on_step: Callable[[int, int], None] | None,
) -> None:
    """Make the images of all jobs, a batch at a time, each written as soon as its batch is done."""
    batches = [jobs[k : k + settings.batch] for k in range(0, len(jobs), settings.batch)]
    for index, batch in enumerate(batches):

        def stepped(done: int, total: int, _: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total)

        raws = {source: pipeline.read(source) for source in {job.source for job in batch}}  # large ones, held briefly
        images = pipeline(
            [raws[job.source] for job in batch],
            guidance=sampling.base.guidance,
            steps=sampling.base.steps,
            sampler=sampling.base.sampler,
            base_only=settings.base_only,
            upsampler_steps=settings.upsampler_steps,
            upsampler_sampler=settings.upsampler_sampler,
            generator=[torch.Generator().manual_seed(job.seed) for job in batch],
            batch_size=len(batch),
            on_step=stepped,
        ).images
        for job, image in zip(batch, images, strict=True):
            save_png(image, job.target, _metadata(job, settings, sampling, name))


def contact_sheet(pipeline: PITIPipeline, jobs: Sequence[Job]) -> Image.Image:
    """Each condition beside its images, the first `SHEET_ROWS` conditions."""
    rows: dict[Path | str, list[Image.Image]] = {}
    for job in jobs:
        image = open_image(job.target)
        side = max(SHEET_SIDE, image.width)
        if job.source not in rows:
            if len(rows) == SHEET_ROWS:
                break
            preview = pipeline.condition.preview(pipeline.read(job.source))
            rows[job.source] = [preview.resize((side, side), Image.Resampling.NEAREST)]
        rows[job.source].append(image.resize((side, side), Image.Resampling.BICUBIC))
    return grid(list(rows.values()))


def _sources(inputs: Sequence[Path], texts: Sequence[str], suffixes: Set[str]) -> dict[str, Path | str]:
    """Files and texts by the stem of what they become."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = list_files(path, suffixes)
            if not inside:
                what = "images" if suffixes == IMAGE_SUFFIXES else f"{', '.join(sorted(suffixes))} files"
                raise TranslationError(f"{path}: the folder holds no {what}; give one that does, or files")
            found += inside
        else:
            found.append(path)
    by_stem: dict[str, Path | str] = {}
    for stem, source in [*((path.stem, path) for path in found), *((_stem(text), text) for text in texts)]:
        other = by_stem.setdefault(stem, source)
        if other != source:
            raise TranslationError(f"{other} and {source} would write the same files; use two --out")
    if not by_stem:
        raise TranslationError("nothing to translate; give files, folders, or --text")
    return by_stem


def _stem(text: str) -> str:
    """A file's name for a text: its words, as far as they are letters and digits."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:60] or "text"


def _jobs(pipeline: PITIPipeline, sources: dict[str, Path | str], out: Path, settings: Settings) -> list[Job]:
    """All images to make, every condition read. Raises TranslationError with all problems together."""
    if settings.num < 1 or settings.batch < 1:
        raise TranslationError(f"--num {settings.num} and --batch {settings.batch} must be at least 1")
    jobs: list[Job] = []
    problems: list[str] = []
    for stem, source in sources.items():
        try:
            raw = pipeline.read(source)
        except (ConditionError, ImageError) as error:
            problems.append(str(error))
            continue
        content = hashlib.sha256(pipeline.resized(raw).numpy().tobytes()).hexdigest()
        for number in range(settings.num):
            seed = derive_seed(settings.seed, content, number)
            jobs.append(Job(source, number, seed, out / f"{stem}_{number}.png"))
    if problems:
        raise TranslationError(f"{len(problems)} of {len(sources)} inputs cannot be used:\n" + "\n".join(problems))
    return jobs


def _metadata(job: Job, settings: Settings, sampling: Sampling, name: str) -> dict[str, str]:
    """What it takes to make the image again."""
    values: dict[str, object] = {
        "model": name,
        "condition": job.source.name if isinstance(job.source, Path) else job.source,
        "seed": settings.seed,
        "number": job.number,
        **_settings_of(sampling.base),
    }
    if sampling.upsampler is None:
        values["base_only"] = settings.base_only
    else:
        upsampler = _settings_of(sampling.upsampler) | {"noise": sampling.upsampler.noise}
        values |= {f"upsampler_{key}": value for key, value in upsampler.items()}
    return {f"piti:{key}": str(value) for key, value in values.items()}


def _settings_of(network: NetworkSampling) -> dict[str, object]:
    return {"sampler": network.sampler, "steps": network.steps, "guidance": network.guidance.model_dump_json()}
