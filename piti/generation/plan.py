"""The plan of a translation: all its images, determined before generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from piti.conditions import Condition, ConditionError, TextCondition
from piti.conditions.coverage import Coverage
from piti.core.errors import option, text_of
from piti.core.images import ImageError
from piti.generation.metadata import raw_hash
from piti.generation.options import SHEET, GenerationOptions, check_one, is_one_file, seed_of
from piti.generation.readers import readers_of
from piti.generation.recreate import Record
from piti.generation.sources import Item, Recalled, TranslationError, TranslationFiles, as_taken, sources_of
from piti.pipelines.canvas import enlarged
from piti.pipelines.cascade import Prepared, ResolvedSampling
from piti.pipelines.pipeline import PITIPipeline

SHEET_ROWS = 64
SHEET_SIDE = 192
SHEET_IMAGES = 1024
"""Largest number of images on a sheet, which would otherwise take gigabytes."""
_SAMPLED = ("sampler", "steps", "upsampler_sampler", "upsampler_steps", "upsampler_guidance")
_NAMED = 5  # number of unusable inputs that are named


@dataclass(frozen=True)
class TranslationJob:
    """One image to generate, from a file, a text, or the files of several parts."""

    source: Item
    prepared: Prepared
    """The condition without its raw tensor."""
    number: int
    seed: int
    condition_sha256: str
    """Hash of the condition as read; empty if none of its images exists."""
    target: Path
    stem: str
    """Stem of the target's file name."""

    @property
    def condition(self) -> str:
        """Name of the condition."""
        return self.source if isinstance(self.source, str) else self.source.name


@dataclass
class TranslationPlan:
    """All requested images; conditions only without their raw tensors."""

    files: TranslationFiles
    options: GenerationOptions
    sampling: ResolvedSampling
    jobs: list[TranslationJob] = field(default_factory=list)
    previews: dict[Item, list[Image.Image]] = field(default_factory=dict)
    """Previews of the first `SHEET_ROWS` conditions for the sheet."""
    readers: dict[Item, Condition] = field(default_factory=dict)
    """Readers of conditions that differ from the model's own, see `readers_of`."""
    all_differ: bool = True
    """Whether all conditions differ from that of the image to recreate."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user."""

    def add(self, pipeline: PITIPipeline, stem: str, source: Item, prepared: Prepared) -> None:
        """Plan the images of one condition, and its preview on the sheet."""
        like, options = self.files.like, self.options
        if len(self.previews) < SHEET_ROWS:
            size, previews = enlarged(prepared.canvas, SHEET_SIDE), pipeline.condition.previews(prepared.raw)
            self.previews[source] = [preview.resize(size, Image.Resampling.NEAREST) for preview in previews]
        self.all_differ = self.all_differ and like is not None and like.is_other(prepared.raw)
        bare = prepared.bare()
        targets = {number: self._target(stem, number) for number in options.wanted()}
        sha = raw_hash(prepared.raw) if any(target.exists() for target in targets.values()) else ""
        for number, target in targets.items():
            seed = seed_of(options.seed, bare.content_hash, number)
            self.jobs.append(TranslationJob(source, bare, number, seed, sha, target, stem))

    def _target(self, stem: str, number: int) -> Path:
        out = self.files.out
        return out if self.sheet is None else out / f"{stem}_{number}.png"

    @property
    def sheet(self) -> Path | None:
        """Path of the contact sheet; None for a single image file."""
        return None if is_one_file(self.files.out) else self.files.out / SHEET

    @property
    def on_sheet(self) -> Sequence[int]:
        """Numbers of the images per condition on the sheet."""
        return self.options.wanted()[: max(1, SHEET_IMAGES // max(1, len(self.previews)))]

    @property
    def left_out(self) -> str:
        """A message if the sheet does not show all conditions or images; else empty."""
        conditions, images = len({job.source for job in self.jobs}), len(self.options.wanted())
        rows = [f"the first {SHEET_ROWS} of {conditions} conditions"] if conditions > SHEET_ROWS else []
        columns = [f"the first {len(self.on_sheet)} of {images} images of each"] if images > len(self.on_sheet) else []
        return f" ({', '.join(rows + columns)})" if rows + columns else ""


def resolved_sampling(
    pipeline: PITIPipeline, options: GenerationOptions, like: Record | None = None
) -> ResolvedSampling:
    """Resolve the sampling options with the pipeline. like: the image to recreate, which errors in its settings name.
    Raises UserError."""
    with nullcontext() if like is None else like.blamed(options, *_SAMPLED):
        return options.sampling.resolve(pipeline)


def planned(pipeline: PITIPipeline, files: TranslationFiles, options: GenerationOptions) -> TranslationPlan:
    """Plan a translation, without writing anything. Raises TranslationError for unusable inputs, RemakeError for an
    image without a condition.
    """
    like = files.like
    plan = TranslationPlan(files, options, resolved_sampling(pipeline, options, like))
    files.check_out()
    sources, plan.notes = sources_of(pipeline, files)
    if plan.sheet is None:
        check_one(files.out, len(sources) * len(options.wanted()))
    with nullcontext() if like is None else like.blamed(options, "size"):
        left_out = _prepare_all(pipeline, sources, plan)
    if options.num > 1 and not pipeline.draws_noise(plan.sampling.base_only):
        plan.notes.append(
            f"this model takes no noise, so all images of a condition are the same ({option('num')} 1 generates one)"
        )
    plan.notes += left_out
    if like is not None:
        plan.notes += _differences(pipeline, plan, like)
    return plan


def _differences(pipeline: PITIPipeline, plan: TranslationPlan, like: Record) -> list[str]:
    """Notes on images generated like another one."""
    notes, sources = like.differences(pipeline), list(dict.fromkeys(job.source for job in plan.jobs))
    if any(isinstance(source, Recalled) for source in sources):
        changed = (plan.sampling.size, plan.sampling.base_only) != (like.said.size, like.said.base_only)
        if like.reduced and changed:
            notes.append(
                f"{like.file} contains its condition only at the size that was read; give the file for full size"
            )
    elif plan.all_differ:
        what = sources[0] if len(sources) == 1 else "the input"
        notes.append(f"{what} differs from the condition of {like.file}, so the images will differ")
    return notes


def _prepare_all(pipeline: PITIPipeline, sources: Mapping[str, Item], plan: TranslationPlan) -> list[str]:
    """Read all conditions and plan their images; returns notes, also on skipped inputs.

    Raises TranslationError with all problems, unless `options.skip_bad` and any input is usable.
    """
    problems: list[str] = []
    plan.readers, said = readers_of(pipeline.condition, list(sources.values()))
    coverage, full = Coverage(pipeline.condition), list[str]()
    for stem, source in sources.items():
        try:
            prepared = pipeline.prepare(as_taken(plan.readers, source), plan.sampling, str(source))
        except (ConditionError, ImageError) as error:
            problems.append(text_of(error))
            continue
        plan.add(pipeline, stem, source, prepared)
        if not isinstance(source, Recalled):
            coverage.add(coverage.counted(prepared.raw))
            full += _full(pipeline.condition, prepared, source)
    said += coverage.lacks()
    if full:
        more = ", …" if len(full) > _NAMED else ""
        what = f"{len(full)} of {len(sources)} texts fill the whole context length and may be truncated"
        said.append(f"{what}: {', '.join(full[:_NAMED])}{more}")
    if not problems:
        return said
    skip = plan.options.skip_bad
    listed = f"{len(problems)} of {len(sources)} inputs cannot be used:\n{_listed(problems)}"
    if not skip or not plan.jobs:
        remedy = "" if skip else f"\nfix or remove them, or skip them with {option('skip_bad')}"
        raise TranslationError(listed + remedy)
    return [*said, f"skipped ({option('skip_bad')}): {listed}"]


def _full(condition: Condition, prepared: Prepared, source: Item) -> list[str]:
    """The name of a text file that is probably truncated; for texts themselves, `sources_of` has a note."""
    full = isinstance(condition, TextCondition) and not isinstance(source, str) and condition.full(prepared.raw)
    return [str(source)] if full else []


def _listed(problems: list[str]) -> str:
    """The first problems, one per line, and the number of others."""
    more = [f"… and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return "\n".join([*problems[:_NAMED], *more])
