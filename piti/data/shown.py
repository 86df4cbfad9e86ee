"""What a data set shows beside its mistakes: classes that occur, photographs that are turned, samples mirrored."""

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
"""EXIF orientations that exchange width and height."""
UNEQUAL = (
    "pairs whose sizes differ (export both at the same size; to resize a mask, take nearest neighbour, which mixes no "
    "classes)"
)
LOSSY = "conditions in formats that change values (export them as PNG from where they were made)"
FITS_UNTURNED = (
    "pairs whose photograph is turned by its EXIF orientation, and whose condition fits the unturned pixels "
    "(turn the condition too, or save the photograph without that tag)"
)

_SAMPLED = 64  # rows and columns of a photograph that are compared with its mask
_BETTER = 1.1  # how much more of the colours classes must explain before a mask is said to fit the unturned pixels


@dataclass(frozen=True)
class Seen:
    """What one pair shows: pixels of each class, its photograph's EXIF orientation, how well the mask fits.

    fits_unturned: whether classes explain the colours better without the turn; None where that says nothing. full:
    whether its text takes all tokens that are read, so that more of it was cut unless it ends just there.
    """

    counts: Counts = field(default_factory=dict)
    orientation: int = 1
    fits_unturned: bool | None = None
    full: bool = False


def seen_in(
    condition: Condition, file: Stored, image: UInt8[np.ndarray, "h w 3"], raw: Shaped[Tensor, "K h2 w2"]
) -> Seen:
    """Look at a decoded pair. file: of the photograph."""
    counts = Coverage(condition).counted(raw)
    if isinstance(condition, TextCondition):
        return Seen(counts, *turn_of(file, image, None), full=condition.full(raw))
    return Seen(counts, *turn_of(file, image, raw[0].numpy() if isinstance(condition, MaskCondition) else None))


def turn_of(
    file: Stored, image: UInt8[np.ndarray, "h w 3"], mask: Shaped[np.ndarray, "h2 w2"] | None
) -> tuple[int, bool | None]:
    """A photograph's EXIF orientation, and whether its mask fits the unturned pixels better, see `Seen`."""
    try:
        turn = orientation(file)
    except ImageError:
        turn = 1
    if turn == 1 or mask is None or mask.shape != image.shape[:2]:
        return turn, None
    return turn, _fits_unturned(image, mask, turn)


@dataclass
class Shown:
    """What the pairs of a set show together."""

    condition: Condition
    said: list[str] = field(default_factory=list)
    pairs: int = 0
    coverage: Coverage = field(init=False)
    turned: int = 0
    full: int = 0
    """How many texts are `Seen.full`."""
    unturned_fits: Counter[bool] = field(default_factory=Counter)
    unturned: list[str] = field(default_factory=list)
    """Names of photographs whose masks fit their unturned pixels better."""

    def __post_init__(self) -> None:
        self.coverage = Coverage(self.condition)

    def add(self, seen: Seen, name: str = "") -> None:
        """Take a pair into account. name: of its photograph."""
        self.pairs += 1
        self.coverage.add(seen.counts)
        self.turned += seen.orientation != 1
        self.full += seen.full
        if seen.fits_unturned is not None:
            self.unturned_fits[seen.fits_unturned] += 1
            self.unturned += [name] if seen.fits_unturned else []

    @property
    def fits_unturned(self) -> bool:
        """Whether most masks fit the pixels of their photographs better without the EXIF orientation."""
        return self.unturned_fits[True] * 2 > self.unturned_fits.total()

    def notes(self) -> list[str]:
        """What a person should know, a line each."""
        return [*self.said, *self.coverage.notes(), *self._cut(), *self.turns()]

    def _cut(self) -> list[str]:
        """How many texts are probably longer than what is read."""
        if not self.full or not isinstance(self.condition, TextCondition):
            return []
        context = self.condition.context
        of = f"{self.full} of {self.pairs} captions fill all {context} tokens that are read (condition.context)"
        return [f"{of}: what is beyond them is cut off"]

    def turns(self) -> list[str]:
        """How many photographs are turned by their files' tags, and whether masks fit them so."""
        if not self.turned:
            return []
        share = f"{self.turned} of {self.pairs} photographs carry an EXIF orientation and are turned by it"
        if self.fits_unturned:
            better = self.unturned_fits[True]
            fit = f"by their colours the masks of {better} fit the unturned ones better: turn these masks"
            return [f"{share}; {fit}"]
        return [f"{share}; their conditions must lie over the turned ones"]


def mirroring_notes(condition: Condition) -> list[str]:
    """What `data.flip` does to classes of a left and a right side."""
    masks = [part for part in condition.named_parts().values() if isinstance(part, MaskCondition)]
    return [note for mask in masks for note in said_of_mirroring(mask.classes.names)]


def _fits_unturned(image: UInt8[np.ndarray, "h w 3"], mask: Shaped[np.ndarray, "h w"], turn: int) -> bool | None:
    """Whether a mask's classes explain more of a photograph's colours as the file has its pixels; None for no turn in
    the plane that keeps the sides, and where neither explains anything."""
    ways = {2: np.s_[:, ::-1], 3: np.s_[::-1, ::-1], 4: np.s_[::-1]}
    if turn not in ways:
        return None
    rows, columns = (np.linspace(0, side - 1, min(side, _SAMPLED)).astype(int) for side in mask.shape)
    labels = mask[np.ix_(rows, columns)]
    upright, unturned = image[np.ix_(rows, columns)], image[ways[turn]][np.ix_(rows, columns)]
    before, after = _within(upright, labels), _within(unturned, labels)
    return None if before == after else bool(after * _BETTER < before)


def _within(pixels: UInt8[np.ndarray, "h w 3"], labels: Shaped[np.ndarray, "h w"]) -> float:
    """How far colours lie from the mean of their class, squared, on average."""
    values, total = pixels.astype(float), 0.0
    for label in np.unique(labels):
        own = values[labels == label]
        total += ((own - own.mean(0)) ** 2).sum()
    return total / values.size
