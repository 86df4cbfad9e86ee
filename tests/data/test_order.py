from __future__ import annotations

import numpy as np
import pytest

from piti.data.order import ByShards, Shuffled


def walked(orders: list, steps: range, batch: int) -> dict[int, int]:
    """Indices by number, over all ranks."""
    found: dict[int, int] = {}
    for step in steps:
        for order in orders:
            for place in order.places(step, batch):
                assert place.number not in found
                found[place.number] = next(iter(place.candidates))
    return found


@pytest.mark.parametrize(
    ("counts", "window", "world", "batch"),
    [
        ((5, 3, 7, 1), 2, 1, 3),
        ((5, 3, 7, 1), 2, 2, 3),
        ((5, 0, 3), 4, 3, 2),
        ((10, 11, 12, 9, 8, 7), 2, 4, 5),
        ((3,), 8, 5, 2),
        ((2, 2), 1, 3, 7),
    ],
)
def test_every_epoch_has_every_sample_once_over_all_ranks(counts, window, world, batch) -> None:
    total, epochs = sum(counts), 5
    orders = [ByShards(counts, window, 3, rank, world) for rank in range(world)]
    found = walked(orders, range(epochs * total // (world * batch) + 2), batch)
    epoch_orders = [[found[epoch * total + k] for k in range(total)] for epoch in range(epochs)]
    for order in epoch_orders:
        assert sorted(order) == list(range(total))
    if total > 4:
        assert len({tuple(order) for order in epoch_orders}) == epochs


def test_no_rank_is_ahead_by_more_than_a_sample() -> None:
    """Whatever the number of samples: after the same steps all are in the same epoch, or at its border."""
    counts, world, batch = (7, 4, 9, 3), 3, 2
    orders = [ByShards(counts, 2, 0, rank, world) for rank in range(world)]
    for step in range(200):
        epochs = [place.number // sum(counts) for order in orders for place in order.places(step, batch)]
        assert max(epochs) - min(epochs) <= 1
    reached = [order.places(200, 1)[0].number // sum(counts) for order in orders]
    assert max(reached) - min(reached) <= 1


def test_a_place_depends_on_numbers_alone() -> None:
    def at(order: ByShards, step: int) -> list[tuple[int, list[int]]]:
        return [(place.number, list(place.candidates)) for place in order.places(step, 4)]

    uninterrupted = ByShards((9, 5, 6, 8), 2, 1, 1, 2)
    expected = [at(uninterrupted, step) for step in range(30)]
    for step in (29, 3, 17, 3):
        assert at(ByShards((9, 5, 6, 8), 2, 1, 1, 2), step) == expected[step]
        assert at(uninterrupted, step) == expected[step]
    assert [at(ByShards((9, 5, 6, 8), 2, 2, 1, 2), step) for step in range(30)] != expected


def test_a_rank_reads_its_own_shards() -> None:
    """All but those at the two ends of its part."""
    world, shards = 4, 32
    used = []
    for rank in range(world):
        order = ByShards([10] * shards, 4, 0, rank, world)
        first = [next(iter(place.candidates)) // 10 for place in order.places(0, 80)]
        used.append(set(first))
        assert len(used[-1]) <= shards // world + 1
    assert set().union(*used) == set(range(shards))


def test_within_a_window_samples_are_shuffled_and_shards_mixed() -> None:
    """Neighbours come from the same shard no more often than chance has it, and windows from few shards."""
    window, per_shard = 4, 50
    windows = []
    order = ByShards([per_shard] * 16, window, 0, 0, 1, lambda now, soon: windows.append((now, soon)))
    indices = np.array([next(iter(place.candidates)) for place in order.places(0, 16 * per_shard)])
    shards = indices.reshape(4, -1) // per_shard
    assert all(len(set(row.tolist())) == window for row in shards)
    together = (shards[:, 1:] == shards[:, :-1]).mean()
    assert abs(together - 1 / window) < 0.06
    inside = np.concatenate([(indices % per_shard)[shards.reshape(-1) == k] for k in range(16)])
    assert abs(np.corrcoef(np.tile(np.arange(per_shard), 16), inside)[0, 1]) < 0.15
    assert [set(now) for now, _ in windows] == [set(row.tolist()) for row in shards]
    assert [set(soon) for _, soon in windows[:-1]] == [set(now) for now, _ in windows[1:]]


def test_those_that_may_stand_in_are_of_the_same_window_and_all_of_it() -> None:
    order = ByShards([3] * 6, 2, 0, 0, 1)
    for place in order.places(0, 18):
        candidates = list(place.candidates)
        assert len(candidates) == len(set(candidates)) == 6
        assert len({index // 3 for index in candidates}) == 2


def test_a_whole_permutation_is_shared_by_all_ranks() -> None:
    one = walked([Shuffled(10, 5, 0, 1)], range(10), 6)
    three = walked([Shuffled(10, 5, rank, 3) for rank in range(3)], range(10), 2)
    assert one == three
