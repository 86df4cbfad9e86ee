"""How near samples are to training photographs, against how near held-out photographs are."""

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
"""To which centre squares are shrunk before pixels are compared, in pixels."""
_SHOWN, _TILE = 8, 128
_BLOCK = 256
_READ = 1024
"""Of how many training photographs pixels are held at once: those of all of COCO's would take 5.8 GB."""
Features = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Nearest:
    """The nearest training photograph of each image."""

    distances: Float[Tensor, " n"]
    rows: Integer[Tensor, " n"]
    """Of the training photographs."""

    @classmethod
    def of(cls, images: Features, training: Features) -> Nearest:
        """By Euclidean distance, in float64."""
        found = [torch.cdist(block.double(), training.double()).min(1) for block in images.split(_BLOCK)]
        return cls(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))

    @classmethod
    def of_each(cls, sets: Sequence[Features], blocks: Iterable[Features]) -> list[Nearest]:
        """Of several sets of images, where training photographs come in blocks, of which one at a time is held."""
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
        """The nearer of both; of equally near ones this one's."""
        closer = other.distances < self.distances
        return Nearest(torch.where(closer, other.distances, self.distances), torch.where(closer, other.rows, self.rows))


@dataclass(frozen=True)
class Memorisation:
    """Samples and held-out photographs beside their nearest training photographs, in one network's features."""

    of: str
    samples: Nearest
    held_out: Nearest

    def measures(self, groups: Sequence[Sequence[int]], draws: int, seed: int) -> list[Measure]:
        """Mean distances, and how often a sample is nearer than a held-out photograph, %; 50 is as photographs are.

        groups: rows of samples that belong to one condition and are drawn together. draws: for the intervals, of
        conditions and of held-out photographs; 0 for none.
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
        # of all pairs, ties by half (Mann & Whitney 1947): by ranks, since the pairs are too many to hold
        ranks = held_out.sort().values
        beyond = [len(ranks) - torch.searchsorted(ranks, samples, right=right) for right in (False, True)]
        wins = int(torch.stack(beyond).sum()) / 2
        return {
            "nearest": samples.mean().item(),
            "real_nearest": held_out.mean().item(),
            "nearer": 100 * wins / (len(samples) * len(held_out)),
        }


def pixel_features(images: Sequence[Path]) -> Features:
    """Pixels of centre squares of 64 px, scaled so that a distance is the root mean square difference in levels."""
    rows = []
    for path in images:
        image = read_rgb(path)
        small = crop_resize(image, center_box(*image.size), SIDE)
        rows.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float())
    stacked = torch.stack(rows)
    return stacked / stacked.shape[1] ** 0.5


def training_photographs(held_out: Sequence[Path], options: Options) -> list[Path]:
    """The photographs that were trained on; none where none are given.

    Raises UserError without held-out photographs to compare with, or where these were trained on, and OutputError for
    a picture's file that is there already.
    """
    if options.training is None:
        return []
    if not held_out:
        raise UserError(f"is compared with held-out photographs; give {option('real')} too", option="training")
    check_nearest(options)
    found = photographs(options.training, "train")
    check_held_out(held_out, found)
    return found


def check_nearest(options: Options) -> None:
    """Raises OutputError where the picture of the nearest cannot be written."""
    place, remedy = options.nearest, f"give another file as {option('nearest')}"
    if place is not None and place.is_dir():
        raise OutputError("is a folder", remedy=remedy, source=place)
    if place is not None and place.exists():
        raise OutputError("is there already", remedy=f"remove it, or {remedy}", source=place)


def memorised(
    networks: Sequence[FeatureNetwork],
    features: Sequence[tuple[Features, Features]],
    material: Material,
    training: Sequence[Path],
    options: Options,
    meter: ProgressMeter,
) -> list[Measure]:
    """How near the images are to training photographs, by each network and by pixels; draws the picture, if asked.

    features: of the generated and of the held-out images, by each network.
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
    """Raises UserError where photographs to compare with are among those that were trained on."""
    known = {file_hash(path) for path in training}
    shared = [path for path in real if file_hash(path) in known]
    if shared:
        raise UserError(
            f"{len(shared)} of {len(real)} photographs, such as {shared[0]}, are among the training photographs",
            remedy=f"give held-out ones as {option('real')}, or leave {option('training')} out",
        )


def nearest_sheet(
    sides: Sequence[tuple[str, Sequence[Path], Nearest, Nearest]], training: Sequence[Path]
) -> Image.Image:
    """The images that are nearest to training photographs, those beside them.

    sides: a title, its images, and their nearest photographs by features and by pixels. The first eight by features
    are shown, nearest first: the image, the nearest by features, the nearest by pixels.
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
    """Write a picture, whole or not at all. Raises OutputError."""
    with whole_file(path, False, option("nearest")) as partial, partial.open("wb") as file:
        sheet.save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=88)
