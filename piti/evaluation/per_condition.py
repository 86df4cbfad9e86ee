"""What measures against conditions share: their results, one row a condition, and images laid over conditions."""

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
"""Numbers by measure and, for some, class or network, as in `piti.evaluation.result.Measure`; what is not
defined is not there."""


class AlignmentError(UserError):
    """An image and its condition, or a judge of them, cannot be used. The message names the file and the remedy."""


@runtime_checkable
class PerCondition(Protocol):
    """What a measure found, a row for each condition, so that conditions can be drawn again (the bootstrap)."""

    @property
    def stems(self) -> tuple[str, ...]:
        """The conditions, in the order of the rows."""
        ...

    @property
    def rows(self) -> Shaped[Tensor, "conditions ..."]:
        """What was counted for each."""
        ...

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """The numbers over all conditions, or over these rows, which may repeat."""
        ...


@dataclass(frozen=True)
class Framed:
    """An image, and the part of its condition that it shows."""

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
        """The rectangle of a condition of this size that the image shows: its centred square, or all of it.

        Raises AlignmentError where the image has neither the condition's proportions nor those of a square.
        """
        wide, high = self.original
        scale = min(wide, high) / min(width, height)
        beyond = max(abs(width * scale - wide), abs(height * scale - high))  # in pixels, of the image made of all of it
        if wide != high and beyond > 1:
            raise AlignmentError(
                f"{self.path}: is {wide} x {high} pixels, and {source} {width} x {height}; an image shows all of its "
                "condition, in the same proportions, or the square at its centre: give the condition that it was made "
                "from"
            )
        shrunk = self.image.size != self.original  # its centred square alone is looked at
        square = shrunk or (wide == high and beyond > 0.5)
        return center_box(width, height) if square else Box(0, 0, width, height)


def framed(stem: str, path: Path, resize: int | None) -> Framed:
    """An image as it is, or its centred square resized to this side (bicubic, antialiased). Raises ImageError."""
    image = read_rgb(path)
    original = image.size
    if resize is not None:
        image = crop_resize(image, center_box(*original), resize)
    return Framed(path, stem, image, original)


def batches(groups: Groups, resize: int | None, batch: int, on_step: OnProgress | None) -> Iterator[list[Framed]]:
    """All samples, condition by condition, at most `batch` at a time, those of one batch of one size.

    Raises AlignmentError where there are none, or one is given twice.
    """
    jobs = [(stem, path) for stem, paths in groups.items() for path in paths]
    seen: dict[Path, str] = {}
    for stem, path in jobs:
        if path in seen:
            raise AlignmentError(f"{path}: is given twice, for {seen[path]} and for {stem}; give each image once")
        seen[path] = stem
    if not jobs:
        raise AlignmentError("no images to judge; give the folder that holds them")
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
    """Raises AlignmentError for two samples of one condition that cannot be compared place by place."""
    if first.size != one.size:
        raise AlignmentError(
            f"{first.path} and {one.path} are samples of {one.stem} and differ in size",
            remedy=f"make them alike, or bring all to one size with {option('resize')}",
        )


def condition_file(stem: str, conditions: Mapping[str, Path], image: Path) -> Path:
    """The file of an image's condition. Raises AlignmentError."""
    if stem not in conditions:
        raise AlignmentError(f"{image}: there is no condition {stem}; give the folder that holds it")
    return conditions[stem]
