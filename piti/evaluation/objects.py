"""Similarity of objects of one class within an image (intra-image collapse).

The paper states it as a limitation: similar objects within one image share style and colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from piti.conditions import MaskCondition
from piti.core.connected_components import connected
from piti.core.progress import OnProgress
from piti.evaluation.masks import laid_under
from piti.evaluation.per_condition import ConditionValues, Framed, Groups, batches, check_same_size, condition_file

LEAST = 0.004
"""Regions that cover a smaller share of the image are ignored: they have too few pixels for colour statistics."""
WITHIN, PAIRS, ACROSS, PAIRS_ACROSS = range(4)
"""Indices of the values per class, see `ObjectDistances`."""


@dataclass(frozen=True)
class Objects:
    """Connected regions of one class each, for classes with at least two of them."""

    ids: Integer[Tensor, "h w"]
    """Index of the region at each pixel, from 0; -1 for none."""
    classes: Integer[Tensor, " regions"]

    @classmethod
    def of(cls, truth: Integer[Tensor, "h w"], count: int) -> Objects:
        """truth: class indices; indices from `count` on are ignored."""
        kept = torch.where((truth >= 0) & (truth < count), truth.long(), -1)
        ids = connected(kept)
        pixels = torch.bincount(ids.flatten())
        classes = torch.full_like(pixels, -1)
        classes[ids.flatten()] = kept.flatten()
        large = (classes >= 0) & (pixels >= LEAST * truth.numel())
        several = torch.bincount(classes[large], minlength=count) > 1
        chosen = large & several[classes.clamp(min=0)]
        numbers = torch.where(chosen, chosen.cumsum(0) - 1, -1)
        return cls(numbers[ids], classes[chosen])

    @property
    def twos(self) -> list[tuple[int, int]]:
        """All pairs of regions of one class."""
        classes = self.classes.tolist()
        return [(i, j) for i, j in combinations(range(len(classes)), 2) if classes[i] == classes[j]]

    def looks(self, image: np.ndarray) -> Float[Tensor, "regions 6"]:
        """Mean and standard deviation of each channel in each region of an 8-bit image [h, w, 3], in levels."""
        pixels = torch.from_numpy(image.astype(np.float64))
        rows = []
        for number in range(len(self.classes)):
            inside = pixels[self.ids == number]  # [pixels, 3]
            rows.append(torch.cat([inside.mean(0), inside.std(0, correction=0)]))
        return torch.stack(rows) if rows else torch.zeros(0, 6, dtype=torch.float64)


_NONE = Objects(torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


@dataclass(frozen=True)
class ObjectDistances:
    """Distances between the colours of objects of one class; conditions without two objects of a class are omitted.

    rows: for each condition and class, the sum of the distances within a sample (WITHIN) and their number (PAIRS), and
    the same between these two places in two samples of the condition (ACROSS, PAIRS_ACROSS).
    """

    classes: tuple[str, ...]
    stems: tuple[str, ...]
    rows: Float[Tensor, "conditions 4 K"]

    @classmethod
    def of(cls, classes: tuple[str, ...], rows: Mapping[str, Float[Tensor, "4 K"]]) -> ObjectDistances:
        """rows: those of each condition with two objects of a class, by its name."""
        empty = torch.zeros(0, 4, len(classes), dtype=torch.float64)
        return cls(classes, tuple(rows), torch.stack(list(rows.values())) if rows else empty)

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """`object_distance`: the mean distance within an image, in levels; `object_distance_across`: between the same
        places in different samples; `object_ratio`: their ratio, 1 if objects in one image are no more similar than
        those in different samples. Over all classes, and for each by its name.
        """
        counts = (self.rows if chosen is None else self.rows[chosen]).sum(0)  # [4, K]
        found = self._of(counts.sum(1), "")
        for k, name in enumerate(self.classes):
            found |= self._of(counts[:, k], name)
        return found

    @staticmethod
    def _of(counts: Float[Tensor, " 4"], name: str) -> ConditionValues:
        within, pairs, across, others = counts.tolist()
        found: ConditionValues = {}
        if pairs:
            found["object_distance", name] = within / pairs
        if others:
            found["object_distance_across", name] = across / others
        if pairs and others and across:
            found["object_ratio", name] = (within / pairs) / (across / others)
        return found


def object_distances(
    groups: Groups,
    conditions: Mapping[str, Path],
    condition: MaskCondition,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> ObjectDistances:
    """Compare the objects of every image. groups, conditions, resize: see `agreement`.

    The result is empty if no mask has two objects of one class. Raises AlignmentError as `agreement` does, and for
    samples of one mask that differ in size.
    """
    count = condition.classes.count
    rows: dict[str, Tensor] = {}
    first: Framed | None = None
    objects, looks = _NONE, list[Tensor]()
    for found in batches(groups, resize, batch, on_step):
        for one in found:
            if first is None or first.stem != one.stem:  # samples come by condition, so that only one mask is in memory
                first, objects, looks = one, _objects(one, conditions, condition), []
            check_same_size(first, one)
            looks.append(objects.looks(np.asarray(one.image)))
            if len(objects.classes) and len(looks) == len(groups[one.stem]):
                rows[one.stem] = _row(objects, looks, count)
    return ObjectDistances.of(condition.classes.names, rows)


def _objects(one: Framed, conditions: Mapping[str, Path], condition: MaskCondition) -> Objects:
    raw = condition.load(condition_file(one.stem, conditions, one.path))
    return Objects.of(laid_under(one, raw, condition, conditions), condition.classes.count)


def _row(objects: Objects, samples: list[Tensor], count: int) -> Float[Tensor, "4 K"]:
    row = torch.zeros(4, count, dtype=torch.float64)
    for i, j in objects.twos:
        k = int(objects.classes[i])
        for a, sample in enumerate(samples):
            row[WITHIN, k] += torch.dist(sample[i], sample[j])
            row[PAIRS, k] += 1
            for other in (*samples[:a], *samples[a + 1 :]):
                row[ACROSS, k] += torch.dist(sample[i], other[j])
                row[PAIRS_ACROSS, k] += 1
    return row
