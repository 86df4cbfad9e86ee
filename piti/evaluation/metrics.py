"""Distances between two sets of features, and their values for random halves: pure functions of tensors.

All take features [N, D], compute in float64, and raise UserError for sets that cannot be compared: fewer than two rows,
NaN or infinite values, different D. `…_of_halves` compute the same for halves of two sets, for intervals, over all
draws at once, since the products of all rows, which draws share, dominate the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from piti.core.errors import UserError
from piti.evaluation.intervals import Halves, Values

Features = Float[Tensor, "n d"]
Chosen = Float[Tensor, "draws n"]
Kernel = Callable[[Features, Features], Float[Tensor, "n m"]]

SCALE = 1000
"""Factor of kernel distances, as usual for KID and CMMD."""
SUBSETS, SUBSET_SIZE = 100, 1000
"""Number and size of the subsets in KID's reference implementation (Bińkowski et al. 2018)."""
CMMD_SIGMA = 10.0
"""The Gaussian kernel's width in CMMD (Jayasumana et al. 2024, section 4)."""
_ROWS = 2048  # of a matrix of pairs in memory at once
_NEAR = 64  # nearest rows searched for those of a half


@dataclass(frozen=True)
class KernelDistance:
    """KID × 1000: for the whole sets, and over random subsets as in its reference implementation."""

    value: float
    """The unbiased estimate from all images."""
    mean: float
    """The mean over the subsets."""
    spread: float
    """The standard deviation over the subsets. It shrinks with their size, not with their number."""
    subsets: int
    size: int
    """Images per side in each subset."""


# Fréchet distance


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Fréchet distance of two Gaussians with the sets' moments (FID; Heusel et al. 2017, eq. 6).

    |μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) (Dowson & Landau 1982). With C = XᵀX of centred rows
    divided by √(N−1), the eigenvalues of C_a C_b are the squares of the singular values of X_a X_bᵀ, so that tr (C_a
    C_b)^½ is the sum of those. This needs no matrix square root, is accurate to rounding also for rank-deficient
    covariances, and costs min(N, D)³.
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


def frechet_of_halves(a: Features, b: Features, halves: Halves) -> Values:
    """`frechet_distance` of every draw, to a relative error of 1e-6.

    With G = X_a X_bᵀ of centred rows, a submatrix of the whole sets' product minus its row and column means, the
    eigenvalues of G Gᵀ are the squares of the singular values to be summed.
    """
    a, b = _comparable(a, b)
    centre = b.mean(0)
    a, b = a - centre, b - centre
    product = a @ b.T  # [N, M]
    lengths = a.square().sum(1), b.square().sum(1)
    found = []
    for left, right in zip(halves.a.to(a.device), halves.b.to(b.device), strict=True):
        means = a[left].mean(0), b[right].mean(0)
        shift = means[0] - means[1]
        spread = [
            (length[rows].sum() - len(rows) * mean @ mean) / (len(rows) - 1)
            for length, rows, mean in zip(lengths, (left, right), means, strict=True)
        ]
        gram = product[left][:, right]
        gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
        gram = gram if len(left) <= len(right) else gram.T
        squares = torch.linalg.eigvalsh(gram @ gram.T / ((len(left) - 1) * (len(right) - 1)))
        found.append(shift @ shift + sum(spread) - 2 * squares.clamp(min=0).sqrt().sum())
    return torch.stack(found).clamp(min=0).cpu()


# Kernel distances


def kernel_distance(
    a: Features,
    b: Features,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401), × 1000, with its spread over random subsets.

    The subsets have `size` images per side, drawn without replacement, or half of the smaller set if that is less:
    larger subsets would be nearly identical, without spread. generator: draws them (on the CPU); by default seeded with
    0. Raises UserError.
    """
    a, b = _comparable(a, b)
    if subsets < 1 or size < 2:
        raise UserError(
            f"kernel distance over {subsets} subsets of {size} images; expected at least 1 subset of at least 2"
        )
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


def _some(a: Features, size: int, generator: torch.Generator) -> Features:
    """`size` different rows."""
    return a[torch.randperm(len(a), generator=generator)[:size].to(a.device)]


def kernel_estimate(a: Features, b: Features) -> float:
    """Unbiased squared MMD with the kernel (x·y/D + 1)³, × 1000 (Bińkowski et al. 2018, section 4; its eq. 4).

    May be negative if both sets have the same distribution.
    """
    a, b = _comparable(a, b)
    n, m = len(a), len(b)
    within_a, within_b = (_sum(_cubic, x, x) - _own(x) for x in (a, b))
    return SCALE * (within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * _sum(_cubic, a, b) / (n * m))


def kernel_of_halves(a: Features, b: Features, halves: Halves) -> Values:
    """`kernel_estimate` of every draw."""
    a, b = _comparable(a, b)
    of_a, of_b = _chosen(halves.a, a), _chosen(halves.b, b)
    n, m = halves.a.shape[1], halves.b.shape[1]
    within = [_sums(_cubic, x, x, of, of) - of @ _owns(x) for x, of in ((a, of_a), (b, of_b))]
    across = _sums(_cubic, a, b, of_a, of_b)
    return SCALE * (within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / (n * m)).cpu()


def cmmd(a: Features, b: Features) -> float:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603): squared MMD of CLIP embeddings, × 1000.

    Gaussian kernel exp(−|x − y|²/2σ²) with σ = 10 on embeddings normalised to unit length, and the biased estimate over
    all pairs, including each row with itself, as in the authors' code: never negative, with a bias of about 1/N. Raises
    UserError, also for an embedding of length 0.
    """
    a, b = _unit(a, b)
    n, m = len(a), len(b)
    within = _sum(_gaussian, a, a) / n**2 + _sum(_gaussian, b, b) / m**2
    return max(SCALE * (within - 2 * _sum(_gaussian, a, b) / (n * m)), 0.0)


def cmmd_of_halves(a: Features, b: Features, halves: Halves) -> Values:
    """`cmmd` of every draw."""
    a, b = _unit(a, b)
    of_a, of_b = _chosen(halves.a, a), _chosen(halves.b, b)
    n, m = halves.a.shape[1], halves.b.shape[1]
    within = _sums(_gaussian, a, a, of_a, of_a) / n**2 + _sums(_gaussian, b, b, of_b, of_b) / m**2
    return (SCALE * (within - 2 * _sums(_gaussian, a, b, of_a, of_b) / (n * m))).clamp(min=0).cpu()


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
    """Sum over all pairs."""
    return sum(float(kernel(rows, y).sum()) for rows in x.split(_ROWS))


def _sums(kernel: Kernel, x: Features, y: Features, of_x: Chosen, of_y: Chosen) -> Values:
    """Sums over all pairs of the rows of each draw."""
    found = torch.zeros(len(of_x), dtype=x.dtype, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        found += (of_x[:, rows] @ kernel(x[rows], y) * of_y).sum(1)
    return found


def _chosen(rows: Integer[Tensor, "draws half"], x: Features) -> Chosen:
    """1 for the rows in a draw, 0 for the others."""
    found = torch.zeros(len(rows), len(x), dtype=x.dtype, device=x.device)
    return found.scatter_(1, rows.to(x.device), 1)


def _own(x: Features) -> float:
    """Sum of the cubic kernel of every row with itself."""
    return float(_owns(x).sum())


def _owns(x: Features) -> Float[Tensor, " n"]:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


# Precision and recall


def precision_recall(real: Features, fake: Features, k: int = 3) -> tuple[float, float]:
    """The shares of `fake` within the manifold of `real`, and of `real` within that of `fake`, 0 to 1.

    Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2: a set's manifold is the union of balls around its rows,
    with the distance to the k-th nearest other row as radius. Compare only values for equal numbers of images. Raises
    UserError, also for sets of at most k + 1 rows, whose balls contain the whole set.
    """
    real, fake = _comparable(real, fake)
    if k < 1 or min(len(real), len(fake)) < k + 2:
        raise UserError(
            f"precision and recall with k = {k} and {len(real)} real and {len(fake)} generated images; at least k + 2 "
            "images per side are needed, and k of at least 1"
        )
    centre = real.mean(0)  # keeps distances, reduces rounding
    real, fake = real - centre, fake - centre
    return _within(fake, real, k), _within(real, fake, k)


def _within(points: Features, manifold: Features, k: int) -> float:
    """The share of points within the manifold."""
    radii = torch.cat([found.kthvalue(k + 1, dim=1).values for found in _distances(manifold, manifold)])  # [M]
    inside = sum(int((found <= radii).any(1).sum()) for found in _distances(points, manifold))
    return inside / len(points)


def shares_of_halves(real: Features, fake: Features, halves: Halves, k: int = 3) -> Float[Tensor, "draws 2"]:
    """`precision_recall` of every draw; halves: of `real` and `fake`, of k + 2 rows at least."""
    real, fake = _comparable(real, fake)
    centre = real.mean(0)
    real, fake = real - centre, fake - centre
    of_real, of_fake = _chosen(halves.a, real).bool(), _chosen(halves.b, fake).bool()
    radii_real, radii_fake = _radii_of_halves(real, of_real, k), _radii_of_halves(fake, of_fake, k)
    near_fake, near_real = torch.zeros_like(of_real), torch.zeros_like(of_fake)  # [draws, N], [draws, M]
    for rows in torch.arange(len(real), device=real.device).split(_ROWS):
        found = _squared_distances(real[rows], fake)
        for draw in range(len(of_real)):
            near_fake[draw, rows] = (found <= radii_fake[draw]).any(1)
            near_real[draw] |= (found <= radii_real[draw, rows, None]).any(0)
    precision = (near_real & of_fake).sum(1).double() / halves.b.shape[1]
    recall = (near_fake & of_real).sum(1).double() / halves.a.shape[1]
    return torch.stack([precision, recall], dim=1).cpu()


def _radii_of_halves(x: Features, chosen: Bool[Tensor, "draws n"], k: int) -> Float[Tensor, "draws n"]:
    """The squared radius of every row's ball in the manifold of each draw; -1 for rows that are not in the draw.

    Of each row's `_NEAR` nearest, more than k are almost certainly in a draw; otherwise all rows are searched.
    """
    nearest = [found.topk(min(_NEAR, len(x)), largest=False) for found in _distances(x, x)]
    values, places = torch.cat([one.values for one in nearest]), torch.cat([one.indices for one in nearest])
    radii = x.new_full(chosen.shape, -1)
    for draw, of_draw in enumerate(chosen):
        before = of_draw[places].cumsum(1)  # number of the draw's rows up to each place
        found = values.gather(1, (before > k).int().argmax(1, keepdim=True)).squeeze(1)
        lacking = of_draw & (before[:, -1] <= k)
        if bool(lacking.any()):
            found[lacking] = _squared_distances(x[lacking], x[of_draw]).kthvalue(k + 1, dim=1).values
        radii[draw, of_draw] = found[of_draw]
    return radii


def _distances(x: Features, y: Features) -> Iterator[Float[Tensor, "rows m"]]:
    """Squared distances, in blocks of rows."""
    return (_squared_distances(rows, y) for rows in x.split(_ROWS))


def _squared_distances(x: Features, y: Features) -> Float[Tensor, "n m"]:
    """|x − y|² of all pairs; values within rounding of 0 are set to 0."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)  # [N, M]
    squared = lengths - 2 * x @ y.T
    return torch.where(squared > 1e-13 * lengths, squared, 0.0)


# Checks


def _comparable(a: Features, b: Features) -> tuple[Features, Features]:
    """Both sets in float64. Raises UserError unless they can be compared."""
    for which, x in (("first", a), ("second", b)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
            raise UserError(
                f"features of the {which} set are {list(x.shape)}; expected [N, D] of at least 2 images; give more "
                "images"
            )
        if not bool(x.isfinite().all()):
            row = int((~x.isfinite()).any(1).nonzero()[0])
            raise UserError(f"features of the {which} set, row {row}, are NaN or infinite; check that image")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"features of {a.shape[1]} and {b.shape[1]} dimensions; use the same network for both sets")
    return a.double(), b.double()
