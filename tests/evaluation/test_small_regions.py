"""Connected regions, compared with a flood fill, and small objects of known size."""

from __future__ import annotations

import numpy as np
import torch

from piti.evaluation.masks import connected, small_regions


def flooded(labels: np.ndarray) -> np.ndarray:
    """Regions of equal values, corners touching, one pixel at a time."""
    numbers = np.full(labels.shape, -1)
    for start in np.ndindex(*labels.shape):
        if numbers[start] >= 0:
            continue
        number, waiting = numbers.max() + 1, [start]
        while waiting:
            y, x = waiting.pop()
            if not (0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]) or numbers[y, x] >= 0:
                continue
            if labels[y, x] == labels[start]:
                numbers[y, x] = number
                waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return numbers


def spiral(side: int) -> np.ndarray:
    """A line one pixel wide that winds inwards, longer than any straight one."""
    picture = np.zeros((side, side), int)
    y = x = 0
    step, (dy, dx) = side - 1, (0, 1)
    picture[0, 0] = 1
    while step > 0:
        for _ in range(2 if step < side - 1 else 3):
            for _ in range(step):
                y, x = y + dy, x + dx
                picture[y, x] = 1
            dy, dx = dx, -dy
        step -= 2
    return picture


def test_regions_are_those_of_a_flood_fill() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 3, (13, 17)), rng.integers(0, 2, (20, 9)), spiral(21), spiral(20)]
    pictures += [np.zeros((4, 5), int), np.arange(20).reshape(4, 5), rng.integers(0, 2, (1, 30)), np.eye(7, dtype=int)]
    for picture in pictures:
        found = connected(torch.from_numpy(picture)).numpy()
        wanted = flooded(picture)
        pairs = {(int(a), int(b)) for a, b in zip(found.flat, wanted.flat, strict=True)}
        assert len(pairs) == wanted.max() + 1 == found.max() + 1  # one number for one, both ways


def test_a_spiral_is_one_region() -> None:
    assert flooded(spiral(21)).max() == 1
    assert connected(torch.from_numpy(spiral(101))).max() == 1


def test_small_objects_cover_less_than_a_hundredth() -> None:
    truth = torch.zeros(40, 50, dtype=torch.long)  # 2000 pixels: less than 20 are small
    truth[2:6, 2:7] = 1  # 20 pixels: not small
    truth[10, 10:29] = 1  # 19
    truth[20, 20] = truth[21, 21] = 2  # corners touch: one region
    truth[30, 30] = truth[32, 32] = 2  # do not touch: two
    truth[38, :5] = 3  # not judged
    found = small_regions(truth, truth != 3)
    assert sorted(zip(found.classes.tolist(), found.pixels.tolist(), strict=True)) == [(1, 19), (2, 1), (2, 1), (2, 2)]
    inside = found.ids >= 0
    assert inside.sum() == 23
    assert (truth[inside] == found.classes[found.ids[inside]]).all()


def test_what_is_ignored_parts_and_still_counts_as_image() -> None:
    truth = torch.zeros(10, 100, dtype=torch.long)
    truth[0, :12] = 1  # 12 pixels of 1000
    judged = torch.ones_like(truth, dtype=torch.bool)
    assert small_regions(truth, judged).classes.tolist() == []
    judged[:, 6] = False  # two pieces, of 6 and of 5
    found = small_regions(truth, judged)
    assert (found.classes.tolist(), sorted(found.pixels.tolist())) == ([1, 1], [5, 6])


def test_half_of_the_pixels_make_an_object_found() -> None:
    truth = torch.zeros(40, 50, dtype=torch.long)
    truth[5, 5:9] = 1
    truth[15, 5:9] = 1
    regions = small_regions(truth, torch.ones_like(truth, dtype=torch.bool))
    hit = torch.zeros_like(truth, dtype=torch.bool)
    hit[5, 5:7] = hit[15, 5] = True
    assert regions.found(hit).tolist() == [True, False]
    assert small_regions(torch.zeros_like(truth), truth >= 0).found(hit).tolist() == []
