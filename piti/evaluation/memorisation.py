"""Distances of samples to training photographs, compared with those of held-out photographs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError, option
from piti.core.files import OutputError, file_hash, whole_file
from piti.core.images import center_box, crop_resize, read_rgb
from piti.core.sheets import grid
from piti.evaluation.features import FeatureNetwork, features_of
from piti.evaluation.intervals import percentiles
from piti.evaluation.material import Material, ProgressMeter
from piti.evaluation.options import Options
from piti.evaluation.pairing import photographs
from piti.evaluation.result import Measure

PIXELS = "pixels"
SIDE = 64
"""Side of the centre squares for the comparison of pixels, in pixels."""
_SHOWN, _TILE = 8, 128
_BLOCK = 256
_READ = 1024
"""Number of training photographs whose pixels are in memory at once; all of COCO would take 5.8 GB."""
Features = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Nearest:
    """The nearest training photograph of each image."""

    distances: Float[Tensor, " n"]
    rows: Integer[Tensor, " n"]
    """Rows of the training photographs."""

    @classmethod
    def of(cls, images: Features, training: Features) -> Nearest:
        """By Euclidean distance, in float64."""
        found = [torch.cdist(block.double(), training.double()).min(1) for block in images.split(_BLOCK)]
        return cls(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))

    @classmethod
    def of_each(cls, sets: Sequence[Features], blocks: Iterable[Features]) -> list[Nearest]:
        """For several sets of images, with the training photographs in blocks, of which one is in memory at a time."""
        found: list[Nearest] = []
        start = 0
        for block in blocks:
            here = [cls.of(images, block)._later(start) for images in sets]
            found = [one._or(other) for one, other in zip(found, here, strict=True)] if found else here
            start += len(block)
        return found

    def _later(self, start: int) -> Nearest:
        return Nearest(self.distances, self.rows + start)

    def _or(self, other: Nearest) -> Nearest:
        """The nearer of both, or this one's if equal."""
        closer = other.distances < self.distances
        return Nearest(torch.where(closer, other.distances, self.distances), torch.where(closer, other.rows, self.rows))


@dataclass(frozen=True)
class Memorisation:
    """Samples and held-out photographs with their nearest training photographs, in one network's features."""

    of: str
    samples: Nearest
    held_out: Nearest

    def measures(self, groups: Sequence[Sequence[int]], draws: int, seed: int) -> list[Measure]:
        """Mean distances, and how often a sample is nearer than a held-out photograph, in %; 50 is expected of
        photographs.

        groups: rows of the samples of each condition, which are drawn together. draws: of conditions and held-out
        photographs for the intervals; 0 for none.
        """
        generator = torch.Generator().manual_seed(seed)
        samples, held_out = self.samples.distances, self.held_out.distances
        drawn = []
        for _ in range(draws if min(len(groups), len(held_out)) > 1 else 0):
            chosen = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
            rows = torch.tensor([row for k in chosen for row in groups[k]])
            others = torch.randint(len(held_out), (len(held_out),), generator=generator)
            drawn.append(self._values(samples[rows], held_out[others]))
        found = []
        for name, value in self._values(samples, held_out).items():
            values = torch.tensor([one[name] for one in drawn], dtype=torch.float64)
            found.append(Measure.taken(name, value, percentiles(values) if drawn else None, self.of))
        return found

    @staticmethod
    def _values(samples: Float[Tensor, " n"], held_out: Float[Tensor, " m"]) -> dict[str, float]:
        # over all pairs, ties count half (Mann & Whitney 1947); by ranks, since there are too many pairs for memory
        ranks = held_out.sort().values
        beyond = [len(ranks) - torch.searchsorted(ranks, samples, right=right) for right in (False, True)]
        wins = int(torch.stack(beyond).sum()) / 2
        return {
            "nearest": samples.mean().item(),
            "real_nearest": held_out.mean().item(),
            "nearer": 100 * wins / (len(samples) * len(held_out)),
        }


def pixel_features(images: Sequence[Path]) -> Features:
    """Pixels of centre squares of 64 px, scaled so that distances are root mean square differences in levels of 255."""
    rows = []
    for path in images:
        image = read_rgb(path)
        small = crop_resize(image, center_box(*image.size), SIDE)
        rows.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float())
    stacked = torch.stack(rows)
    return stacked / stacked.shape[1] ** 0.5


def training_photographs(held_out: Sequence[Path], options: Options) -> list[Path]:
    """The training photographs; empty if none are given.

    Raises UserError without held-out photographs to compare with, or if these were trained on, and OutputError for an
    existing picture file.
    """
    if options.training is None:
        return []
    if not held_out:
        raise UserError(f"needs held-out photographs to compare with; give {option('real')} too", option="training")
    check_nearest(options)
    found = photographs(options.training, "train")
    check_held_out(held_out, found)
    return found


def check_nearest(options: Options) -> None:
    """Raises OutputError if the picture of the nearest photographs cannot be written."""
    place, remedy = options.nearest, f"give another file as {option('nearest')}"
    if place is not None and place.is_dir():
        raise OutputError("is a folder", remedy=remedy, source=place)
    if place is not None and place.exists():
        raise OutputError("already exists", remedy=f"remove it, or {remedy}", source=place)


def memorised(
    networks: Sequence[FeatureNetwork],
    features: Sequence[tuple[Features, Features]],
    material: Material,
    training: Sequence[Path],
    options: Options,
    meter: ProgressMeter,
) -> list[Measure]:
    """Distances of the images to training photographs, by each network and by pixels; writes the picture, if requested.

    features: of the generated and the held-out images, for each network.
    """
    row = {path: k for k, path in enumerate(material.images)}
    groups = [[row[path] for path in images] for images in material.samples.values()]
    sets = [pixel_features(material.images), pixel_features(material.real)]
    blocks = (pixel_features(training[start : start + _READ]) for start in range(0, len(training), _READ))
    found = [Memorisation(PIXELS, *Nearest.of_each(sets, blocks))]
    for network, (generated, real) in zip(networks, features, strict=True):
        known = features_of(network, training, options.resize, options.batch, meter.part(len(training)), options.cache)
        found.insert(-1, _of(network.name, generated, real, known))
    if options.nearest is not None:
        first, by_pixels = found[0], found[-1]
        sides = (
            ("sample", material.images, first.samples, by_pixels.samples),
            ("held out", material.real, first.held_out, by_pixels.held_out),
        )
        write_sheet(nearest_sheet(sides, training), options.nearest)
    return [measure for one in found for measure in one.measures(groups, options.bootstrap, options.seed)]


def _of(name: str, generated: Features, real: Features, training: Features) -> Memorisation:
    return Memorisation(name, Nearest.of(generated, training), Nearest.of(real, training))


def check_held_out(real: Sequence[Path], training: Sequence[Path]) -> None:
    """Raises UserError if held-out photographs are among the training photographs."""
    known = {file_hash(path) for path in training}
    shared = [path for path in real if file_hash(path) in known]
    if shared:
        raise UserError(
            f"{len(shared)} of {len(real)} photographs, such as {shared[0]}, are among the training photographs",
            remedy=f"give held-out ones as {option('real')}, or remove {option('training')}",
        )


def nearest_sheet(
    sides: Sequence[tuple[str, Sequence[Path], Nearest, Nearest]], training: Sequence[Path]
) -> Image.Image:
    """The images nearest to training photographs, with these.

    sides: a title, its images, and their nearest photographs by features and by pixels. Shows the eight nearest by
    features, in order: the image, its nearest photograph by features, and by pixels.
    """
    columns = []
    headings: list[str] = []
    for title, images, by_features, by_pixels in sides:
        order = by_features.distances.argsort(stable=True)[:_SHOWN].tolist()
        columns.append([images[k] for k in order])
        columns.append([training[int(by_features.rows[k])] for k in order])
        columns.append([training[int(by_pixels.rows[k])] for k in order])
        headings += [title, "nearest, features", "nearest, pixels"]
    count = min(len(column) for column in columns)
    rows = [[_tile(column[k]) for column in columns] for k in range(count)]
    return grid(rows, headings=headings)


def _tile(path: Path) -> Image.Image:
    image = read_rgb(path)
    return crop_resize(image, center_box(*image.size), _TILE)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a picture atomically. Raises OutputError."""
    with whole_file(path, False, option("nearest")) as partial, partial.open("wb") as file:
        sheet.save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=88)
