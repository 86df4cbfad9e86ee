"""Distances of generated images from real ones, in the features of one network, as measures with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from piti.evaluation.metrics import (
    CMMD_SIGMA,
    LEAST_FOR_INTERVAL,
    Interval,
    bootstrap,
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_estimate,
    precision_recall,
    wilson,
)
from piti.evaluation.result import KINDS, Measure

SMALL = 2048
"""With fewer images a side, or fewer than the features have dimensions, a sample is called small: Inception's 2,048
dimensions leave the covariance of fewer without full rank."""
NEAREST = 3
"""Precision's and recall's k (Kynkäänniemi et al. 2019)."""
LEAST_FOR_SHARES = NEAREST + 2
"""Images a side that precision and recall need at least."""
NOISE = 20
"""Numbers of fewer images a side are noise."""
CMMD_NETWORK = "clip-l"
"""The network whose features CMMD takes, and no other measure."""
Features = Float[Tensor, "n d"]


def is_small(real: int, generated: int, dimensions: int) -> bool:
    """Whether there are so few images that the measures scatter, and get intervals."""
    return min(real, generated) < max(SMALL, dimensions)


@dataclass(frozen=True)
class _Sets:
    """Features of both sides by one network, and how they are measured."""

    network: str
    real: Features
    generated: Features
    draws: int
    seed: int

    def measured(
        self,
        name: str,
        of_sets: Callable[[Features, Features], float],
        within: tuple[float, float] = (-math.inf, math.inf),
        least: int = LEAST_FOR_INTERVAL,
        counted: int = 0,
    ) -> Measure:
        """A measure, with its interval of at least `least` images a side. counted: of how many images a share is."""
        value, interval = of_sets(self.real, self.generated), None
        if self.draws and min(len(self.real), len(self.generated)) >= least:
            generator = torch.Generator().manual_seed(self.seed)
            interval = bootstrap(of_sets, self.real, self.generated, self.draws, generator, within)
        if self.draws and counted and interval is None:  # the draws say nothing
            interval = Interval(*wilson(value * counted, counted))
        ends = (interval.low, interval.high) if interval else (None, None)
        return Measure(name, value, *ends, of=self.network, unit=KINDS[name].unit)

    def shares(self) -> list[Measure]:
        """Precision and recall, with Wilson's interval of their counts where the draws do not differ.

        Wilson's takes the other side's manifold as it is.
        """

        def share(k: int) -> Callable[[Features, Features], float]:
            return lambda real, generated: precision_recall(real, generated, NEAREST)[k]

        least = 2 * LEAST_FOR_SHARES  # a draw takes half
        return [
            self.measured("precision", share(0), (0, 1), least, len(self.generated)),
            self.measured("recall", share(1), (0, 1), least, len(self.real)),
        ]


def distances(
    network: str, real: Features, generated: Features, draws: int, seed: int
) -> tuple[list[Measure], dict[str, int | float]]:
    """What one network says, and with which settings.

    draws: for the intervals that small samples get; 0 is none. Raises UserError.
    """
    small = is_small(len(real), len(generated), real.shape[1])
    sets = _Sets(network, real, generated, draws if small else 0, seed)
    if network == CMMD_NETWORK:
        return [sets.measured("cmmd", cmmd, (0, math.inf))], {"cmmd_sigma": CMMD_SIGMA}
    kid = kernel_distance(real, generated, generator=torch.Generator().manual_seed(seed))
    found = [
        sets.measured("fd", frechet_distance, (0, math.inf)),
        sets.measured("kid", kernel_estimate),
        Measure("kid_spread", kid.spread, of=network, unit=KINDS["kid_spread"].unit),
        *(sets.shares() if min(len(real), len(generated)) >= LEAST_FOR_SHARES else []),
    ]
    return found, {"kid_subsets": kid.subsets, "kid_subset_size": kid.size, "precision_recall_k": NEAREST}
