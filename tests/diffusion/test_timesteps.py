"""Training timesteps."""

from __future__ import annotations

import math

import pytest
import torch

from piti.core.errors import UserError
from piti.diffusion.timesteps import (
    HISTORY,
    EvenTimesteps,
    SecondMomentTimesteps,
    partly_last,
    timesteps_for,
    timesteps_named,
)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_timesteps_are_uniform_and_evenly_spread(size: int) -> None:
    draws = torch.stack([timesteps_for(range(k * size, (k + 1) * size), 1000, 0) for k in range(2000)])
    assert draws.dtype == torch.int64
    assert 0 <= draws.min() < 5
    assert 994 < draws.max() <= 999
    gaps = torch.cat([draws.sort(dim=1).values, draws.min(dim=1, keepdim=True).values + 1000], dim=1).diff(dim=1)
    assert gaps.max() <= 1.9 * 1000 / size + 1  # no batch leaves out more than two strata in a row
    first = draws[:, 0].double()  # each place of the batch is uniform by itself
    assert abs(first.mean() - 499.5) < 4 * 288.7 / math.sqrt(2000)
    assert abs(first.std() - 288.7) < 15


def test_timesteps_come_from_the_seed_and_the_samples_numbers_alone() -> None:
    first, again, other = (timesteps_for(range(16), 1000, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    parts = [timesteps_for(numbers, 1000, 1) for numbers in (range(5), range(5, 16))]
    assert torch.equal(torch.cat(parts), first)
    assert len(timesteps_for([10**15, 10**15 + 1], 1000, 1).unique()) == 2  # exact also for large numbers


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_beside_the_share_that_has_the_last_every_timestep_is_drawn(share: float) -> None:
    t = partly_last(range(20_000), 100, share, 0)
    counts = t.bincount(minlength=100) / 20_000
    torch.testing.assert_close(counts[:-1], torch.full((99,), (1 - share) / 100), atol=3e-4, rtol=0)
    assert counts[-1] == pytest.approx(share + (1 - share) / 100, abs=1e-3)
    assert torch.equal(partly_last(range(50), 100, 0.0, 3), timesteps_for(range(50), 100, 3))
    assert partly_last(range(50), 100, 1.0, 3).unique().tolist() == [99]


def filled(sizes: list[float]) -> SecondMomentTimesteps:
    """Draws over timesteps whose losses are always these."""
    timesteps = SecondMomentTimesteps(len(sizes))
    for _ in range(HISTORY):
        timesteps.remember(torch.arange(len(sizes)), torch.tensor(sizes))
    return timesteps


def test_timesteps_are_even_until_each_has_its_losses() -> None:
    timesteps = SecondMomentTimesteps(4)
    for _ in range(HISTORY):
        timesteps.remember(torch.tensor([0, 1, 2]), torch.tensor([9.0, 1.0, 1.0]))
    t, counts = timesteps.drawn(range(50), 3)
    assert torch.equal(t, EvenTimesteps(4).drawn(range(50), 3)[0])
    assert torch.equal(counts, torch.ones(50))


def test_timesteps_are_drawn_in_proportion_to_the_root_of_the_second_moment() -> None:
    timesteps = filled([1.0, 3.0, 4.0, 0.0])
    # 0.999 √E[L²] / Σ √E[L²] + 0.001 / T, by hand
    expected = torch.tensor([0.125125, 0.374875, 0.49975, 0.00025], dtype=torch.float64)
    torch.testing.assert_close(timesteps.probabilities, expected)
    t, counts = timesteps.drawn(range(20_000), 0)
    torch.testing.assert_close(t.bincount(minlength=4) / 20_000, expected.float(), atol=2e-4, rtol=0)
    # the weighted mean of the losses is that of even draws: (1 + 3 + 4 + 0) / 4
    losses = torch.tensor([1.0, 3.0, 4.0, 0.0])[t]
    assert (counts * losses).mean() == pytest.approx(2.0, rel=1e-3)


def test_the_last_losses_alone_count_by_their_second_moment() -> None:
    timesteps = filled([100.0, 1.0])
    for loss in [1.0] * (HISTORY - 1) + [7.0]:
        timesteps.remember(torch.tensor([0]), torch.tensor([loss]))
    size = math.sqrt((HISTORY - 1 + 49) / HISTORY)
    assert timesteps.probabilities[0].item() == pytest.approx(0.999 * size / (size + 1) + 0.0005)


def test_losses_that_are_all_nothing_draw_evenly() -> None:
    assert filled([0.0, 0.0]).probabilities.tolist() == [0.5, 0.5]


def test_the_history_survives_a_checkpoint() -> None:
    timesteps, again = filled([1.0, 3.0, 0.5]), SecondMomentTimesteps(3)
    again.load_state_dict(timesteps.state_dict())
    assert torch.equal(again.probabilities, timesteps.probabilities)
    timesteps.remember(torch.tensor([0]), torch.tensor([50.0]))
    assert not torch.equal(again.probabilities, timesteps.probabilities)


def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(UserError, match="'second-moment'; did you mean 'second_moment'"):
        timesteps_named("second-moment")
