"""Agreement of images with their sketches: the given lines, and the edges of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from PIL import Image
from torch import Tensor

from piti.conditions import SketchCondition
from piti.conditions.lines import city_block_distance
from piti.core.progress import OnProgress
from piti.data.edges import LineSpec, draw_lines, thinned
from piti.evaluation.per_condition import AlignmentError, ConditionValues, Groups, batches, condition_file

NEAR = 2
"""Distance in pixels up to which a line counts as kept, and an edge as meant."""
FAR = 1 / 4
"""Distances are clipped at this share of the image's short side."""


class LineScores(NamedTuple):
    """Agreement of two sets of lines."""

    kept: float
    """The share of the given lines' pixels that have an edge within `NEAR` pixels."""
    meant: float
    """The share of the edges' pixels that have a given line within `NEAR` pixels."""
    to_edges: float
    """The mean distance of the given lines' pixels to the nearest edge, in pixels."""
    to_lines: float
    """The mean distance of the edges' pixels to the nearest given line, in pixels."""

    @property
    def chamfer(self) -> float:
        """The mean of both distances."""
        return (self.to_edges + self.to_lines) / 2


def compare_lines(edges: Bool[Tensor, "h w"], given: Bool[Tensor, "h w"], far: float) -> LineScores:
    """Chamfer distances (Barrow et al. 1977) in pixels by city block, each clipped at `far`.

    Without any edge, nothing is kept or meant, and both distances are `far`. Raises AlignmentError if no lines are
    given.
    """
    if not given.any():
        raise AlignmentError("the sketch has no lines to compare with; remove blank sketches")
    if not edges.any():
        return LineScores(0.0, 0.0, float(far), float(far))
    there, back = (city_block_distance(of)[at].double().clamp(max=far) for of, at in ((edges, given), (given, edges)))
    kept, meant = ((distance <= NEAR).double().mean().item() for distance in (there, back))
    return LineScores(kept, meant, there.mean().item(), back.mean().item())


def edges_of(image: Image.Image) -> Bool[Tensor, "h w"]:
    """The edges of an RGB image, one pixel wide, from the built-in extractor.

    Lines shorter than 10 pixels of a 256 px image, and always those shorter than 4 px, are omitted.
    """
    short, usual = min(image.size), LineSpec()
    drawn = min(short, usual.side)  # side at which lines are extracted, before enlarging
    spec = LineSpec(shortest=max(4, round(usual.shortest * drawn / usual.side)))
    lines = draw_lines(np.asarray(image.convert("RGB")), spec)
    return thinned(lines) if short > usual.side else lines


@dataclass(frozen=True)
class LineAgreement:
    """Agreement with sketches; rows: the values of `MEASURED` for each condition, averaged over its samples."""

    stems: tuple[str, ...]
    rows: Float[Tensor, "conditions 6"]
    blank: tuple[str, ...]
    """Conditions without a line, which are skipped."""
    images: int

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """Means over the conditions.

        `line_distance`, the chamfer distance in percent of the image's diagonal; in pixels of the images' own size
        `line_distance_px` and its halves, `lines_to_edges_px` and `edges_to_lines_px`; `lines_kept` and `edges_meant`
        in percent.
        """
        rows = self.rows if chosen is None else self.rows[chosen]
        return {(name, ""): value for name, value in zip(MEASURED, rows.mean(0).tolist(), strict=True)}


MEASURED = ("line_distance", "line_distance_px", "lines_to_edges_px", "edges_to_lines_px", "lines_kept", "edges_meant")


def line_distance(
    groups: Groups,
    conditions: Mapping[str, Path],
    condition: SketchCondition,
    resize: int | None = None,
    on_step: OnProgress | None = None,
) -> LineAgreement:
    """Distances between the lines of sketches and the edges of their images.

    Lines are cropped and resized to each image's size as for a network, without losing lines, then thinned. The best
    reachable distance is not 0, since edges and sketches come from different methods; evaluate the photographs of the
    same sketches as a reference. Raises ConditionError and ImageError for files that cannot be read, AlignmentError for
    images that do not match their sketches, and if no sketch has a line.
    """
    found: dict[str, list[list[float]]] = {stem: [] for stem, paths in groups.items() if paths}
    images = 0
    for one in (image for several in batches(groups, resize, 1, on_step) for image in several):
        raw = condition.load(condition_file(one.stem, conditions, one.path))
        box = one.box(raw.shape[-1], raw.shape[-2], str(conditions[one.stem]))
        given = thinned(condition.crop_resize(raw, box, one.size)[0] > 0)
        if given.any():
            scores = compare_lines(edges_of(one.image), given, FAR * min(one.size))
            found[one.stem].append(_row(scores, math.hypot(*one.size)))
            images += 1
    stems = tuple(stem for stem, rows in found.items() if rows)
    if not stems:
        raise AlignmentError(f"none of the {len(found)} sketches has a line; give the sketches of these images")
    rows = torch.tensor([np.mean(found[stem], axis=0).tolist() for stem in stems], dtype=torch.float64)
    return LineAgreement(stems, rows, tuple(stem for stem, rows in found.items() if not rows), images)


def _row(scores: LineScores, diagonal: float) -> list[float]:
    """In the order of `MEASURED`."""
    distances = [100 * scores.chamfer / diagonal, scores.chamfer, scores.to_edges, scores.to_lines]
    return [*distances, 100 * scores.kept, 100 * scores.meant]
