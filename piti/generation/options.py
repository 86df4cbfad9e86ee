"""Options of generation, and the seeds of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from piti.core.errors import UserError, option
from piti.core.files import OutputError
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.seeding import derive_seed
from piti.pipelines.options import OWN_SAMPLING, SamplingOptions

SHEET = "sheet.png"
"""File name of the contact sheet beside results."""
MAX_ROWS = 64
"""Largest batch whose place is stored in an image's metadata; recreating it costs as much as all rows."""


NoiseOn = Literal["cpu", "cuda"]
"""Kinds of device for drawing noise; the same seed gives different noise on each."""


@dataclass(frozen=True)
class Place:
    """An image's row in its batch, since kernels round differently for other batch sizes."""

    row: int
    rows: int
    order: int = 0
    """Order of its condition among the distinct ones of the batch, by their first rows."""
    distinct: int = 1

    def conditions(self) -> list[int]:
        """The condition of each row of such a batch, by its order among the distinct ones."""
        rows = list(range(self.order + 1))
        others = iter(range(self.order + 1, self.distinct))
        while len(rows) < self.rows:
            rows.append(self.order if len(rows) == self.row else next(others, self.order))
        return rows


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generation."""

    sampling: SamplingOptions = OWN_SAMPLING
    num: int = 1
    """Images per condition."""
    seed: int = 0
    batch: int = 8
    """Images generated at once."""
    skip_bad: bool = False
    """Skip conditions that cannot be used, instead of stopping."""
    numbers: tuple[int, ...] | None = None
    """Numbers of the images per condition; by default the first `num`."""
    noise_on: NoiseOn | None = None
    """Device of the noise; None: the networks' device if that is CUDA, else the CPU."""
    place: Place | None = None
    """For a single image: its place in a batch, for a bit-identical result."""

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch < 1:
            raise UserError(f"{option('num')} {self.num}, {option('batch')} {self.batch}: expected at least 1 of each")

    @classmethod
    def from_flat(cls, **values: Any) -> GenerationOptions:
        """The options with those of `sampling` among them under their flat keys. Raises SpecError."""
        sampling, others = SamplingOptions.split(values)
        return cls(sampling, **others)

    def wanted(self) -> Sequence[int]:
        """The numbers of the images of each condition."""
        return range(self.num) if self.numbers is None else self.numbers


def is_one_file(out: Path) -> bool:
    """Whether the output is a single PNG and not a folder, which may have any name. Raises OutputError for a name with
    another image format.
    """
    suffix = out.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or out.is_dir():
        return False
    if suffix != ".png":
        remedy = "use a name that ends in .png, or give a folder"
        raise OutputError("images are written as PNG", remedy=remedy, option="out", value=out)
    return True


def check_one(out: Path, images: int) -> None:
    """Raises OutputError for several images in one file."""
    if images != 1:
        what = f"is one file, but {images} images are requested"
        raise OutputError(what, remedy=f"give a folder, or one input with {option('num')} 1", option="out", value=out)


def seed_of(seed: int, content_hash: str, number: int) -> int:
    """The seed of the noise of a condition's image. seed: given by the user; content_hash: `Prepared.content_hash`, so
    that neither the file name nor other files matter; number: of the image among those of the condition.
    """
    return derive_seed(seed, content_hash, number)
