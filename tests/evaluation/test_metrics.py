"""Distances compared with closed forms, brute force, the referee and torchmetrics; intervals with repeated sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.evaluation import metrics
from piti.evaluation.intervals import Halves, Interval, interval_about, percentiles
from piti.evaluation.metrics import (
    cmmd,
    cmmd_of_halves,
    frechet_distance,
    frechet_of_halves,
    kernel_distance,
    kernel_estimate,
    kernel_of_halves,
    precision_recall,
    shares_of_halves,
)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(measure: Callable[[Tensor, Tensor], Any], a: Tensor, b: Tensor, halves: Halves) -> Tensor:
    """A measure of the halves of every draw, one after the other."""
    pairs = zip(halves.a, halves.b, strict=True)
    return torch.tensor([measure(a[left], b[right]) for left, right in pairs], dtype=torch.float64)


def maybe_interval(
    measure: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, draws: int, generator: torch.Generator,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:  # fmt: skip
    halves = Halves.drawn(len(a), len(b), draws, generator)
    return interval_about(measure(a, b), each(measure, a, b, halves), within)


def interval_of(*arguments: Any, **options: Any) -> Interval:
    """That which there is."""
    found = maybe_interval(*arguments, **options)
    assert found is not None
    return found


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=drawn(seed), dtype=torch.float64)


def with_moments(mean: Tensor, root: Tensor, n: int, seed: int = 0) -> Tensor:
    """n rows whose mean is exactly `mean` and whose covariance is exactly `root rootᵀ`."""
    x = normal(n, len(mean), seed)
    white = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)
    return white @ root.T + mean


def traced(a: Tensor, b: Tensor) -> Tensor:
    """tr (A B)^½ = tr (A^½ B A^½)^½ of covariances."""
    values, vectors = torch.linalg.eigh(a)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    return torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()


# Fréchet distance


def test_gaussians_of_known_moments() -> None:
    """Independent coordinates: |μ_a − μ_b|² + Σ (σ_a − σ_b)²."""
    mean_a, mean_b = torch.tensor([[0.0, 1, 2, -3], [1, 1, -1, 0.5]], dtype=torch.float64)
    std_a, std_b = torch.tensor([[1.0, 2, 0.5, 3], [2, 2, 0.1, 1]], dtype=torch.float64)
    a, b = with_moments(mean_a, std_a.diag(), 40), with_moments(mean_b, std_b.diag(), 25, seed=1)
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("n", [7, 13, 60])  # fewer rows than dimensions, about as many, more
def test_covariances_that_do_not_commute(n: int) -> None:
    a, b = normal(n, 12) @ normal(12, 12, 2), normal(n + 3, 12, 1) @ normal(12, 12, 3) + 0.3
    roots = traced(a.T.cov(), b.T.cov())
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)  # the root of a rounded 0 is 1e-8


def test_a_flat_set_is_measured_exactly() -> None:
    """Turned into many more dimensions, sets keep their distance, though their covariances lose their rank."""
    a, b = normal(30, 3), normal(20, 3, 1) * torch.tensor([1.0, 4, 0.2]) + 1
    turn = torch.linalg.qr(normal(200, 3, 2)).Q
    assert frechet_distance(a @ turn.T, b @ turn.T) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 300), (300, 5)])
def test_equal_sets(n: int, d: int) -> None:
    a = 10 * normal(n, d) + 3
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_its_square() -> None:
    a, shift = normal(20, 50), normal(1, 50, 1)
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)


def test_it_is_symmetric() -> None:
    a, b = normal(20, 8), normal(30, 8, 1) * 2
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_as_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=_Given(6))
    fid.set_dtype(torch.float64)
    a, b = normal(40, 6), normal(50, 6, 1) * 1.5 + 0.2
    fid.update(a, real=True)
    fid.update(b, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-6)


def test_kernel_distance_as_torchmetrics() -> None:
    module = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(40, 6), normal(40, 6, 1) * 1.5 + 0.2
    kid = module.KernelInceptionDistance(feature=_Given(6), subsets=1, subset_size=40)
    kid.update(a, real=True)
    kid.update(b, real=False)
    assert kernel_estimate(a, b) == pytest.approx(1000 * float(kid.compute()[0]), rel=1e-6)


class _Given(nn.Module):
    """A network whose features are what it is given."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 64), (90, 70, 16)])
def test_as_the_referee(judge: ModuleType, n: int, m: int, d: int) -> None:
    a, b = normal(n, d).abs(), 1.3 * normal(m, d, 1).abs() + 0.1
    assert frechet_distance(a, b) == pytest.approx(judge.frechet(a.numpy(), b.numpy()), abs=1e-6)
    assert kernel_estimate(a, b) == pytest.approx(judge.kernel_distance(a.numpy(), b.numpy()), abs=1e-6)
    assert kernel_distance(a, b).value == kernel_estimate(a, b)


# Kernel distances


def test_kernel_distance_by_hand() -> None:
    """In one dimension the kernel is (xy + 1)³."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.0], [1.0]])

    def k(x: float, y: float) -> float:
        return (x * y + 1) ** 3

    between = sum(k(x, y) for x, y in product((0, 1), (2, -1, 1))) / 6
    expected = k(0, 1) + 2 * (k(2, -1) + k(2, 1) + k(-1, 1)) / 6 - 2 * between
    assert kernel_estimate(a, b) == pytest.approx(1000 * expected)


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(23, 5), normal(17, 5, 1)
    whole = kernel_estimate(a, b), cmmd(a, b), precision_recall(a, b)
    monkeypatch.setattr(metrics, "_ROWS", 4)
    assert kernel_estimate(a, b) == pytest.approx(whole[0])
    assert cmmd(a, b) == pytest.approx(whole[1])
    assert precision_recall(a, b) == whole[2]


def test_halves_of_one_set_are_at_no_kernel_distance() -> None:
    x = normal(200, 10)
    a, b = x[:100], x[100:]
    found = kernel_distance(a, b)
    interval = interval_of(kernel_estimate, a, b, 60, drawn())
    assert interval.low < 0 < interval.high
    assert abs(found.mean) < found.spread
    apart = interval_of(kernel_estimate, a, b + 0.5, 60, drawn())
    assert apart.low > 0  # and others are at some


def test_subsets() -> None:
    a, b = normal(30, 4), normal(40, 4, 1) + 0.5
    found = kernel_distance(a, b, subsets=50, size=10, generator=drawn(1))
    assert (found.subsets, found.size) == (50, 10)
    assert found.spread > 0
    assert abs(found.mean - found.value) < found.spread  # unbiased, whatever the size
    assert kernel_distance(a, b, subsets=50, size=10, generator=drawn(1)) == found
    assert kernel_distance(a, b).size == 15  # half of the smaller set, where KID's 1,000 are not there
    assert kernel_distance(a[:2], b).size == 2
    fewer = kernel_distance(a, b, subsets=50, size=4, generator=drawn(1))
    assert fewer.spread > found.spread


def test_cmmd_by_hand() -> None:
    a = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    b = torch.tensor([[1.0, 1.0], [-2.0, 0.0], [0.0, 7.0]])
    unit_a, unit_b = [(1.0, 0.0), (0.0, 1.0)], [(0.5**0.5, 0.5**0.5), (-1.0, 0.0), (0.0, 1.0)]

    def mean(xs: list[tuple[float, float]], ys: list[tuple[float, float]]) -> float:
        return sum(math.exp(-(math.dist(x, y) ** 2) / 200) for x, y in product(xs, ys)) / (len(xs) * len(ys))

    expected = 1000 * (mean(unit_a, unit_a) + mean(unit_b, unit_b) - 2 * mean(unit_a, unit_b))
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="length 0"):
        cmmd(torch.zeros(2, 2), b)


# Precision and recall


def test_precision_and_recall_of_placed_points() -> None:
    """A row of reals one apart: with k = 3 the balls of those at its ends reach 3, with k = 1 all reach 1."""
    real = torch.arange(10.0)[:, None]
    fake = torch.tensor([[-3.0], [-3.1], [4.5], [12.0], [12.1], [30.0]])
    assert precision_recall(real, fake) == (3 / 6, 1)  # -3, 4.5 and 12 are within
    fake = torch.tensor([[2.0], [2.6], [7.5], [7.8], [30.0], [30.2]])  # balls of 0.6, 0.6, 0.3, 0.3, 0.2, 0.2
    assert precision_recall(real, fake, k=1) == (4 / 6, 3 / 10)  # the reals 2, 3 and 8 are within


def test_disjoint_and_equal_sets() -> None:
    a = normal(30, 6)
    assert precision_recall(a, a + 1000) == (0, 0)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a[:10]) == (1, pytest.approx(precision_recall(a[:10], a)[0]))


def test_one_image_over_and_over_recalls_that_alone() -> None:
    real = 5 + normal(20, 300).float()
    fake = real[:1].repeat(12, 1)
    assert precision_recall(real, fake) == (1, 1 / 20)


def test_precision_by_brute_force() -> None:
    real, fake = normal(25, 3), 1.2 * normal(20, 3, 1) + 0.3

    def share(points: Tensor, manifold: Tensor) -> float:
        radii = [sorted(math.dist(x, y) for y in manifold.tolist())[3] for x in manifold.tolist()]
        hits = [
            any(math.dist(p, x) <= r for x, r in zip(manifold.tolist(), radii, strict=True)) for p in points.tolist()
        ]
        return sum(hits) / len(hits)

    assert precision_recall(real, fake) == (share(fake, real), share(real, fake))


# Intervals


def test_the_interval_repeats_and_stays_within() -> None:
    a, b = normal(20, 4), normal(20, 4, 1)
    interval = interval_of(frechet_distance, a, b, 30, drawn(3))
    assert interval == maybe_interval(frechet_distance, a, b, 30, drawn(3))
    assert interval != maybe_interval(frechet_distance, a, b, 30, drawn(4))
    assert interval.low <= frechet_distance(a, b) <= interval.high
    ends = (interval.low, (interval.low + interval.high) / 2)
    cut = interval_of(frechet_distance, a, b, 30, drawn(3), within=ends)
    assert (cut.low, cut.high) == ends


def test_its_width_is_the_mean_s_standard_error() -> None:
    """Of a difference of means, where that is known: ±1.96 √(σ_a²/n + σ_b²/m)."""
    a, b = 2 * normal(100, 1), normal(50, 1, 1)
    interval = interval_of(lambda x, y: float(x.mean() - y.mean()), a, b, 2000, drawn())
    error = 1.96 * math.sqrt(float(a.var() / 100 + b.var() / 50))
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.1)
    assert (interval.high + interval.low) / 2 == pytest.approx(float(a.mean() - b.mean()), abs=0.1 * error)


def test_it_covers_what_other_samples_of_its_size_give() -> None:
    """Fréchet distance of 40 images a side: resampled with repetition, every value would lie above the estimate."""
    spread = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    sets = [(spread * normal(40, 6, 2 * k), 1.2 * normal(40, 6, 2 * k + 1) + 0.3) for k in range(60)]
    usual = sum(frechet_distance(a, b) for a, b in sets) / len(sets)
    intervals = [interval_of(frechet_distance, a, b, 60, drawn(k)) for k, (a, b) in enumerate(sets[:30])]
    assert sum(interval.low <= usual <= interval.high for interval in intervals) >= 24


@pytest.mark.parametrize(("n", "m", "d"), [(24, 31, 5), (24, 31, 40), (31, 24, 5), (90, 140, 6)])
def test_halves_all_at_once_as_one_after_the_other(n: int, m: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More and fewer rows than dimensions, either side the larger; with few rows looked at and held at once."""
    monkeypatch.setattr(metrics, "_ROWS", 13)
    monkeypatch.setattr(metrics, "_NEAR", 7)  # so that now and then fewer than k + 1 of them are in a half
    a, b = normal(n, d) + 1, 1.3 * normal(m, d, 1) + 1.2
    b[:3] = a[:3]  # pairs at distance 0
    halves = Halves.drawn(n, m, 25, drawn(2))
    assert torch.allclose(frechet_of_halves(a, b, halves), each(frechet_distance, a, b, halves), rtol=1e-6)
    assert torch.allclose(kernel_of_halves(a, b, halves), each(kernel_estimate, a, b, halves), rtol=1e-9, atol=1e-9)
    assert torch.allclose(cmmd_of_halves(a, b, halves), each(cmmd, a, b, halves), rtol=1e-9, atol=1e-9)
    assert torch.equal(shares_of_halves(a, b, halves), each(precision_recall, a, b, halves))
    assert torch.equal(shares_of_halves(a, b, halves, k=1), each(lambda x, y: precision_recall(x, y, 1), a, b, halves))


def test_draws_that_do_not_differ_give_no_interval() -> None:
    a = normal(20, 4)
    assert maybe_interval(lambda x, y: precision_recall(x, y)[0], a, a + 1000, 30, drawn()) is None
    assert maybe_interval(frechet_distance, torch.ones(20, 4), torch.ones(20, 4) + 1, 30, drawn()) is None
    rounding = torch.tensor([3.0, 3.0 + 4e-16, 3.0], dtype=torch.float64)
    assert percentiles(rounding) is None
    found = percentiles(torch.linspace(0, 1, 401, dtype=torch.float64))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.025), pytest.approx(0.975))


# Bad input


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, kernel_estimate, cmmd, precision_recall])
def test_sets_that_cannot_be_compared(measure) -> None:
    good, broken = normal(8, 4), normal(8, 4)
    broken[5, 2] = math.nan
    with pytest.raises(UserError, match=r"second set are \[1, 4\]; expected .* at least 2"):
        measure(good, good[:1])
    with pytest.raises(UserError, match="first set are"):
        measure(good[0], good)
    with pytest.raises(UserError, match="of 4 and 3 dimensions"):
        measure(good, good[:, :3])
    with pytest.raises(UserError, match="first set, row 5, are NaN"):
        measure(broken, good)
    with pytest.raises(UserError, match="second set, row 0, are NaN or infinite"):
        measure(good, good / 0)


def test_numbers_that_make_no_sense() -> None:
    a = normal(8, 4)
    for k in (7, 8):
        with pytest.raises(UserError, match=rf"k = {k} and 8 real .* at least k \+ 2 images"):
            precision_recall(a, a, k=k)
    assert precision_recall(a, a, k=6) == (1, 1)
    with pytest.raises(UserError, match="0 subsets"):
        kernel_distance(a, a, subsets=0)
    with pytest.raises(UserError, match="at least 4 images per side, got 3"):
        Halves.drawn(8, 3, 20, drawn())
    with pytest.raises(UserError, match="at least 2 draws, got 1"):
        Halves.drawn(8, 8, 1, drawn())
