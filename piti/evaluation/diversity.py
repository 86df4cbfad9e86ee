"""Diversity of the samples of one condition, and their distances to its photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from piti.core.errors import flag
from piti.core.images import crop_resize, read_rgb, to_tensor
from piti.core.progress import OnProgress
from piti.evaluation.per_condition import (
    AlignmentError,
    ConditionValues,
    Framed,
    Groups,
    batches,
    check_same_size,
)
from piti.evaluation.perceptual import PerceptualJudge, unit_features


@dataclass(frozen=True)
class Distances:
    """Distances between samples of one condition, skipping those with one sample, or to its photograph.

    rows: the sum of the distances, and their number.
    """

    measure: str
    """`diversity`, `spread` or `photograph_distance`."""
    of: str
    """The network."""
    stems: tuple[str, ...]
    rows: Float[Tensor, "conditions 2"]

    @property
    def each(self) -> Float[Tensor, " conditions"]:
        """The mean distance in each condition."""
        return self.rows[:, 0] / self.rows[:, 1]

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """The mean over all distances of all conditions."""
        total, count = (self.rows if chosen is None else self.rows[chosen]).sum(0).tolist()
        return {(self.measure, self.of): total / count}


def diversity(
    groups: Groups,
    judge: PerceptualJudge,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> Distances:
    """The mean perceptual distance between samples of one condition, see `perceptual_distance`.

    All of the spec's layers have equal weight; its `layer_weights` are for training. Values equal published LPIPS if
    the network has its learned weights (`LpipsSpec`), and are not comparable with it otherwise. Raises AlignmentError
    if no condition has two samples, or samples of one differ in size or give NaN; UserError for images that are too
    small for the network.
    """
    several = _several({stem: list(paths) for stem, paths in groups.items()})
    device = judge.network.mean.device
    row_of = {stem: row for row, stem in enumerate(several)}
    rows = torch.zeros(len(several), 2, dtype=torch.float64)
    features: dict[str, list[list[Tensor]]] = {stem: [] for stem in several}
    sizes: dict[str, Framed] = {}
    for batched in batches(several, resize, batch, on_step):
        found = _features(judge, batched, device)
        for k, one in enumerate(batched):
            check_same_size(sizes.setdefault(one.stem, one), one)
            features[one.stem].append([x[k : k + 1] for x in found])
            if len(features[one.stem]) == len(several[one.stem]):
                rows[row_of[one.stem]] = _added(features.pop(one.stem), judge)
                del sizes[one.stem]
    return Distances("diversity", judge.name, tuple(several), rows)


@torch.inference_mode()
def _features(judge: PerceptualJudge, row: Sequence[Framed], device: torch.device) -> list[Tensor]:
    """Unit features of images of one size, a tensor [N, C, h, w] per layer."""
    images = torch.stack([to_tensor(one.image) for one in row]).to(device)  # [N, 3, h, w]
    found = judge.network(images)
    for k, one in enumerate(row):
        if not all(torch.isfinite(x[k]).all() for x in found):
            raise AlignmentError(f"{one.path}: {judge.name} returned NaN; check the weights in {judge.source}")
    return unit_features(found)


def _added(samples: Sequence[list[Tensor]], judge: PerceptualJudge) -> Float[Tensor, " 2"]:
    """The sum of all pairwise distances, and their number."""
    distances = torch.cat([judge.distance(a, b) for a, b in combinations(samples, 2)]).double().cpu()
    return torch.tensor([distances.sum().item(), len(distances)], dtype=torch.float64)


def photograph_distance(
    groups: Groups,
    photographs: Mapping[str, Path],
    judge: PerceptualJudge,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> Distances:
    """The mean perceptual distance of each image to its condition's photograph, for upsamplers and reconstructions.

    photographs: by stem; each is cropped like its image (whole, or its centre square) and resized to it, bicubic with
    antialiasing. For images sampled freely, such as from masks, a large distance is not an error. Raises AlignmentError
    for images of another aspect ratio or that give NaN, UserError for images that are too small.
    """
    device = judge.network.mean.device
    row_of = {stem: row for row, stem in enumerate(groups)}
    rows = torch.zeros(len(groups), 2, dtype=torch.float64)
    for batched in batches(groups, resize, batch, on_step):
        pairs = [(one, _shown_of(photographs[one.stem], one)) for one in batched]
        made, real = (_features(judge, side, device) for side in zip(*pairs, strict=True))
        for one, distance in zip(batched, judge.distance(made, real).tolist(), strict=True):
            rows[row_of[one.stem]] += torch.tensor([distance, 1.0], dtype=torch.float64)
    return Distances("photograph_distance", judge.name, tuple(groups), rows)


def _shown_of(photograph: Path, one: Framed) -> Framed:
    """The part of a photograph that corresponds to an image, at the image's size."""
    whole = read_rgb(photograph)
    shown = crop_resize(whole, one.box(*whole.size, str(photograph)), one.image.size)
    return Framed(photograph, one.stem, shown, whole.size)


def feature_spread(features: Float[Tensor, "N D"], groups: Mapping[str, Sequence[int]], of: str) -> Distances:
    """The mean Euclidean distance between features of samples of one condition.

    groups: the rows of `features` that are samples of each condition; of: the network.
    Raises AlignmentError where no condition has two samples.
    """
    several = _several(groups)
    rows = [
        (torch.pdist(features[list(of_one)].double()).sum().item(), _twos(len(of_one))) for of_one in several.values()
    ]
    return Distances("spread", of, tuple(several), torch.tensor(rows, dtype=torch.float64))


def _several(groups: Mapping[str, Sequence]) -> dict[str, Sequence]:
    """The conditions with at least two samples. Raises AlignmentError if there are none."""
    several = {stem: samples for stem, samples in groups.items() if len(samples) > 1}
    if not several:
        raise AlignmentError(
            f"none of {len(groups)} conditions has the two samples that diversity needs",
            remedy=f"generate more with piti translate {flag('num')} 4",
        )
    return several


def _twos(count: int) -> int:
    return count * (count - 1) // 2
