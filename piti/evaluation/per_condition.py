"""Shared parts of measures per condition: results with one row per condition, and the alignment of images and
conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Integer, Shaped
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError, option
from piti.core.images import Box, center_box, crop_resize, read_rgb
from piti.core.progress import OnProgress

Groups = Mapping[str, Sequence[Path]]
"""The samples of each condition, by its stem."""
ConditionValues = dict[tuple[str, str], float]
"""Values by measure and, for some, class or network, as in `piti.evaluation.result.Measure`; undefined ones are
omitted."""


class AlignmentError(UserError):
    """An image, its condition or a network cannot be used. The message names the file and the remedy."""


@runtime_checkable
class PerCondition(Protocol):
    """Results of a measure, a row for each condition, for a bootstrap over conditions."""

    @property
    def stems(self) -> tuple[str, ...]:
        """The conditions, in the order of the rows."""
        ...

    @property
    def rows(self) -> Shaped[Tensor, "conditions ..."]:
        """Counts or values of each condition."""
        ...

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """The measures over all conditions, or over the chosen rows, which may repeat."""
        ...


@dataclass(frozen=True)
class Framed:
    """An image, and its part of the condition."""

    path: Path
    stem: str
    image: Image.Image
    original: tuple[int, int]
    """(width, height) of the file."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.height, self.image.width

    def box(self, width: int, height: int, source: str) -> Box:
        """The image's rectangle of a condition of this size: its centre square, or all of it.

        Raises AlignmentError if the image is neither square nor has the condition's aspect ratio.
        """
        wide, high = self.original
        scale = min(wide, high) / min(width, height)
        beyond = max(
            abs(width * scale - wide), abs(height * scale - high)
        )  # in pixels, of an image of the whole condition
        if wide != high and beyond > 1:
            raise AlignmentError(
                f"{self.path}: is {wide} x {high} pixels, and {source} {width} x {height}; an image covers all of its "
                "condition, with the same aspect ratio, or its centre square: give the image's own condition"
            )
        shrunk = self.image.size != self.original  # only its centre square is used
        square = shrunk or (wide == high and beyond > 0.5)
        return center_box(width, height) if square else Box(0, 0, width, height)


def framed(stem: str, path: Path, resize: int | None) -> Framed:
    """An image unchanged, or its centre square resized to this side (bicubic, antialiased). Raises ImageError."""
    image = read_rgb(path)
    original = image.size
    if resize is not None:
        image = crop_resize(image, center_box(*original), resize)
    return Framed(path, stem, image, original)


def batches(groups: Groups, resize: int | None, batch: int, on_step: OnProgress | None) -> Iterator[list[Framed]]:
    """All samples, condition by condition, in batches of at most `batch` images of one size.

    Raises AlignmentError if there are none, or one is given twice.
    """
    jobs = [(stem, path) for stem, paths in groups.items() for path in paths]
    seen: dict[Path, str] = {}
    for stem, path in jobs:
        if path in seen:
            raise AlignmentError(f"{path}: is given twice, for {seen[path]} and {stem}; give each image once")
        seen[path] = stem
    if not jobs:
        raise AlignmentError("no images to evaluate; give the folder that contains them")
    waiting: list[Framed] = []
    for done, (stem, path) in enumerate(jobs):
        image = framed(stem, path, resize)
        if waiting and (len(waiting) == batch or image.size != waiting[0].size):
            yield waiting
            waiting = []
            if on_step is not None:
                on_step(done, len(jobs))
        waiting.append(image)
    yield waiting
    if on_step is not None:
        on_step(len(jobs), len(jobs))


def check_same_size(first: Framed, one: Framed) -> None:
    """Raises AlignmentError for two samples of one condition with different sizes."""
    if first.size != one.size:
        raise AlignmentError(
            f"{first.path} and {one.path} are samples of {one.stem} and differ in size",
            remedy=f"generate them at one size, or resize all with {option('resize')}",
        )


def condition_file(stem: str, conditions: Mapping[str, Path], image: Path) -> Path:
    """The file of an image's condition. Raises AlignmentError."""
    if stem not in conditions:
        raise AlignmentError(f"{image}: there is no condition {stem}; give the folder that contains it")
    return conditions[stem]
