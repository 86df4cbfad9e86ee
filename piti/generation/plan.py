"""Every image that a translation is to make, decided before any is made."""

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
"""Images on a sheet at most: with more of them it takes gigabytes, and nothing opens it."""
_SAMPLED = ("sampler", "steps", "upsampler_sampler", "upsampler_steps", "upsampler_guidance")
_NAMED = 5  # how many inputs that cannot be used are named


@dataclass(frozen=True)
class TranslationJob:
    """One image to make, of a file, of a text, or of the files of several parts."""

    source: Item
    prepared: Prepared
    """The condition without its raw tensor."""
    number: int
    seed: int
    condition_sha256: str
    """Of the condition as it was read; empty where no image of it is there already."""
    target: Path
    stem: str
    """What the target is named after."""

    @property
    def condition(self) -> str:
        """What a person calls the condition."""
        return self.source if isinstance(self.source, str) else self.source.name


@dataclass
class TranslationPlan:
    """Every image that is to be there in the end; of conditions what is small."""

    files: TranslationFiles
    options: GenerationOptions
    sampling: ResolvedSampling
    jobs: list[TranslationJob] = field(default_factory=list)
    previews: dict[Item, list[Image.Image]] = field(default_factory=dict)
    """How the sheet shows the first `SHEET_ROWS` conditions."""
    readers: dict[Item, Condition] = field(default_factory=dict)
    """What reads a condition where that is not the model's own, see `readers_of`."""
    all_differ: bool = True
    """Whether all of these are other conditions than that of the image that is made again."""
    notes: list[str] = field(default_factory=list)
    """For a person."""

    def add(self, pipeline: PITIPipeline, stem: str, source: Item, prepared: Prepared) -> None:
        """Plan the images of one condition, and how the sheet shows it."""
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
        """Where the contact sheet goes; none beside an image that is one file of its own name."""
        return None if is_one_file(self.files.out) else self.files.out / SHEET

    @property
    def on_sheet(self) -> Sequence[int]:
        """The numbers of the images that the sheet shows of each of its conditions."""
        return self.options.wanted()[: max(1, SHEET_IMAGES // max(1, len(self.previews)))]

    @property
    def left_out(self) -> str:
        """What to say where the sheet does not show every condition, or every image of one; else nothing."""
        conditions, images = len({job.source for job in self.jobs}), len(self.options.wanted())
        rows = [f"the first {SHEET_ROWS} of {conditions} conditions"] if conditions > SHEET_ROWS else []
        columns = [f"the first {len(self.on_sheet)} of {images} images of each"] if images > len(self.on_sheet) else []
        return f" ({', '.join(rows + columns)})" if rows + columns else ""


def resolved_sampling(
    pipeline: PITIPipeline, options: GenerationOptions, like: Record | None = None
) -> ResolvedSampling:
    """How images are to be sampled, from options and the pipeline alone. like: the image to make again, which is named
    where its own settings are at fault. Raises UserError."""
    with nullcontext() if like is None else like.blamed(options, *_SAMPLED):
        return options.sampling.resolve(pipeline)


def planned(pipeline: PITIPipeline, files: TranslationFiles, options: GenerationOptions) -> TranslationPlan:
    """How to sample, every image that is to be there in the end, and notes for a person. Writes nothing.

    Raises TranslationError for inputs that cannot be used, RemakeError for an image that holds no condition.
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
            f"this model takes no noise: all images of one condition are the same ({option('num')} 1 makes one)"
        )
    plan.notes += left_out
    if like is not None:
        plan.notes += _differences(pipeline, plan, like)
    return plan


def _differences(pipeline: PITIPipeline, plan: TranslationPlan, like: Record) -> list[str]:
    """What a person should know of images that are made like another."""
    notes, sources = like.differences(pipeline), list(dict.fromkeys(job.source for job in plan.jobs))
    if any(isinstance(source, Recalled) for source in sources):
        changed = (plan.sampling.size, plan.sampling.base_only) != (like.said.size, like.said.base_only)
        if like.reduced and changed:
            notes.append(
                f"{like.file} holds its condition only as small as it was read then; give the file for all of it"
            )
    elif plan.all_differ:
        what = sources[0] if len(sources) == 1 else "what is translated"
        notes.append(f"{what} is another condition than that of {like.file}: other images come of it")
    return notes


def _prepare_all(pipeline: PITIPipeline, sources: Mapping[str, Item], plan: TranslationPlan) -> list[str]:
    """Read every condition, and plan its images; what a person should know of them, and of what was left out.

    Raises TranslationError with all problems together, unless `options.skip_bad` and there is something left.
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
        what = f"{len(full)} of {len(sources)} texts fill all the tokens that are read, and what is beyond is cut off"
        said.append(f"{what}: {', '.join(full[:_NAMED])}{more}")
    if not problems:
        return said
    skip = plan.options.skip_bad
    listed = f"{len(problems)} of {len(sources)} inputs cannot be used:\n{_listed(problems)}"
    if not skip or not plan.jobs:
        remedy = "" if skip else f"\nmend or remove them, or leave them out with {option('skip_bad')}"
        raise TranslationError(listed + remedy)
    return [*said, f"left out ({option('skip_bad')}): {listed}"]


def _full(condition: Condition, prepared: Prepared, source: Item) -> list[str]:
    """The name of a text's file that is probably longer than what is read; of texts themselves `sources_of` says so."""
    full = isinstance(condition, TextCondition) and not isinstance(source, str) and condition.full(prepared.raw)
    return [str(source)] if full else []


def _listed(problems: list[str]) -> str:
    """The first problems, a line each, and how many more there are."""
    more = [f"… and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return "\n".join([*problems[:_NAMED], *more])
