"""Distances of generated images from real ones, in the features of one network, as measures with intervals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from piti.evaluation.metrics import (
    CMMD_SIGMA,
    LEAST_FOR_INTERVAL,
    bootstrap,
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_estimate,
    precision_recall,
)
from piti.evaluation.result import KINDS, Measure

SMALL = 2048
"""With fewer images a side, or fewer than the features have dimensions, a sample is called small: Inception's 2,048
dimensions leave the covariance of fewer without full rank."""
NEAREST = 3
"""Precision's and recall's k (Kynkäänniemi et al. 2019)."""
CMMD_NETWORK = "clip-l"
"""The network whose features CMMD takes, and no other measure."""
Features = Float[Tensor, "n d"]


def is_small(real: int, generated: int, dimensions: int) -> bool:
    """Whether there are so few images that the measures scatter, and get intervals."""
    return min(real, generated) < max(SMALL, dimensions)


def distances(
    network: str, real: Features, generated: Features, draws: int, seed: int
) -> tuple[list[Measure], dict[str, int | float]]:
    """What one network says, and with which settings.

    draws: for the intervals that small samples get; 0 is none. Raises UserError.
    """
    few = min(len(real), len(generated))
    if not is_small(len(real), len(generated), real.shape[1]):
        draws = 0

    def measured(
        name: str, of_sets: Callable[[Features, Features], float], within: tuple[float, float], least: int
    ) -> Measure:
        value, interval = of_sets(real, generated), None
        if draws and few >= least:
            interval = bootstrap(of_sets, real, generated, draws, torch.Generator().manual_seed(seed), within)
        ends = (interval.low, interval.high) if interval else (None, None)
        return Measure(name, value, *ends, of=network, unit=KINDS[name].unit)

    infinite = float("inf")
    if network == CMMD_NETWORK:
        return [measured("cmmd", cmmd, (0, infinite), LEAST_FOR_INTERVAL)], {"cmmd_sigma": CMMD_SIGMA}
    kid = kernel_distance(real, generated, generator=torch.Generator().manual_seed(seed))
    found = [
        measured("fd", frechet_distance, (0, infinite), LEAST_FOR_INTERVAL),
        measured("kid", kernel_estimate, (-infinite, infinite), LEAST_FOR_INTERVAL),
        Measure("kid_spread", kid.spread, of=network, unit=KINDS["kid_spread"].unit),
    ]
    if few > NEAREST:
        least = 2 * (NEAREST + 1)  # a draw takes half
        found += [
            measured("precision", lambda a, b: precision_recall(a, b, NEAREST)[0], (0, 1), least),
            measured("recall", lambda a, b: precision_recall(a, b, NEAREST)[1], (0, 1), least),
        ]
    return found, {"kid_subsets": kid.subsets, "kid_subset_size": kid.size, "precision_recall_k": NEAREST}
