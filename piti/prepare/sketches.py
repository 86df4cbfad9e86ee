"""Creating pairs of sketch and photograph from photographs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from piti.conditions.sketch import INK
from piti.core.errors import count_of, option
from piti.core.files import file_hash
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError, open_image, read_rgb, save_png
from piti.core.spec import Spec
from piti.core.system import WINDOWS, cores
from piti.core.walk import composed, is_unread, key_of, list_images, walk
from piti.data.archives import DOTTED, Archived, dotted, list_archived
from piti.data.edges import LineSource, detector_spec
from piti.data.problems import Problems
from piti.prepare.writer import PrepareError, claim, in_order, mark_of, place, write_skipped

IMAGES, SKETCHES = "images", "sketches"
_MARK = "piti-sketch"  # PNG text with the settings of a sketch
_SMALL = 64  # smallest short side in pixels for the size of the bundled recipes
_ENOUGH = 8  # photographs for which another process is worth starting
_MOST_ON_WINDOWS = 61  # largest number of processes that one can wait for there


@dataclass(frozen=True)
class Photograph:
    """A photograph and the key of its pair."""

    key: str
    source: Path | Archived

    @property
    def suffix(self) -> str:
        """The file's suffix, with the dot."""
        return PurePosixPath(self.source.name).suffix


@dataclass(frozen=True)
class SketchJob:
    """Settings of extracting sketches, and the output folder.

    detector: a name of `DETECTORS`; spec: its settings. link: hard links to the photographs where possible.
    """

    out: Path
    detector: str = "lines"
    spec: Spec | None = None
    link: bool = True
    overwrite: bool = False

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that sketches depend on, as plain data; a file of weights by its contents."""
        spec = self.spec or detector_spec(self.detector)[1]
        weights = Path(getattr(spec, "weights", None) or "").expanduser()
        own = {"weights_sha256": file_hash(weights)} if weights.is_file() else {}
        return {"detector": self.detector, **spec.to_dict(), **own}

    def source(self) -> LineSource:
        """The line detector. Raises DetectorError if it cannot be loaded."""
        spec: Any = self.spec
        return _source(self.detector, spec)


@dataclass
class SketchReport:
    """Pairs made, kept, and skipped, the latter as (key or file, reason).

    small: pairs with a side below 64 px. others: files that are not images. left: keys of pairs of an earlier run whose
    photographs were not given this time.
    """

    made: int = 0
    kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    small: int = 0
    others: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Notes for the user."""
        notes = []
        if self.others:
            notes.append(f"skipped, not images: {count_of(len(self.others), 'file')}, such as {self.others[0]}")
        if self.left:
            notes.append(
                f"{count_of(len(self.left), 'pair')} of an earlier run whose photographs were not given this time, "
                f"such as {self.left[0]}: training uses them too, unless they are removed"
            )
        if self.small:
            notes.append(
                f"smaller than {_SMALL} px, which training at that size refuses: {count_of(self.small, 'photograph')}"
            )
        return notes

    def __str__(self) -> str:
        kept = f", {self.kept} kept" if self.kept else ""
        skipped = (
            f", {count_of(len(self.skipped), 'photograph')} skipped (listed in skipped.txt)" if self.skipped else ""
        )
        return f"{count_of(self.made, 'pair')} made{kept}{skipped}"


@dataclass(frozen=True)
class _Done:
    key: str
    made: bool
    fault: str | None = None
    small: bool = False


def prepare_sketches(
    places: Sequence[Path],
    job: SketchJob,
    processes: int | None = None,
    max_bad: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> SketchReport:
    """Extract sketches: `OUT/images/KEY.jpg` is the photograph, `OUT/sketches/KEY.png` its lines.

    places: folders (searched recursively), tar archives, and single images. A key is the path inside a folder, or a
    single image's name; for archives, and for several places, prefixed with their name. Existing pairs with the same
    settings and files are kept. processes: number of processes; by default one per core. max_bad: largest share of
    unreadable photographs, which are skipped and listed in `OUT/skipped.txt`; above it, the other pairs are still made,
    and DataError is raised. progress: called with (done, total). Raises DetectorError and OutputError before anything
    is written; PrepareError and ImageError for places without photographs.
    """
    photographs, skipped = list_photographs(places, job.out)
    if not photographs:
        raise PrepareError(f"{', '.join(map(str, places))}: no photographs there; give folders, tar archives or files")
    job.source()  # loading errors occur here, once
    made_of_itself = [place.resolve() for place in places] == [(job.out / IMAGES).resolve()]
    claim(job.out, "sketch", job.settings, [SKETCHES] if made_of_itself else [IMAGES, SKETCHES], job.overwrite)
    others = [path for place in places if place.is_dir() for path in walk(place).others if not is_unread(path)]
    report = SketchReport(skipped=list(skipped), others=others)
    for count, done in enumerate(_drawn(photographs, job, processes), start=1):
        if done.fault is not None:
            report.skipped.append((done.key, done.fault))
        elif done.made:
            report.made += 1
        else:
            report.kept += 1
        report.small += done.small
        if progress is not None:
            progress(count, len(photographs))
    report.left = _left_over(job.out / SKETCHES, photographs)
    write_skipped(job.out, [f"{key}\t{why}" for key, why in report.skipped])
    _refuse_too_many(report, len(photographs) + len(skipped), max_bad, job.out)
    return report


def _left_over(drawn: Path, photographs: Sequence[Photograph]) -> list[str]:
    """Keys of sketches in a folder that belong to none of these photographs."""
    given = {composed(photograph.key) for photograph in photographs}
    there = [key_of(path, drawn) for path in walk(drawn).files] if drawn.is_dir() else []
    return [key for key in there if key not in given]


def _refuse_too_many(report: SketchReport, total: int, max_bad: float, out: Path) -> None:
    """Raises DataError if more than the allowed share was skipped."""
    if len(report.skipped) > max_bad * total:
        problems = Problems()
        share = len(report.skipped) / total
        kind = (
            f"photographs skipped, {share:.1%} of all and more than {option('max_bad')} {max_bad:g} "
            f"(replace or remove them and run again, or raise {option('max_bad')}; made: "
            f"{count_of(total - len(report.skipped), 'pair')})"
        )
        for _, why in report.skipped:
            problems.add(kind, why)
        problems.raise_if_any(out)


# Listing


def list_photographs(places: Sequence[Path], out: Path) -> tuple[list[Photograph], list[tuple[str, str]]]:
    """The photographs, by key, and unusable files, as (file, reason). Raises ImageError or PrepareError."""
    found: dict[str, Photograph] = {}
    unusable: list[tuple[str, str]] = []
    for path in places:
        if path.is_dir() and path.resolve() in [out.resolve(), *out.resolve().parents]:
            raise PrepareError(f"{out}: lies inside the photographs' folder {path}; give an OUT beside it")
        unusable += [(str(one), f"{one}: is one of the {kind}") for kind, one in _lost(path)]
        for photograph in _inside(path, alone=len(places) == 1):
            why = _unusable(photograph, found)
            if why is None:
                found[photograph.key] = photograph
            else:
                unusable.append((str(photograph.source), f"{photograph.source}: {why}"))
    return [found[key] for key in sorted(found)], unusable


def _lost(place: Path) -> list[tuple[str, Path | Archived]]:
    """Images of a place that are skipped, with the kind of problem."""
    if place.is_dir():
        return [(kind, path) for kind, path in walk(place).lost()]
    return [] if _is_picture(place) else [(DOTTED, member) for member in dotted(place)]


def _is_picture(place: Path) -> bool:
    return place.suffix.lower() in IMAGE_SUFFIXES and not place.is_dir()


def _inside(place: Path, alone: bool) -> list[Photograph]:
    if _is_picture(place):
        if not place.is_file():
            raise ImageError(f"{place}: no such file; check the path")
        return [Photograph(place.stem, place)]
    if not place.is_dir():
        return [Photograph(f"{place.stem}/{member.key}", member) for member in list_archived(place)]
    before = "" if alone else f"{place.resolve().name}/"
    return [Photograph(before + key_of(path, place), path) for path in list_images(place, recursive=True)]


def _unusable(photograph: Photograph, others: dict[str, Photograph]) -> str | None:
    """Why a photograph cannot be used; None if it can."""
    path = PurePosixPath(photograph.key)
    if path.is_absolute() or ".." in path.parts:
        return "its name leads outside the folder; pack the archive again"
    if any(part.startswith(".") for part in path.parts):
        return "its name is hidden (begins with a dot); rename it"
    if photograph.key in others:
        return f"has the same key as {others[photograph.key].source}; rename one of them"
    return None


# Extraction


def _drawn(photographs: Sequence[Photograph], job: SketchJob, processes: int | None) -> Iterator[_Done]:
    """The results of all photographs, in order, from a suitable number of processes."""
    wanted = processes if processes is not None else cores()
    count = max(1, min(wanted, len(photographs) // _ENOUGH, _MOST_ON_WINDOWS if WINDOWS else wanted))
    if count == 1:
        yield from map(partial(_draw, job), photographs)
        return
    with _workers(count) as pool:
        yield from in_order(pool, partial(_draw, job), photographs, ahead=4 * count)


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """New single-threaded processes, which end with this one and ignore Ctrl-C."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, mp_context=context, initializer=_begin) as pool:
            _start(pool, count)
            yield pool
    except BrokenProcessPool as error:
        raise PrepareError(
            "a worker process was killed, perhaps for lack of memory",
            remedy=f"run the same command again to continue, with fewer {option('processes')}",
        ) from error


def _start(pool: ProcessPoolExecutor, count: int) -> None:
    """Start the workers with signals to the process group blocked from the start, since children inherit blocked
    signals."""
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if masks else set()
    try:
        for _ in range(count):
            pool.submit(os.getpid)
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Initialise a worker: leave the process group, whose signals the parent handles, and unblock the parent's signals.

    macOS does not report the sender of a signal, so there a signal to the group during the start ends the worker too.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        came = signal.sigtimedwait({signal.SIGTERM}, 0)
        if came is not None and came.si_pid == os.getppid():
            os._exit(1)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _draw(job: SketchJob, photograph: Photograph) -> _Done:
    """Create one pair, the sketch first. Unreadable files are results, write failures are errors."""
    target = job.out / SKETCHES / f"{photograph.key}.png"
    image = job.out / IMAGES / f"{photograph.key}{photograph.suffix}"
    try:
        mark = mark_of(job.settings, photograph.source)
        sides = None if job.overwrite else _sides_of_good(target, mark)
        pixels = None if sides else np.asarray(read_rgb(photograph.source))
    except (ImageError, OSError) as error:
        return _Done(photograph.key, made=False, fault=str(error))
    if pixels is not None:
        sides = pixels.shape[:2]
        save_png(picture_of(job.source()(pixels)), target, {_MARK: mark})
    placed = place(photograph.source, image, job.link)
    return _Done(photograph.key, made=placed or pixels is not None, small=min(sides or (_SMALL,)) < _SMALL)


def _sides_of_good(path: Path, mark: str) -> tuple[int, int] | None:
    """The size of an existing, complete sketch with these settings and this file; None for any other."""
    if not path.is_file():
        return None
    try:
        sketch = open_image(path)
    except ImageError:
        return None
    return sketch.size if sketch.info.get(_MARK) == mark else None


def picture_of(lines: Bool[Tensor, "h w"]) -> Image.Image:
    """Lines in `INK` on white, one bit per pixel, which a sketch condition reads back exactly."""
    image = Image.fromarray(lines.numpy().astype(np.uint8))
    image.putpalette([255, 255, 255, *INK])
    return image


@cache
def _source(detector: str, spec: Any) -> LineSource:
    """A detector with its spec, loaded once per process."""
    kind, default = detector_spec(detector)
    return kind.source(spec or default)
