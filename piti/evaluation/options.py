"""What an evaluation is to measure, and how."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from piti.core.errors import UserError, option
from piti.evaluation.perceptual import LpipsSpec
from piti.models.perceptual import PerceptualSpec


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    features: tuple[str, ...] = ("inception", "clip")
    """Feature networks, as `open_features` takes them."""
    resize: int | None = None
    """Bring the centre square of both sides to this many pixels first."""
    batch: int = 32
    device: str | None = None
    """The fastest there is by default."""
    segmenter: str | None = None
    """A segmentation model that judges agreement with masks, by its name on a hub or its folder."""
    aliases: Path | None = None
    """JSON of the segmenter's labels that are named otherwise than the masks' classes."""
    depth: str | None = None
    """A model that predicts depth, which is compared with the given one."""
    perceptual: PerceptualSpec | LpipsSpec | None = None
    """LPIPS, or the network in whose features samples of one condition are compared with each other (diversity) and
    with the photograph of their condition."""
    objects: bool = False
    """Whether objects of a class within an image are compared with each other, by the masks."""
    training: Path | None = None
    """Photographs that the model was trained on, a folder or a data root (its training split): how near the images are
    to them is measured beside how near the held-out photographs are."""
    nearest: Path | None = None
    """Gets a picture of the images that are nearest to training photographs."""
    cache: Path | None = None
    """A folder that keeps features, so that the same images are not looked at again by the same network."""
    bootstrap: int = 200
    """Draws for the intervals of small samples; 0 is none."""
    seed: int = 0
    """Of the subsets and the intervals."""

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UserError("give at least 1", option=name, value=value)
        if self.nearest is not None and self.training is None:
            raise UserError(f"is drawn of {option('training')}; give it too", option="nearest", value=self.nearest)
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise UserError(
                "is no number of draws",
                remedy="give 0 for no intervals, or at least 2; 200 are usual",
                option="bootstrap",
                value=self.bootstrap,
            )
        repeated = [name for name, count in Counter(self.features).items() if count > 1]
        if repeated:
            raise UserError("is given twice", remedy="name each network once", option="features", value=repeated[0])
