"""Files in, files out: conditions on disk to images on disk, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from piti.conditions import Condition, ConditionError, SeveralCondition, TextCondition
from piti.conditions.coverage import Coverage
from piti.core.distributed import Ranks, together
from piti.core.errors import Message, UserError, option, text_of
from piti.core.files import check_place
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import PREFIX, ImageError, grid, image_size, open_image, save_png
from piti.core.walk import composed, stem_of, walk
from piti.data.archives import Archived, list_archived, list_conditions
from piti.data.shards.index import Manifest, read_manifest
from piti.data.shards.sources import MANIFEST
from piti.generation.generate import Wanted, make_batch, stem_of_text
from piti.generation.inputs import PartFiles, matched_parts
from piti.generation.kept import difference
from piti.generation.metadata import made_with, raw_hash, surroundings
from piti.generation.options import SHEET, GenerationOptions, seed_of
from piti.generation.readers import readers_of
from piti.generation.recreate import Record
from piti.pipelines.canvas import batches_alike, enlarged
from piti.pipelines.cascade import Prepared, ResolvedSampling
from piti.pipelines.pipeline import PITIPipeline

SHEET_ROWS = 64
SHEET_SIDE = 192
_SAMPLED = ("sampler", "steps", "upsampler_sampler", "upsampler_steps", "upsampler_guidance")


class TranslationError(UserError):
    """The inputs of a translation cannot be used. The message lists every one of them."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """The condition that an image itself holds."""

    name: str
    raw: Tensor
    file: str

    def __str__(self) -> str:
        return f"the condition in {self.file}"


Item = Path | Archived | str | PartFiles | Recalled


@dataclass(frozen=True)
class Asked:
    """What is to be translated; see `translate_files`."""

    inputs: Sequence[Path]
    texts: Sequence[str]
    parts: Mapping[str, Path]
    like: Record | None
    out: Path
    """Where the images go; what lies there is no input."""

    @property
    def own(self) -> bool:
        """Whether it is the condition of the image that is made again, and no other."""
        return self.like is not None and not (self.inputs or self.texts or self.parts)


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

    @property
    def left_out(self) -> str:
        """What to say where the sheet does not show every condition; else nothing."""
        conditions = len({job.source for job in self.jobs})
        return f" (the first {SHEET_ROWS} of {conditions} conditions)" if conditions > SHEET_ROWS else ""


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
    options: GenerationOptions,
    name: str,
    overwrite: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    texts: Sequence[str] = (),
    given: Mapping[str, Path] | None = None,
    ranks: Ranks | None = None,
    like: Record | None = None,
) -> Report:
    """Translate condition files and folders of them into `out/STEM_0.png` … and `out/sheet.png`.

    texts: for a prior; their images are named after their words. given: for a condition of several parts, a file
    or a folder of each that is given, see `matched_parts`.

    The noise of an image follows from the seed, the condition's content and the image's number, so it
    does not depend on the file's name, the other files, or the batch. Existing images are kept unless
    `overwrite`; they must be those that are asked for, by what their PNGs say of seed, settings, weights and
    condition. name: of the model, for the PNG's
    metadata. on_step: (denoising steps done, in all). ranks: the processes that share the work, see `joined`;
    each makes every world-th batch of what is missing, and when all are done the first makes the sheet. like: the
    image whose options and pipeline (`Record.applied`) these are; without inputs, texts and `given` its own
    condition is translated.

    Raises TranslationError for unreadable inputs, RemakeError for an image that holds no condition, before anything is
    made or written.
    """
    ranks = ranks or Ranks()
    with together():
        plan = _planned(pipeline, Asked(inputs, texts, given or {}, like, out), options)
        common = made_with(plan.sampling, options.seed, name) | surroundings(pipeline)
        if not overwrite:
            _check_kept(plan.jobs, common, like)
        missing = [job.target for job in plan.jobs if overwrite or not job.target.exists()]
    made = ranks.told(missing)  # as the first process saw it, before any image was made
    todo = set(made)
    with together():
        jobs = [job for job in plan.jobs if job.target in todo]
        _make(pipeline, jobs, plan.readers, options, common, on_step, ranks)
    sheet = out / SHEET
    with together():
        if ranks.main:
            save_png(_contact_sheet(plan), sheet)
    kept = [job.target for job in plan.jobs if job.target not in todo]
    return Report(made, kept, sheet, [*map(Message, plan.notes)], plan.left_out)


# Planning


def resolved_sampling(
    pipeline: PITIPipeline, options: GenerationOptions, like: Record | None = None
) -> ResolvedSampling:
    """How images are to be sampled, from options and the pipeline alone. like: the image to make again, which is named
    where its own settings are at fault. Raises UserError."""
    with nullcontext() if like is None else like.blamed(options, *_SAMPLED):
        return options.sampling.resolve(pipeline)


def _planned(pipeline: PITIPipeline, asked: Asked, options: GenerationOptions) -> TranslationPlan:
    """How to sample, every image that is to be there in the end, and notes for a person. Writes nothing."""
    like, out = asked.like, asked.out
    plan = TranslationPlan(resolved_sampling(pipeline, options, like))
    check_place(out)
    if out.resolve() in {path.resolve() for path in (*asked.inputs, *asked.parts.values())}:
        raise TranslationError(
            "the results would lie among the inputs", remedy=f"give another {option('out')}", source=out
        )
    sources, plan.notes = _conditions(pipeline, asked)
    with nullcontext() if like is None else like.blamed(options, "size"):
        left_out = _prepare_all(pipeline, sources, out, options, like, plan)
    if options.num > 1 and not pipeline.draws_noise(plan.sampling.base_only):
        plan.notes.append(
            f"this model takes no noise: all images of one condition are the same ({option('num')} 1 makes one)"
        )
    plan.notes += left_out
    if like is not None:
        plan.notes += _differences(pipeline, plan, like)
    return plan


def _conditions(pipeline: PITIPipeline, asked: Asked) -> tuple[dict[str, Item], list[str]]:
    """What to translate by the stem of what it becomes, and what a person should know of it."""
    condition, like = pipeline.condition, asked.like
    if asked.texts and not isinstance(condition, TextCondition):
        kind = " or a ".join(condition.parts) if isinstance(condition, SeveralCondition) else condition.kind
        raise TranslationError(
            f"this model reads a {kind}", remedy=f"give a file, or name a prior with {option('model')}", option="text"
        )
    if like is not None and asked.own:
        return {like.stem: Recalled(like.said.condition, like.raw(pipeline), like.file)}, []
    if asked.parts or isinstance(condition, SeveralCondition):
        files, notes = matched_parts(condition, asked.parts, asked.inputs)
        return dict(files), notes
    texts = list(dict.fromkeys(" ".join(text.split()) for text in asked.texts))
    return _sources(asked, texts, condition), _cut(pipeline, texts)


def _check_kept(jobs: list[TranslationJob], common: Mapping[str, str], like: Record | None) -> None:
    """Raises TranslationError if an image that would be kept is another than the one that is asked for.

    common: what all images are to say, see `image_text`. Versions and the device change an image's last bits at most.
    """
    existing = [job for job in jobs if job.target.exists()]
    _check_sizes(existing)
    _check_not_itself(existing, like)
    common = {key: value for key, value in common.items() if key.removeprefix(PREFIX) not in ("version", "made_on")}
    if common.get(f"{PREFIX}weights"):
        common.pop(f"{PREFIX}model", None)  # weights say it, whatever the model is called
    for job in existing:
        own = {f"{PREFIX}number": str(job.number), f"{PREFIX}condition_sha256": job.condition_sha256}
        odd = difference(job.target, {**common, **own})
        if odd:
            raise TranslationError(
                f"is there already, {odd}",
                remedy=f"add {option('overwrite')} to make it anew, or give another {option('out')}",
                source=job.target,
            )


def _check_not_itself(jobs: list[TranslationJob], like: Record | None) -> None:
    """Raises TranslationError if an image would be kept as the result that `--like` was to be made of."""
    if like is not None and Path(like.file).resolve() in {job.target.resolve() for job in jobs}:
        raise TranslationError(
            "the image would be made in the place of this one",
            remedy=f"give another {option('out')}, or add {option('overwrite')}",
            source=like.file,
        )


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


def _check_sizes(jobs: list[TranslationJob]) -> None:
    """Raises TranslationError if one of these images, which are there, has another size."""
    for job in jobs:
        canvas = job.prepared.canvas
        wanted = (canvas.image_width, canvas.image_height)
        width, height = image_size(job.target)
        if (width, height) != wanted:
            raise TranslationError(
                f"is there already, {width} x {height}, where {wanted[0]} x {wanted[1]} are to be made",
                remedy=f"add {option('overwrite')} to make it anew, or give another {option('out')}",
                source=job.target,
            )


def _make(
    pipeline: PITIPipeline,
    jobs: list[TranslationJob],
    readers: Mapping[Item, Condition],
    options: GenerationOptions,
    common: Mapping[str, str],
    on_step: Callable[[int, int], None] | None,
    ranks: Ranks,
) -> None:
    """Make the images of this process's jobs, a batch of one shape at a time, written as soon as the batch is done.

    Batches are those of one process, dealt out whole, so that every image is the same to the bit.
    """
    batches = ranks.own(batches_alike([job.prepared.canvas for job in jobs], options.batch))
    place = options.place if len(jobs) == 1 else None
    for index, batch in enumerate([jobs[k] for k in rows] for rows in batches):

        def stepped(done: int, total: int, _: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total)

        prepared = {job.source: job.prepared for job in batch}
        order = {source: k for k, source in enumerate(prepared)}
        given = {source: _given(readers, source) for source in prepared}
        conditions = [
            one.with_raw(pipeline.read(given[source], one.sampling.square)) for source, one in prepared.items()
        ]
        wanted = [Wanted(order[job.source], job.number, job.seed, job.condition, job.stem) for job in batch]
        for job, made in zip(batch, make_batch(pipeline, conditions, wanted, common, stepped, place), strict=True):
            save_png(made.image, job.target, made.text)


def _given(readers: Mapping[Item, Condition], source: Item) -> Any:
    """A condition as a pipeline takes it. Raises ConditionError, ImageError."""
    if isinstance(source, Recalled):
        return source.raw
    return readers[source].take(source) if source in readers else source


def _contact_sheet(plan: TranslationPlan) -> Image.Image:
    """Each condition beside its images, the first `SHEET_ROWS` conditions."""
    rows = {source: list(previews) for source, previews in plan.previews.items()}
    for job in plan.jobs:
        if job.source in rows:
            size = enlarged(job.prepared.canvas, SHEET_SIDE)
            rows[job.source].append(open_image(job.target).resize(size, Image.Resampling.BICUBIC))
    return grid(list(rows.values()))


def _sources(asked: Asked, texts: Sequence[str], condition: Condition) -> dict[str, Item]:
    """Files, files inside tar archives and packed shards, and texts by the stem of what they become."""
    named: list[tuple[str, Item]] = []
    archived: list[Archived] = []
    suffixes = condition.suffixes
    for path in asked.inputs:
        packed = _packed(path)
        if packed is not None:
            archived += _packed_conditions(*packed, path, condition)
        elif path.is_dir():
            inside = _inside(path, suffixes, asked.out)
            if not inside:
                what = "images" if suffixes == IMAGE_SUFFIXES else f"{', '.join(sorted(suffixes))} files"
                raise TranslationError(f"{path}: the folder holds no {what}; give one that does, or files")
            named += [(stem_of(file, path), file) for file in inside]
        elif path.suffix.lower() == ".tar":
            archived += _archived(path, suffixes)
        else:
            named.append((composed(path.stem), path))
    by_stem: dict[str, Item] = {}
    named += [(file.key.replace("/", "-"), file) for file in archived]
    for stem, source in [*named, *((stem_of_text(text), text) for text in texts)]:
        other = by_stem.setdefault(stem, source)
        if other != source:
            raise TranslationError(
                f"{other} and {source} would write the same files", remedy=f"use two {option('out')}"
            )
    if not by_stem:
        raise TranslationError("nothing to translate", remedy=f"give files, folders, or {option('text')}")
    return by_stem


def _inside(folder: Path, suffixes: Set[str], out: Path) -> list[Path]:
    """The conditions of a folder, in any depth, but for what an earlier translation made in it. Raises ImageError."""
    inside, results = walk(folder, suffixes).check(), out.resolve()
    if folder.resolve() not in results.parents:
        return inside
    return [path for path in inside if results not in path.resolve().parents]


def _packed(path: Path) -> tuple[Manifest, list[Path]] | None:
    """The manifest and shards that a manifest, its folder or a shard beside it stands for. Raises DataError."""
    place = path / MANIFEST if path.is_dir() else path.with_name(MANIFEST)
    tar = path.suffix.lower() == ".tar" and not path.is_dir()
    if not (tar or path.is_dir() or path == place) or not place.is_file():
        return None
    manifest = read_manifest(str(place))
    names = [entry.name for entry in manifest.entries]
    if tar:
        return (manifest, [path]) if path.name in names else None
    return manifest, [place.with_name(name) for name in names]


def _packed_conditions(manifest: Manifest, shards: list[Path], given: Path, condition: Condition) -> list[Archived]:
    """The conditions of packed shards, by what their manifest says. given: what a person named.

    Of several kinds of conditions that of the folder that is named as the model's. Raises TranslationError.
    """
    suffixes, kinds = condition.suffixes, manifest.conditions
    if len(kinds) > 1:
        usual = (condition.kind, "labels") if condition.kind == "mask" else (condition.kind,)
        kinds = {folder: extension for folder, extension in kinds.items() if folder.startswith(usual)} or kinds
    extensions: list[str | None] = list(kinds.values())
    if not kinds and isinstance(condition, TextCondition):
        extensions = [None]  # captions, KEY.txt, which are no photographs
    if len(extensions) != 1:
        what = f"which of {', '.join(kinds)} is the model's {condition.kind} cannot be told from"
        what = what if kinds else "no conditions were packed, only photographs, says"
        raise TranslationError(f"{given}: {what} the shards' {MANIFEST}; unpack the conditions and give their folder")
    try:
        inside = [file for shard in shards for file in list_archived(shard, suffixes, extensions[0])]
    except ImageError as error:
        raise TranslationError.like(error) from None
    if not inside:
        named = [f"KEY.{extensions[0]}{suffix}" if extensions[0] else f"KEY{suffix}" for suffix in sorted(suffixes)]
        raise TranslationError(f"{given}: the shards hold no {condition.kind} ({', '.join(named)}); give others")
    return inside


def _archived(archive: Path, suffixes: Set[str]) -> list[Archived]:
    """The conditions of a tar archive. Raises TranslationError."""
    try:
        inside = list_conditions(archive, suffixes)
    except ImageError as error:
        raise TranslationError.like(error) from None
    if not inside:
        raise TranslationError(f"{archive}: holds no {', '.join(sorted(suffixes))} files; give one that does")
    return inside


def _cut(pipeline: PITIPipeline, texts: Sequence[str]) -> list[str]:
    """What to say of texts that are longer than what is read."""
    condition = pipeline.condition
    found = [condition.cut(text) for text in texts] if isinstance(condition, TextCondition) else []
    return [f"{option('text')}: {note}" for note in found if note]


_NAMED = 5  # how many inputs that cannot be used are named


def _prepare_all(
    pipeline: PITIPipeline,
    sources: Mapping[str, Item],
    out: Path,
    options: GenerationOptions,
    like: Record | None,
    plan: TranslationPlan,
) -> list[str]:
    """Read every condition, and plan its images; what a person should know of them, and of what was left out.

    Raises TranslationError with all problems together, unless `options.skip_bad` and there is something left.
    """
    problems: list[str] = []
    plan.readers, said = readers_of(pipeline.condition, list(sources.values()))
    coverage = Coverage(pipeline.condition)
    for stem, source in sources.items():
        try:
            prepared = pipeline.prepare(_given(plan.readers, source), plan.sampling, str(source))
        except (ConditionError, ImageError) as error:
            problems.append(text_of(error))
            continue
        if len(plan.previews) < SHEET_ROWS:
            size, previews = enlarged(prepared.canvas, SHEET_SIDE), pipeline.condition.previews(prepared.raw)
            plan.previews[source] = [preview.resize(size, Image.Resampling.NEAREST) for preview in previews]
            plan.all_differ &= like is not None and like.is_other(prepared.raw)
        if not isinstance(source, Recalled):
            coverage.add(coverage.counted(prepared.raw))
        bare, targets = prepared.bare(), {number: out / f"{stem}_{number}.png" for number in options.wanted()}
        sha = raw_hash(prepared.raw) if any(target.exists() for target in targets.values()) else ""
        for number, target in targets.items():
            seed = seed_of(options.seed, bare.content_hash, number)
            plan.jobs.append(TranslationJob(source, bare, number, seed, sha, target, stem))
    said += coverage.lacks()
    if not problems:
        return said
    more = [f"… and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    listed = f"{len(problems)} of {len(sources)} inputs cannot be used:\n" + "\n".join([*problems[:_NAMED], *more])
    if not options.skip_bad or not plan.jobs:
        remedy = "" if options.skip_bad else f"\nmend or remove them, or leave them out with {option('skip_bad')}"
        raise TranslationError(listed + remedy)
    return [*said, f"left out ({option('skip_bad')}): {listed}"]
