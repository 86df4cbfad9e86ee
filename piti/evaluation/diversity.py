"""How much samples of one condition differ from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from piti.checkpoints.weights import file_hash
from piti.core.errors import option
from piti.core.images import to_tensor
from piti.core.progress import OnProgress
from piti.evaluation.per_condition import AlignmentError, ConditionValues, Framed, Groups, batches
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec, load_perceptual, weights_file

_TINY = 1e-10  # beside the length of a feature, which may be 0


@dataclass(frozen=True)
class PerceptualJudge:
    """A network whose features compare images."""

    network: PerceptualNetwork
    name: str
    source: str
    """The file or hub repository of its weights."""
    sha256: str
    """Of the weights' file."""


def open_perceptual(spec: PerceptualSpec, device: torch.device) -> PerceptualJudge:
    """The network with its weights. Raises UserError where they are missing or another network's."""
    path = weights_file(spec)
    network = load_perceptual(spec).to(device)
    return PerceptualJudge(network, spec.network, spec.weights or str(path), file_hash(path))


def unit_features(features: Sequence[Float[Tensor, "N _C _H _W"]]) -> list[Float[Tensor, "N _C _H _W"]]:
    """Features of length 1 at every position, over the channels; 0 where they are 0."""
    return [x / (x.square().sum(1, keepdim=True).sqrt() + _TINY) for x in features]


def perceptual_distance(
    a: Sequence[Float[Tensor, "N _C _H _W"]], b: Sequence[Float[Tensor, "N _C _H _W"]]
) -> Float[Tensor, " N"]:
    """Distance of images by their unit features, layer by layer (LPIPS without learned weights, Zhang et al. 2018,
    eq. 1 with w = 1): squared differences, added over channels, averaged over positions, added over layers.
    """
    layers = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(layers).sum(0)


@dataclass(frozen=True)
class Distances:
    """Distances between samples of one condition; conditions with one sample are not there.

    rows: the sum of the distances of every two samples, and how many twos there are.
    """

    measure: str
    """`diversity` or `spread`."""
    of: str
    """The network."""
    stems: tuple[str, ...]
    rows: Float[Tensor, "conditions 2"]

    @property
    def each(self) -> Float[Tensor, " conditions"]:
        """The mean distance in each condition."""
        return self.rows[:, 0] / self.rows[:, 1]

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """The mean over all twos of all conditions."""
        total, twos = (self.rows if chosen is None else self.rows[chosen]).sum(0).tolist()
        return {(self.measure, self.of): total / twos}


def diversity(
    groups: Groups,
    judge: PerceptualJudge,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> Distances:
    """The mean perceptual distance between samples of one condition, see `perceptual_distance`.

    All of the spec's layers count alike; its `layer_weights` are for training. With VGG-19 or SqueezeNet, numbers are
    not comparable with published LPIPS, which has learned weights and other networks.
    Raises AlignmentError where no condition has two samples, or samples of one differ in size or give NaN;
    UserError for images that are too small for the network.
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
            first = sizes.setdefault(one.stem, one)
            if first.size != one.size:
                raise AlignmentError(
                    f"{first.path} and {one.path} are samples of {one.stem} and differ in size",
                    remedy=f"make them alike, or bring all to one size with {option('resize')}",
                )
            features[one.stem].append([x[k : k + 1] for x in found])
            if len(features[one.stem]) == len(several[one.stem]):
                rows[row_of[one.stem]] = _added(features.pop(one.stem))
    return Distances("diversity", judge.name, tuple(several), rows)


@torch.inference_mode()
def _features(judge: PerceptualJudge, row: Sequence[Framed], device: torch.device) -> list[Tensor]:
    """Unit features of images of one size, a tensor [N, C, h, w] a layer."""
    images = torch.stack([to_tensor(one.image) for one in row]).to(device)  # [N, 3, h, w]
    found = judge.network(images)
    for k, one in enumerate(row):
        if not all(torch.isfinite(x[k]).all() for x in found):
            raise AlignmentError(f"{one.path}: {judge.name} gives NaN for it; check the weights in {judge.source}")
    return unit_features(found)


def _added(samples: Sequence[list[Tensor]]) -> Float[Tensor, " 2"]:
    """The sum of the distances between every two, and how many there are."""
    distances = torch.cat([perceptual_distance(a, b) for a, b in combinations(samples, 2)]).double().cpu()
    return torch.tensor([distances.sum().item(), len(distances)], dtype=torch.float64)


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
    """The conditions with at least two samples. Raises AlignmentError where there are none."""
    several = {stem: samples for stem, samples in groups.items() if len(samples) > 1}
    if not several:
        raise AlignmentError(
            f"none of {len(groups)} conditions has two samples, between which diversity is measured",
            remedy=f"make more with piti translate {option('num')} 4",
        )
    return several


def _twos(count: int) -> int:
    return count * (count - 1) // 2
