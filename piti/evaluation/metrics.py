"""Distances between two sets of features, and how far they scatter: pure functions of tensors.

Every one takes features [N, D], is computed in float64, and raises UserError for sets that cannot be compared: fewer
than two rows, NaN or infinite values, different D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from piti.core.errors import UserError

Features = Float[Tensor, "n d"]
Kernel = Callable[[Features, Features], Float[Tensor, "n m"]]

SCALE = 1000
"""What kernel distances are multiplied by, as KID and CMMD are reported."""
SUBSETS, SUBSET_SIZE = 100, 1000
"""How many subsets of which size KID's reference averages over (Bińkowski et al. 2018)."""
CMMD_SIGMA = 10.0
"""The Gaussian kernel's width in CMMD (Jayasumana et al. 2024, section 4)."""
LEAST_FOR_INTERVAL = 4
"""Of fewer images no two halves of two can be drawn."""
_WIDTH = 1e-12  # of an interval that has none but for rounding
_Z = 1.959963984540054  # two-sided 95%
_ROWS = 2048  # of a matrix of pairs that are held at once


@dataclass(frozen=True)
class KernelDistance:
    """KID × 1000: of the whole sets, and over random subsets as its reference reports it."""

    value: float
    """The unbiased estimate from all images."""
    mean: float
    """The mean over the subsets."""
    spread: float
    """The standard deviation over the subsets. It shrinks with their size, not with their number."""
    subsets: int
    size: int
    """Images a side in each subset."""


@dataclass(frozen=True)
class Interval:
    """The ends of a 95% interval."""

    low: float
    high: float


# Fréchet distance


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Fréchet distance of two Gaussians with the sets' moments (FID; Heusel et al. 2017, eq. 6).

    |μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½), which Dowson & Landau (1982) found. With C = XᵀX of centred rows
    divided by √(N−1), the eigenvalues of C_a C_b are the squares of the singular values of X_a X_bᵀ, so that
    tr (C_a C_b)^½ is the sum of those. No root of a matrix and no difference of near equals is taken: it is exact to
    rounding for covariances without full rank too, and costs min(N, D)³.
    """
    a, b = _comparable(a, b)
    shift = a.mean(0) - b.mean(0)  # [D]
    x, y = _root(a), _root(b)  # [≤D, D]
    trace = torch.linalg.svdvals(x @ y.T).sum()
    distance = shift @ shift + x.square().sum() + y.square().sum() - 2 * trace
    return max(float(distance), 0.0)


def _root(a: Features) -> Float[Tensor, "r d"]:
    """X with XᵀX the covariance of the rows (divided by N − 1), with at most D rows."""
    x = (a - a.mean(0)) / math.sqrt(len(a) - 1)
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x


# Kernel distances


def kernel_distance(
    a: Features,
    b: Features,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401), × 1000, with its spread over random subsets.

    The subsets have `size` images a side, drawn without repetition, or half of the smaller set where that is less:
    subsets of nearly everything would be nearly the same, and show no spread. generator: draws them (on the CPU); by
    default one that is seeded with 0. Raises UserError.
    """
    a, b = _comparable(a, b)
    if subsets < 1 or size < 2:
        raise UserError(f"kernel distance over {subsets} subsets of {size} images; give at least 1 of at least 2")
    generator = generator or torch.Generator().manual_seed(0)
    size = min(size, max(2, min(len(a), len(b)) // 2))
    found = torch.empty(subsets, dtype=torch.float64)
    for k in range(subsets):
        found[k] = kernel_estimate(_some(a, size, generator), _some(b, size, generator))
    return KernelDistance(
        value=kernel_estimate(a, b),
        mean=float(found.mean()),
        spread=float(found.std(correction=0)),
        subsets=subsets,
        size=size,
    )


def kernel_estimate(a: Features, b: Features) -> float:
    """Unbiased squared MMD with the kernel (x·y/D + 1)³, × 1000 (Bińkowski et al. 2018, section 4; its eq. 4).

    Below 0 now and then where the sets are of one distribution.
    """
    a, b = _comparable(a, b)
    n, m = len(a), len(b)
    within_a, within_b = (_sum(_cubic, x, x) - _own(x) for x in (a, b))
    return SCALE * (within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * _sum(_cubic, a, b) / (n * m))


def cmmd(a: Features, b: Features) -> float:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603): squared MMD of CLIP embeddings, × 1000.

    Gaussian kernel exp(−|x − y|²/2σ²) with σ = 10 on embeddings of unit length (which they are brought to here), and
    the estimate that has every pair in it, each row's with itself too, as the authors' code does: never below 0, and
    above it by about 1/N for small sets. Raises UserError, also for an embedding of length 0.
    """
    a, b = _unit(a, b)
    n, m = len(a), len(b)
    within = _sum(_gaussian, a, a) / n**2 + _sum(_gaussian, b, b) / m**2
    return max(SCALE * (within - 2 * _sum(_gaussian, a, b) / (n * m)), 0.0)


def _unit(a: Features, b: Features) -> tuple[Features, Features]:
    a, b = _comparable(a, b)
    lengths = [x.norm(dim=1, keepdim=True) for x in (a, b)]
    if any(bool((length == 0).any()) for length in lengths):
        raise UserError("an embedding of length 0 has no direction; check the network's weights")
    return a / lengths[0], b / lengths[1]


def _cubic(x: Features, y: Features) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Features, y: Features) -> Float[Tensor, "n m"]:
    return torch.exp(_squared_distances(x, y) / (-2 * CMMD_SIGMA**2))


def _sum(kernel: Kernel, x: Features, y: Features) -> float:
    """Over all pairs."""
    return sum(float(kernel(rows, y).sum()) for rows in x.split(_ROWS))


def _own(x: Features) -> float:
    """The cubic kernel of every row with itself, summed."""
    return float(((x.square().sum(1) / x.shape[1] + 1) ** 3).sum())


# Precision and recall


def precision_recall(real: Features, fake: Features, k: int = 3) -> tuple[float, float]:
    """The shares of `fake` within the manifold of `real`, and of `real` within that of `fake`, 0 to 1.

    Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2: a set's manifold is the union of balls around its rows,
    each as large as the distance to its k-th nearest other row. Compare only values of equal numbers of images.
    Raises UserError, also for sets of k + 1 or fewer, whose balls reach as far as the whole set.
    """
    real, fake = _comparable(real, fake)
    if k < 1 or min(len(real), len(fake)) < k + 2:
        raise UserError(
            f"precision and recall with k = {k} and {len(real)} real and {len(fake)} generated images; "
            f"at least k + 2 images a side are needed, and k of at least 1"
        )
    centre = real.mean(0)  # distances are as they were, and round less
    real, fake = real - centre, fake - centre
    return _within(fake, real, k), _within(real, fake, k)


def _within(points: Features, manifold: Features, k: int) -> float:
    """The share of points that lie in a ball of the manifold."""
    radii = torch.cat([found.kthvalue(k + 1, dim=1).values for found in _distances(manifold, manifold)])  # [M]
    inside = sum(int((found <= radii).any(1).sum()) for found in _distances(points, manifold))
    return inside / len(points)


def _distances(x: Features, y: Features) -> Iterator[Float[Tensor, "rows m"]]:
    """Squared, a number of rows at a time."""
    return (_squared_distances(rows, y) for rows in x.split(_ROWS))


def _squared_distances(x: Features, y: Features) -> Float[Tensor, "n m"]:
    """|x − y|² of all pairs; what is 0 but for rounding is 0."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)  # [N, M]
    squared = lengths - 2 * x @ y.T
    return torch.where(squared > 1e-13 * lengths, squared, 0.0)


# Intervals


def bootstrap(
    measure: Callable[[Features, Features], float],
    a: Features,
    b: Features,
    draws: int,
    generator: torch.Generator,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """A 95% interval of `measure(a, b)` by half-sampling, both sides at once; `within`: the values it may have.

    The usual bootstrap misleads here. It draws with repetition; repeated images are pairs at distance 0 and lower a
    covariance's rank, and of 20 to 200 images 97% and more of its values of FD, KID and CMMD lay above the estimate.
    Instead each draw takes half of each side without repetition (Politis & Romano 1994; McCarthy 1969): for a statistic
    that averages over images its variance over draws, (1/(n/2) − 1/n) σ², is just the estimate's own, σ²/n. FD's and
    CMMD's bias grows with fewer images, so the draws' 2.5 and 97.5 percentiles are taken about the draws' mean, and put
    about the estimate. On Gaussians these intervals held the estimate's expectation in 97% of trials and more; they
    were right in width for precision, and 1.3 to 1.7 times as wide as need be for the others.

    What it says: how far the value scatters for sets of these sizes; models compared must have equal numbers of images.
    It does not say how far FD of so few images lies above FD of very many. Of an odd number of images it is somewhat
    wider; sets that are paired are resampled as if they were not, which makes it wider too. None where the draws do
    not differ: that a share is 0 in all of them does not make it sure.

    generator: on the CPU. Raises UserError for fewer than `LEAST_FOR_INTERVAL` images a side.
    """
    a, b = _comparable(a, b)
    least = min(len(a), len(b))
    if least < LEAST_FOR_INTERVAL:
        raise UserError(f"an interval needs at least {LEAST_FOR_INTERVAL} images a side, got {least}; leave it out")
    if draws < 2:
        raise UserError(f"an interval from {draws} draws; give at least 2, 200 are usual")
    found = torch.empty(draws, dtype=torch.float64)
    for k in range(draws):
        found[k] = measure(_some(a, len(a) // 2, generator), _some(b, len(b) // 2, generator))
    drawn = percentiles(found - found.mean() + measure(a, b))
    if drawn is None:
        return None
    low, high = (min(max(end, within[0]), within[1]) for end in (drawn.low, drawn.high))
    return Interval(low, high) if high - low > _WIDTH else None


def percentiles(draws: Float[Tensor, " draws"]) -> Interval | None:
    """The 2.5 and 97.5 percentiles, float64; None where these are one number: nothing was learned of its scatter."""
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high) if high - low > _WIDTH * max(1.0, abs(low), abs(high)) else None


def wilson(wins: float, count: int, z: float = _Z) -> tuple[float, float]:
    """Score interval of a share (Wilson, 1927), 95% for the default z. wins: of `count`, halves allowed."""
    share = wins / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - half if wins > 0 else 0.0), (centre + half if wins < count else 1.0)


def _some(a: Features, size: int, generator: torch.Generator) -> Features:
    """`size` different rows."""
    return a[torch.randperm(len(a), generator=generator)[:size].to(a.device)]


# What may be compared


def _comparable(a: Features, b: Features) -> tuple[Features, Features]:
    """Both in float64. Raises UserError unless they can be compared."""
    for which, x in (("first", a), ("second", b)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
            raise UserError(
                f"features of the {which} set are {list(x.shape)}; expected [N, D] of at least 2 images, "
                "give more images"
            )
        if not bool(x.isfinite().all()):
            row = int((~x.isfinite()).any(1).nonzero()[0])
            raise UserError(f"features of the {which} set, row {row}, are NaN or infinite; look at that image")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions; take one network for both sets")
    return a.double(), b.double()
