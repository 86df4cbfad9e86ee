"""Notes on a data set: classes that occur, rotated photographs, mirrored samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped, UInt8
from torch import Tensor

from piti.conditions import Condition, MaskCondition, TextCondition
from piti.conditions.coverage import Counts, Coverage
from piti.conditions.mirroring import said_of_mirroring
from piti.core.images import ImageError, orientation
from piti.data.pairs import Stored

TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""
UNEQUAL = (
    "pairs whose sizes differ (export both at the same size; resize masks by nearest neighbour, which does not mix "
    "classes)"
)
LOSSY = "conditions in lossy formats (export them as PNG from their source)"
FITS_UNTURNED = (
    "pairs whose photograph is rotated by its EXIF orientation, but whose condition fits the unrotated pixels "
    "(rotate the condition too, or save the photograph without that tag)"
)

_SAMPLED = 64  # rows and columns of a photograph compared with its mask
_BETTER = 1.1  # required ratio of explained colours for deciding that a mask fits the unrotated pixels


@dataclass(frozen=True)
class Seen:
    """Statistics of a pair: pixels per class, the photograph's EXIF orientation, and the fit of the mask.

    fits_unturned: whether classes explain the colours better without the rotation; None if that is undecided. full:
    whether its text fills the context, so that it was probably truncated.
    """

    counts: Counts = field(default_factory=dict)
    orientation: int = 1
    fits_unturned: bool | None = None
    full: bool = False


def seen_in(
    condition: Condition, file: Stored, image: UInt8[np.ndarray, "h w 3"], raw: Shaped[Tensor, "K h2 w2"]
) -> Seen:
    """Statistics of a decoded pair. file: the photograph's."""
    counts = Coverage(condition).counted(raw)
    if isinstance(condition, TextCondition):
        return Seen(counts, *turn_of(file, image, None), full=condition.full(raw))
    return Seen(counts, *turn_of(file, image, raw[0].numpy() if isinstance(condition, MaskCondition) else None))


def turn_of(
    file: Stored, image: UInt8[np.ndarray, "h w 3"], mask: Shaped[np.ndarray, "h2 w2"] | None
) -> tuple[int, bool | None]:
    """A photograph's EXIF orientation, and whether its mask fits the unrotated pixels better, see `Seen`."""
    try:
        turn = orientation(file)
    except ImageError:
        turn = 1
    if turn == 1 or mask is None or mask.shape != image.shape[:2]:
        return turn, None
    return turn, _fits_unturned(image, mask, turn)


@dataclass
class Shown:
    """Statistics of all pairs of a set."""

    condition: Condition
    said: list[str] = field(default_factory=list)
    pairs: int = 0
    coverage: Coverage = field(init=False)
    turned: int = 0
    full: int = 0
    """Number of texts that are `Seen.full`."""
    unturned_fits: Counter[bool] = field(default_factory=Counter)
    unturned: list[str] = field(default_factory=list)
    """Names of photographs whose masks fit their unrotated pixels better."""

    def __post_init__(self) -> None:
        self.coverage = Coverage(self.condition)

    def add(self, seen: Seen, name: str = "") -> None:
        """Add a pair. name: of its photograph."""
        self.pairs += 1
        self.coverage.add(seen.counts)
        self.turned += seen.orientation != 1
        self.full += seen.full
        if seen.fits_unturned is not None:
            self.unturned_fits[seen.fits_unturned] += 1
            self.unturned += [name] if seen.fits_unturned else []

    @property
    def fits_unturned(self) -> bool:
        """Whether most masks fit their photographs better without the EXIF orientation."""
        return self.unturned_fits[True] * 2 > self.unturned_fits.total()

    def notes(self) -> list[str]:
        """Notes for the user, a line each."""
        return [*self.said, *self.coverage.notes(), *self._cut(), *self.turns()]

    def _cut(self) -> list[str]:
        """A note on probably truncated texts."""
        if not self.full or not isinstance(self.condition, TextCondition):
            return []
        context = self.condition.context
        of = f"{self.full} of {self.pairs} captions fill the context of {context} tokens (condition.context)"
        return [f"{of}: longer ones are truncated"]

    def turns(self) -> list[str]:
        """Notes on photographs rotated by EXIF, and on the fit of their masks."""
        if not self.turned:
            return []
        share = f"{self.turned} of {self.pairs} photographs have an EXIF orientation and are rotated by it"
        if self.fits_unturned:
            better = self.unturned_fits[True]
            fit = f"by their colours the masks of {better} fit the unrotated ones better: rotate these masks"
            return [f"{share}; {fit}"]
        return [f"{share}; their conditions must match the rotated ones"]


def mirroring_notes(condition: Condition) -> list[str]:
    """Notes on the effect of `data.flip` on left and right classes."""
    masks = [part for part in condition.named_parts().values() if isinstance(part, MaskCondition)]
    return [note for mask in masks for note in said_of_mirroring(mask.classes.names)]


def _fits_unturned(image: UInt8[np.ndarray, "h w 3"], mask: Shaped[np.ndarray, "h w"], turn: int) -> bool | None:
    """Whether a mask's classes explain more of a photograph's colours without EXIF rotation; None for orientations that
    change the size, and if neither explains anything."""
    ways = {2: np.s_[:, ::-1], 3: np.s_[::-1, ::-1], 4: np.s_[::-1]}
    if turn not in ways:
        return None
    rows, columns = (np.linspace(0, side - 1, min(side, _SAMPLED)).astype(int) for side in mask.shape)
    labels = mask[np.ix_(rows, columns)]
    upright, unturned = image[np.ix_(rows, columns)], image[ways[turn]][np.ix_(rows, columns)]
    before, after = _within(upright, labels), _within(unturned, labels)
    return None if before == after else bool(after * _BETTER < before)


def _within(pixels: UInt8[np.ndarray, "h w 3"], labels: Shaped[np.ndarray, "h w"]) -> float:
    """Mean squared distance of colours to the mean of their class."""
    values, total = pixels.astype(float), 0.0
    for label in np.unique(labels):
        own = values[labels == label]
        total += ((own - own.mean(0)) ** 2).sum()
    return total / values.size
