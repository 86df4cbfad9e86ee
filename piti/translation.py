"""Files in, files out: conditions on disk to images on disk, resumable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from piti.cascade import NetworkSampling, Sampling
from piti.conditions import Condition, ConditionError, SeveralCondition, TextCondition
from piti.data.addresses import MANIFEST
from piti.data.archives import Archived, list_archived, list_conditions
from piti.data.manifest import Manifest, read_manifest
from piti.diffusion.guidance import Guidance
from piti.errors import UserError
from piti.frames import Frame, batches_alike, enlarged
from piti.given import PartFiles, matched_parts
from piti.images import IMAGE_SUFFIXES, ImageError, grid, image_size, list_files, open_image, save_png
from piti.pipeline import PITIPipeline
from piti.ranks import Ranks, together
from piti.seeding import derive_seed

Item = Path | Archived | str | PartFiles
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
    guidance: float | Guidance | None = None
    """w of normalised guidance, or another rule."""
    steps: int | None = None
    sampler: str | None = None
    batch: int = 8
    base_only: bool = False
    """Stop at the base's small images."""
    upsampler_steps: int | str | None = None
    upsampler_sampler: str | None = None
    square: bool = False
    """Take the square at each condition's centre."""
    size: int | None = None
    """The short side of the images."""
    skip_bad: bool = False
    """Leave out conditions that cannot be used, instead of stopping."""

    def sampling(self, pipeline: PITIPipeline) -> Sampling:
        """Everything decided for this pipeline. Raises UserError for impossible settings."""
        return pipeline.sampling(
            self.guidance, self.steps, self.sampler, self.base_only, self.upsampler_steps, self.upsampler_sampler
        )


@dataclass(frozen=True)
class Job:
    """One image to make, of a file, of a text, or of the files of several parts."""

    source: Item
    number: int
    seed: int
    target: Path
    frame: Frame


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
    given: Mapping[str, Path] | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Translate condition files and folders of them into `out/STEM_0.png` … and `out/sheet.png`.

    texts: for a prior; their images are named after their words. given: for a condition of several parts, a file
    or a folder of each that is given, see `matched_parts`.

    The noise of an image follows from the seed, the condition's content and the image's number, so it
    does not depend on the file's name, the other files, or the batch. Existing images are kept unless
    `overwrite`; they must have the size that is asked for. name: of the model, for the PNG's
    metadata. on_step: (denoising steps done, in all). ranks: the processes that share the work, see `joined`;
    each makes every world-th batch of what is missing, and when all are done the first makes the sheet.

    Raises TranslationError for unreadable inputs before anything is made or written.
    """
    ranks = ranks or Ranks()
    with together():
        sampling, jobs, notes = _planned(pipeline, inputs, out, settings, overwrite, texts, given)
        missing = [job.target for job in jobs if overwrite or not job.target.exists()]
    made = ranks.told(missing)  # as the first process saw it, before any image was made
    todo = set(made)
    with together():
        out.mkdir(parents=True, exist_ok=True)
        _make(pipeline, [job for job in jobs if job.target in todo], settings, sampling, name, on_step, ranks)
    sheet = out / SHEET
    with together():
        if ranks.main:
            save_png(contact_sheet(pipeline, jobs, settings.square), sheet)
    kept = [job.target for job in jobs if job.target not in todo]
    conditions = len({job.source for job in jobs})
    left_out = f" (the first {SHEET_ROWS} of {conditions} conditions)" if conditions > SHEET_ROWS else ""
    return Report(made, kept, sheet, notes, left_out)


def _planned(
    pipeline: PITIPipeline,
    inputs: Sequence[Path],
    out: Path,
    settings: Settings,
    overwrite: bool,
    texts: Sequence[str],
    given: Mapping[str, Path] | None,
) -> tuple[Sampling, list[Job], list[str]]:
    """How to sample, every image that is to be there in the end, and notes for a person. Writes nothing."""
    sampling = settings.sampling(pipeline)
    parts = given or {}
    if out.resolve() in {path.resolve() for path in (*inputs, *parts.values())}:
        raise TranslationError(f"{out}: the results would lie among the inputs; give another --out")
    if texts and not isinstance(pipeline.condition, TextCondition):
        condition = pipeline.condition
        kind = " or a ".join(condition.parts) if isinstance(condition, SeveralCondition) else condition.kind
        raise TranslationError(f"--text: this model reads a {kind}; give a file, or name a prior with --model")
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    if parts or isinstance(pipeline.condition, SeveralCondition):
        sources, notes = matched_parts(pipeline.condition, parts, inputs)
    else:
        sources, notes = _sources(inputs, texts, pipeline.condition), _cut(pipeline, texts)
    jobs, left_out = _jobs(pipeline, sources, out, settings, sampling)
    if settings.num > 1 and not pipeline.draws_noise(settings.base_only):
        notes = [*notes, "this model takes no noise: all images of one condition are the same (--num 1 makes one)"]
    if not overwrite:
        _check_sizes(jobs)
    return sampling, jobs, [*notes, *left_out]


def _check_sizes(jobs: list[Job]) -> None:
    """Raises TranslationError if an image that would be kept has another size."""
    for job in jobs:
        wanted = (job.frame.width, job.frame.height)
        width, height = image_size(job.target) if job.target.exists() else wanted
        if (width, height) != wanted:
            raise TranslationError(
                f"{job.target}: is there already, {width} x {height}, where {wanted[0]} x {wanted[1]} are to be made; "
                "add --overwrite to make it anew, or give another --out"
            )


def _make(
    pipeline: PITIPipeline,
    jobs: list[Job],
    settings: Settings,
    sampling: Sampling,
    name: str,
    on_step: Callable[[int, int], None] | None,
    ranks: Ranks,
) -> None:
    """Make the images of this process's jobs, a batch of one shape at a time, written as soon as the batch is done.

    Batches are those of one process, dealt out whole, so that every image is the same to the bit.
    """
    batches = ranks.own(batches_alike([job.frame for job in jobs], settings.batch))
    for index, batch in enumerate([jobs[k] for k in rows] for rows in batches):

        def stepped(done: int, total: int, _: Tensor, index: int = index) -> None:
            if on_step is not None:
                on_step(index * total + done, len(batches) * total)

        sources = {job.source for job in batch}
        raws = {source: pipeline.read(source, settings.square) for source in sources}  # large ones, held briefly
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
            size=settings.size,
        ).images
        for job, image in zip(batch, images, strict=True):
            save_png(image, job.target, _metadata(job, settings, sampling, name))


def contact_sheet(pipeline: PITIPipeline, jobs: Sequence[Job], square: bool = False) -> Image.Image:
    """Each condition beside its images, the first `SHEET_ROWS` conditions; square: they were cropped to squares."""
    rows: dict[Item, list[Image.Image]] = {}
    for job in jobs:
        size = enlarged(job.frame, SHEET_SIDE)
        if job.source not in rows:
            if len(rows) == SHEET_ROWS:
                break
            previews = pipeline.condition.previews(pipeline.read(job.source, square))
            rows[job.source] = [preview.resize(size, Image.Resampling.NEAREST) for preview in previews]
        rows[job.source].append(open_image(job.target).resize(size, Image.Resampling.BICUBIC))
    return grid(list(rows.values()))


def _sources(inputs: Sequence[Path], texts: Sequence[str], condition: Condition) -> dict[str, Item]:
    """Files, files inside tar archives and packed shards, and texts by the stem of what they become."""
    found: list[Path] = []
    archived: list[Archived] = []
    suffixes = condition.suffixes
    for path in inputs:
        packed = _packed(path)
        if packed is not None:
            archived += _packed_conditions(*packed, path, condition)
        elif path.is_dir():
            inside = list_files(path, suffixes)
            if not inside:
                what = "images" if suffixes == IMAGE_SUFFIXES else f"{', '.join(sorted(suffixes))} files"
                raise TranslationError(f"{path}: the folder holds no {what}; give one that does, or files")
            found += inside
        elif path.suffix.lower() == ".tar":
            archived += _archived(path, suffixes)
        else:
            found.append(path)
    by_stem: dict[str, Item] = {}
    named: list[tuple[str, Item]] = [(path.stem, path) for path in found]
    named += [(file.key.replace("/", "-"), file) for file in archived]
    for stem, source in [*named, *((_stem(text), text) for text in texts)]:
        other = by_stem.setdefault(stem, source)
        if other != source:
            raise TranslationError(f"{other} and {source} would write the same files; use two --out")
    if not by_stem:
        raise TranslationError("nothing to translate; give files, folders, or --text")
    return by_stem


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
        raise TranslationError(str(error)) from None
    if not inside:
        named = [f"KEY.{extensions[0]}{suffix}" if extensions[0] else f"KEY{suffix}" for suffix in sorted(suffixes)]
        raise TranslationError(f"{given}: the shards hold no {condition.kind} ({', '.join(named)}); give others")
    return inside


def _archived(archive: Path, suffixes: Set[str]) -> list[Archived]:
    """The conditions of a tar archive. Raises TranslationError."""
    try:
        inside = list_conditions(archive, suffixes)
    except ImageError as error:
        raise TranslationError(str(error)) from None
    if not inside:
        raise TranslationError(f"{archive}: holds no {', '.join(sorted(suffixes))} files; give one that does")
    return inside


def _cut(pipeline: PITIPipeline, texts: Sequence[str]) -> list[str]:
    """What to say of texts that are longer than what is read."""
    condition = pipeline.condition
    found = [condition.cut(text) for text in texts] if isinstance(condition, TextCondition) else []
    return [f"--text: {note}" for note in found if note]


def _stem(text: str) -> str:
    """A file's name for a text: its words, as far as they are letters and digits."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:60] or "text"


def _jobs(
    pipeline: PITIPipeline,
    sources: Mapping[str, Item],
    out: Path,
    settings: Settings,
    sampling: Sampling,
) -> tuple[list[Job], list[str]]:
    """All images to make, every condition read, and a note on what was left out.

    Raises TranslationError with all problems together, unless `settings.skip_bad` and there is something left.
    """
    if settings.num < 1 or settings.batch < 1:
        raise TranslationError(f"--num {settings.num} and --batch {settings.batch} must be at least 1")
    jobs: list[Job] = []
    problems: list[str] = []
    for stem, source in sources.items():
        try:
            raw = pipeline.read(source, settings.square)
            frame = pipeline.frame(raw, sampling, settings.size, str(source))
        except (ConditionError, ImageError) as error:
            problems.append(str(error))
            continue
        content = hashlib.sha256(pipeline.fitted(raw, frame).numpy().tobytes()).hexdigest()
        for number in range(settings.num):
            seed = derive_seed(settings.seed, content, number)
            jobs.append(Job(source, number, seed, out / f"{stem}_{number}.png", frame))
    if not problems:
        return jobs, []
    listed = f"{len(problems)} of {len(sources)} inputs cannot be used:\n" + "\n".join(problems)
    if not settings.skip_bad or not jobs:
        remedy = "" if settings.skip_bad else "\nmend or remove them, or leave them out with --skip-bad"
        raise TranslationError(listed + remedy)
    return jobs, [f"left out (--skip-bad): {listed}"]


def _metadata(job: Job, settings: Settings, sampling: Sampling, name: str) -> dict[str, str]:
    """What it takes to make the image again."""
    values = {"condition": job.source if isinstance(job.source, str) else job.source.name, "number": job.number}
    return made_with(settings, sampling, name) | {f"piti:{key}": str(value) for key, value in values.items()}


def made_with(settings: Settings, sampling: Sampling, name: str) -> dict[str, str]:
    """The metadata that all images of a translation have: the model's name, and how it was sampled."""
    values: dict[str, object] = {
        "model": name,
        "seed": settings.seed,
        **_settings_of(sampling.base),
        **({"square": True} if settings.square else {}),
        **({} if settings.size is None else {"size": settings.size}),
    }
    if sampling.upsampler is None:
        values["base_only"] = settings.base_only
    else:
        upsampler = _settings_of(sampling.upsampler) | {"noise": sampling.upsampler.noise}
        values |= {f"upsampler_{key}": value for key, value in upsampler.items()}
    return {f"piti:{key}": str(value) for key, value in values.items()}


def _settings_of(network: NetworkSampling) -> dict[str, object]:
    return {"sampler": network.sampler, "steps": network.steps, "guidance": network.guidance.model_dump_json()}
