"""Agreement of images with their masks, measured with a segmentation network.

K is the number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from piti.conditions import MaskCondition
from piti.core.connected_components import connected
from piti.core.progress import OnProgress
from piti.evaluation.per_condition import AlignmentError, ConditionValues, Framed, Groups, batches, condition_file
from piti.evaluation.segmentation import LabelMap, Segmenter

SMALL = 0.01
"""Regions that cover a smaller share of the image than this are small objects."""


@dataclass(frozen=True)
class SmallRegions:
    """The small objects of a mask.

    A small object is an 8-connected region of one class that covers less than a share of the whole image, including
    ignored pixels. A strip of pavement between two cars counts as well as a sign, since masks do not distinguish things
    from stuff.
    """

    ids: Integer[Tensor, "h w"]
    """Index of the small region at each pixel, from 0; -1 for none."""
    classes: Integer[Tensor, " regions"]
    """Class of each region."""
    pixels: Integer[Tensor, " regions"]
    """Size of each region in pixels."""

    def found(self, hit: Bool[Tensor, "h w"]) -> Bool[Tensor, " regions"]:
        """Whether at least half of each region's pixels are in `hit`."""
        counted = torch.bincount(self.ids[hit & (self.ids >= 0)], minlength=len(self.pixels))
        return 2 * counted >= self.pixels


def small_regions(truth: Integer[Tensor, "h w"], judged: Bool[Tensor, "h w"], share: float = SMALL) -> SmallRegions:
    """The small objects of class indices `truth`, among the pixels in `judged`."""
    kept = torch.where(judged, truth.long(), -1)
    ids = connected(kept)
    pixels = torch.bincount(ids.flatten())
    classes = torch.full_like(pixels, -1)
    classes[ids.flatten()] = kept.flatten()
    small = (classes >= 0) & (pixels < share * truth.numel())
    numbers = torch.where(small, small.cumsum(0) - 1, -1)
    return SmallRegions(numbers[ids], classes[small], pixels[small])


HIT, TRUTH, GUESS, SMALL_HIT, SMALL_TRUTH, SMALL_GUESS, REGIONS, FOUND = range(8)
"""Indices of the counts per class, see `Agreement`."""


@dataclass(frozen=True)
class Agreement:
    """Agreement with masks, counted in pixels of the images' own size.

    rows: for each condition, summed over its samples, and each class: correctly predicted pixels (HIT), pixels of the
    class (TRUTH), pixels predicted as the class (GUESS); the same three within small objects only (see `SmallRegions`);
    small objects (REGIONS), and those with at least half of their pixels correct (FOUND). Pixels that the mask ignores,
    or whose class the network has no label for (`unjudged`), are not counted, not even as GUESS. confusion: pixels by
    true class (row) and predicted class (column; the last is none of the classes).
    """

    classes: tuple[str, ...]
    stems: tuple[str, ...]
    rows: Integer[Tensor, "conditions 8 K"]
    confusion: Integer[Tensor, "K K1"]
    labels: LabelMap
    images: int

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Classes that the network has no label for."""
        return self.labels.unnamed_classes

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """In percent: `miou` over the classes in the masks, `iou` of each of these, `pixel_accuracy`.

        For small objects only: `small_recall`, the share of their pixels that are correct; `small_iou`, mIoU of their
        classes over their pixels, ignoring predictions elsewhere; `small_found`, the share of objects with at least
        half of their pixels correct; and `small_regions`, their number.
        """
        rows = self.rows if chosen is None else self.rows[chosen]
        return measures_of(rows.sum(0), self.classes)


def measures_of(counts: Integer[Tensor, "8 K"], classes: tuple[str, ...]) -> ConditionValues:
    """The measures of summed rows, see `Agreement.measures`; those without any pixel are omitted."""
    each = intersection_over_union(counts[HIT], counts[TRUTH], counts[GUESS])
    found: ConditionValues = {}
    if each:
        found["miou", ""] = 100 * sum(each.values()) / len(each)
        found["pixel_accuracy", ""] = 100 * int(counts[HIT].sum()) / int(counts[TRUTH].sum())
        found |= {("iou", classes[k]): 100 * value for k, value in each.items()}
    small = intersection_over_union(counts[SMALL_HIT], counts[SMALL_TRUTH], counts[SMALL_GUESS])
    found["small_regions", ""] = float(counts[REGIONS].sum())
    if small:
        found["small_recall", ""] = 100 * int(counts[SMALL_HIT].sum()) / int(counts[SMALL_TRUTH].sum())
        found["small_iou", ""] = 100 * sum(small.values()) / len(small)
        found["small_found", ""] = 100 * int(counts[FOUND].sum()) / int(counts[REGIONS].sum())
    return found


def intersection_over_union(
    hit: Integer[Tensor, " K"], truth: Integer[Tensor, " K"], guess: Integer[Tensor, " K"]
) -> dict[int, float]:
    """IoU by class, for classes with pixels in `truth` only."""
    union = truth + guess - hit
    return {k: int(hit[k]) / int(union[k]) for k in range(len(truth)) if truth[k] > 0}


def confusion_of(
    truth: Integer[Tensor, "h w"], guess: Integer[Tensor, "h w"], where: Bool[Tensor, "h w"], classes: int
) -> Integer[Tensor, "K K1"]:
    """Pixels by true class (row) and predicted class (column; the last, for negative `guess`, is none), int64."""
    seen = torch.where(guess < 0, classes, guess)[where]
    codes = truth[where].long() * (classes + 1) + seen
    return torch.bincount(codes, minlength=classes * (classes + 1)).view(classes, classes + 1)


def count_pixels(
    truth: Integer[Tensor, "h w"],
    guess: Integer[Tensor, "h w"],
    judged: Bool[Tensor, "h w"],
    classes: int,
    share: float = SMALL,
) -> tuple[Integer[Tensor, "8 K"], Integer[Tensor, "K K1"]]:
    """A row of `Agreement` and the confusion, of one image.

    truth, guess: class indices, guess negative for none; judged: pixels that count; share: upper limit of a small
    object's share of the image.
    """
    confusion = confusion_of(truth, guess, judged, classes)
    regions = small_regions(truth, judged, share)
    small = confusion_of(truth, guess, regions.ids >= 0, classes)
    there = torch.bincount(regions.classes, minlength=classes)
    found = torch.bincount(regions.classes[regions.found(truth == guess)], minlength=classes)
    return torch.stack([*_margins(confusion), *_margins(small), there, found]), confusion


def _margins(confusion: Integer[Tensor, "K K1"]) -> list[Integer[Tensor, " K"]]:
    """HIT, TRUTH and GUESS of each class."""
    return [confusion.diagonal(), confusion.sum(1), confusion[:, :-1].sum(0)]


def agreement(
    groups: Groups,
    conditions: Mapping[str, Path],
    condition: MaskCondition,
    segmenter: Segmenter,
    labels: LabelMap,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> Agreement:
    """Agreement of images with their masks.

    groups, conditions: samples and mask by the condition's stem; a mask is cropped like the image, to its centre square
    or not at all, and resized to it by nearest neighbour. labels: from the segmenter's labels to the condition's
    classes, see `match_labels`. resize: use the centre square of each image, resized to this side. Raises
    ConditionError for masks with ids outside the classes, ImageError for files that are not images, AlignmentError for
    images that do not match their masks, and for masks without any class of the segmenter.
    """
    count = condition.classes.count
    _check_matched(labels, segmenter, condition)
    row_of = {stem: row for row, stem in enumerate(stem for stem, paths in groups.items() if paths)}
    rows = torch.zeros(len(row_of), 8, count, dtype=torch.int64)
    confusion = torch.zeros(count, count + 1, dtype=torch.int64)
    known = torch.tensor([name not in labels.unnamed_classes for name in labels.classes])
    masks: dict[str, Tensor] = {}
    images = 0
    for found in batches(groups, resize, batch, on_step):
        guesses = labels(segmenter([one.image for one in found]))  # [N, h, w]
        for one, guess in zip(found, guesses, strict=True):
            if one.stem not in masks:
                masks = {one.stem: condition.load(condition_file(one.stem, conditions, one.path))}
            truth = laid_under(one, masks[one.stem], condition, conditions)
            judged = truth < count
            judged &= known[torch.where(judged, truth, 0)]
            counts, pixels = count_pixels(truth, guess, judged, count)
            rows[row_of[one.stem]] += counts
            confusion += pixels
        images += len(found)
    _check_judged(rows, images, segmenter)
    return Agreement(condition.classes.names, tuple(row_of), rows, confusion, labels, images)


def _check_matched(labels: LabelMap, segmenter: Segmenter, condition: MaskCondition) -> None:
    if (labels.labels, labels.classes) != (segmenter.labels, condition.classes.names):
        raise AlignmentError(
            f"{segmenter.source}: its labels are matched with other classes than those of the masks; call match_labels "
            "again"
        )


def _check_judged(rows: Integer[Tensor, "conditions 8 K"], images: int, segmenter: Segmenter) -> None:
    if not rows[:, TRUTH].any():
        raise AlignmentError(
            f"the masks of {images} images contain no pixel of a class that {segmenter.source} has a label for; give "
            "masks with classes, or aliases for its labels"
        )


def laid_under(
    one: Framed, raw: Integer[Tensor, "1 h w"], condition: MaskCondition, conditions: Mapping[str, Path]
) -> Integer[Tensor, "h2 w2"]:
    """Class indices of an image's part of its mask, int64, at the image's size."""
    box = one.box(raw.shape[-1], raw.shape[-2], str(conditions[one.stem]))
    return condition.crop_resize(raw, box, one.size)[0].long()
