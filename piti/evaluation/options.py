"""Options of an evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from piti.core.errors import UserError, option
from piti.evaluation.perceptual import LpipsSpec
from piti.models.perceptual import PerceptualSpec


@dataclass(frozen=True)
class Options:
    """Options of an evaluation: metrics, networks and settings."""

    features: tuple[str, ...] = ("inception", "clip")
    """Feature networks, see `open_features`."""
    resize: int | None = None
    """First resize the centre squares of images and photographs to this size in pixels."""
    batch: int = 32
    device: str | None = None
    """Device of the networks; the fastest available by default."""
    segmenter: str | None = None
    """Segmentation model that measures agreement with masks: a hub id or folder."""
    aliases: Path | None = None
    """JSON file that maps the segmenter's labels to class names where they differ."""
    depth: str | None = None
    """Depth model whose predictions are compared with the given depth: a hub id or folder."""
    perceptual: PerceptualSpec | LpipsSpec | None = None
    """LPIPS, or a feature network, for distances between samples of one condition (diversity) and to their
    photograph."""
    objects: bool = False
    """Measure the similarity of objects of a class within an image, using the masks."""
    training: Path | None = None
    """Training photographs, a folder or a data root (its training split): measure how close the images are to them,
    compared with held-out photographs."""
    nearest: Path | None = None
    """File for a picture of the images closest to training photographs."""
    cache: Path | None = None
    """Folder that caches the features of images per network."""
    bootstrap: int = 200
    """Bootstrap samples for the intervals of small sets; 0 for none."""
    seed: int = 0
    """Seed of the subsets and the intervals."""

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UserError("give at least 1", option=name, value=value)
        if self.nearest is not None and self.training is None:
            raise UserError(f"needs {option('training')}; give it too", option="nearest", value=self.nearest)
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise UserError(
                "is not a valid number of draws",
                remedy="give 0 for no intervals, or at least 2; 200 are usual",
                option="bootstrap",
                value=self.bootstrap,
            )
        repeated = [name for name, count in Counter(self.features).items() if count > 1]
        if repeated:
            raise UserError("is given twice", remedy="name each network once", option="features", value=repeated[0])
