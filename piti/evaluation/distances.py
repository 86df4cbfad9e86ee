"""Distances of generated images from real ones, in the features of one network, as measures with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from piti.evaluation.intervals import LEAST_FOR_INTERVAL, Halves, Interval, Values, interval_about, wilson
from piti.evaluation.metrics import (
    CMMD_SIGMA,
    cmmd,
    cmmd_of_halves,
    frechet_distance,
    frechet_of_halves,
    kernel_distance,
    kernel_of_halves,
    precision_recall,
    shares_of_halves,
)
from piti.evaluation.result import Measure

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
_POSITIVE = (0, math.inf)
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

    @cached_property
    def halves(self) -> Halves:
        """What the intervals of all measures are of."""
        generator = torch.Generator().manual_seed(self.seed)
        return Halves.drawn(len(self.real), len(self.generated), self.draws, generator)

    def drawn(
        self, of_halves: Callable[[Features, Features, Halves], Tensor], least: int = LEAST_FOR_INTERVAL
    ) -> Tensor | None:
        """What the draws give; None where no intervals are wanted, and of fewer than `least` images a side."""
        if not self.draws or min(len(self.real), len(self.generated)) < least:
            return None
        return of_halves(self.real, self.generated, self.halves)

    def measured(
        self,
        name: str,
        value: float,
        drawn: Values | None,
        within: tuple[float, float] = (-math.inf, math.inf),
        counted: int = 0,
    ) -> Measure:
        """A measure, with its interval by what the draws gave. counted: of how many images a share is."""
        interval = None if drawn is None else interval_about(value, drawn, within)
        if self.draws and counted and interval is None:  # the draws say nothing
            interval = Interval(*wilson(value * counted, counted))
        return Measure.taken(name, value, interval, self.network)

    def shares(self) -> list[Measure]:
        """Precision and recall, with Wilson's interval of their counts where the draws do not differ.

        Wilson's takes the other side's manifold as it is.
        """
        values = precision_recall(self.real, self.generated, NEAREST)
        drawn = self.drawn(partial(shares_of_halves, k=NEAREST), 2 * LEAST_FOR_SHARES)  # a draw takes half
        of_each = (None, None) if drawn is None else drawn.unbind(1)
        counts = len(self.generated), len(self.real)
        return [
            self.measured(name, value, found, (0, 1), count)
            for name, value, found, count in zip(("precision", "recall"), values, of_each, counts, strict=True)
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
        value = cmmd(real, generated)
        return [sets.measured("cmmd", value, sets.drawn(cmmd_of_halves), _POSITIVE)], {"cmmd_sigma": CMMD_SIGMA}
    kid = kernel_distance(real, generated, generator=torch.Generator().manual_seed(seed))
    found = [
        sets.measured("fd", frechet_distance(real, generated), sets.drawn(frechet_of_halves), _POSITIVE),
        sets.measured("kid", kid.value, sets.drawn(kernel_of_halves)),
        Measure.taken("kid_spread", kid.spread, of=network),
        *(sets.shares() if min(len(real), len(generated)) >= LEAST_FOR_SHARES else []),
    ]
    return found, {"kid_subsets": kid.subsets, "kid_subset_size": kid.size, "precision_recall_k": NEAREST}
