"""Agreement of images with their depth conditions, measured with a depth estimation network.

N is the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from piti.conditions import GeometryCondition
from piti.conditions.depth_files import read_depth
from piti.conditions.mask import nearest
from piti.core.progress import OnProgress
from piti.evaluation.per_condition import AlignmentError, ConditionValues, Framed, Groups, batches, condition_file
from piti.evaluation.pretrained import ByPretrained, JudgeError, Named, load_pretrained

_WHAT = "a network for estimating depth"
_OPTION = "depth"
_OF_DISTANCE = ("zoedepth", "glpn", "depth_pro")
"""Kinds of network whose estimates grow with distance."""
_CLOSE = 1.25


@runtime_checkable
class DepthEstimator(Named, Protocol):
    """Images of one size => depth, or its inverse, up to scale and shift."""

    @property
    def inverse(self) -> bool:
        """Whether larger values are nearer."""
        ...

    def __call__(self, images: list[Image.Image]) -> Float[Tensor, "N h w"]:
        """Estimates at the images' size, float32 on the CPU."""
        ...


@dataclass(frozen=True)
class TransformersDepth(ByPretrained):
    """A network of AutoModelForDepthEstimation, with the preprocessing of its `preprocessor_config.json`."""

    inverse: bool

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Float[Tensor, "N h w"]:
        """Estimates [N, h, w] for images of one size, float32 on the CPU. Raises JudgeError."""
        inputs = self.judge.prepared(images)
        found = self.judge.network(pixel_values=inputs["pixel_values"])
        estimates = self._finished(found, [(image.height, image.width) for image in images])
        if not torch.isfinite(estimates).all():
            raise JudgeError(
                "estimates are NaN or infinite", remedy="download its weights again", option=_OPTION, value=self.source
            )
        return estimates.float().cpu()

    def _finished(self, found: object, sizes: list[tuple[int, int]]) -> Float[Tensor, "N h w"]:
        """Resized to the images' size by the processor (ZoeDepth's removes its padding), or else bilinearly."""
        finish = getattr(self.judge.processor, "post_process_depth_estimation", None)
        if finish is None:
            depth: Tensor = found.predicted_depth  # type: ignore[attr-defined]
            return F.interpolate(depth[:, None], sizes[0], mode="bilinear", align_corners=False)[:, 0]
        known = signature(finish).parameters
        settings = {key: sizes for key in ("source_sizes", "target_sizes") if key in known}
        return torch.stack([one["predicted_depth"] for one in finish(found, **settings)])


def open_depth(source: str, device: torch.device, inverse: bool | None = None) -> TransformersDepth:
    """Load a depth network from a hub repository or local folder.

    inverse: whether its estimates decrease with distance; by default, except for ZoeDepth, GLPN, Depth Pro, and
    networks with metric depth according to their config. Raises JudgeError.
    """
    judge = load_pretrained(source, {"DepthEstimation": ()}, _WHAT, _OPTION, device)
    config = judge.network.config
    metric = getattr(config, "depth_estimation_type", "relative") == "metric"
    return TransformersDepth(judge, not (metric or config.model_type in _OF_DISTANCE) if inverse is None else inverse)


# Arithmetic


class DepthScores(NamedTuple):
    """Errors over the pixels with known depth d, with the estimate d' in the same scale (Eigen et al. 2014)."""

    abs_rel: float
    """Mean of |d' − d| / d."""
    rmse_log: float
    """Root of the mean of (ln d' − ln d)²."""
    close: float
    """Share of pixels with max(d'/d, d/d') < 1.25."""


def depth_scores(estimate: Float[Tensor, "h w"], depth: Float[Tensor, "h w"], inverse: bool) -> DepthScores | None:
    """Errors of an estimate up to scale and shift; None if fewer than two pixels have a known depth.

    depth: in metres, 0 or less in holes. The estimate is fitted to inverse depth, or to depth, with the least-squares
    scale and shift (MiDaS, Ranftl et al. 2020, section 5), then clipped to the range of the known depths, since values
    outside, such as 1/d' ≤ 0, may not be depths.
    """
    known = depth > 0
    true, said = depth[known].double(), estimate[known].double()
    if len(true) < 2:
        return None
    wanted = 1 / true if inverse else true
    fitted = fit(said, wanted).clamp(wanted.min(), wanted.max())
    found = 1 / fitted if inverse else fitted
    ratio = torch.maximum(found / true, true / found)
    return DepthScores(
        ((found - true).abs() / true).mean().item(),
        ratio.log().square().mean().sqrt().item(),
        (ratio < _CLOSE).double().mean().item(),
    )


def fit(values: Float[Tensor, " n"], wanted: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """s · values + t with the least-squares s and t: argmin Σ (s · values + t − wanted)²."""
    centred = values - values.mean()
    spread = centred.square().sum()
    scale = (centred * (wanted - wanted.mean())).sum() / spread if spread > 0 else 0.0
    return scale * centred + wanted.mean()


# Files


@dataclass(frozen=True)
class DepthAgreement:
    """Agreement with depth; rows: `DepthScores` of each condition, averaged over its samples."""

    stems: tuple[str, ...]
    rows: Float[Tensor, "conditions 3"]
    blank: tuple[str, ...]
    """Conditions without known depth within their images, which are skipped."""
    images: int

    def measures(self, chosen: Integer[Tensor, " draws"] | None = None) -> ConditionValues:
        """Means over the conditions: `depth_error` (AbsRel), `depth_rmse_log`, and `depth_close` in percent."""
        rows = self.rows if chosen is None else self.rows[chosen]
        abs_rel, rmse_log, close = rows.mean(0).tolist()
        return {("depth_error", ""): abs_rel, ("depth_rmse_log", ""): rmse_log, ("depth_close", ""): 100 * close}


def depth_error(
    groups: Groups,
    conditions: Mapping[str, Path],
    condition: GeometryCondition,
    estimator: DepthEstimator,
    resize: int | None = None,
    batch: int = 8,
    on_step: OnProgress | None = None,
) -> DepthAgreement:
    """Errors of the depth estimated from images, compared with their conditions.

    The condition files are read in metres, not normalised and clipped as for the network, without holes, cropped like
    the image and resized to it by nearest neighbour. Raises ConditionError and ImageError for unreadable files,
    AlignmentError for images that do not match, and if no depth is known at all.
    """
    found: dict[str, list[DepthScores]] = {stem: [] for stem, paths in groups.items() if paths}
    for several in batches(groups, resize, batch, on_step):
        estimates = estimator([one.image for one in several])  # [N, h, w]
        for one, estimate in zip(several, estimates, strict=True):
            depth = known_depth(one, condition_file(one.stem, conditions, one.path), condition)
            scores = depth_scores(estimate, depth, estimator.inverse)
            found[one.stem] += [] if scores is None else [scores]
    stems = tuple(stem for stem, scores in found.items() if scores)
    if not stems:
        raise AlignmentError(
            f"none of the {len(found)} conditions has a known depth within its image; check condition.unit and "
            "condition.far"
        )
    rows = torch.stack([torch.tensor(found[stem], dtype=torch.float64).mean(0) for stem in stems])
    blank = tuple(stem for stem, scores in found.items() if not scores)
    return DepthAgreement(stems, rows, blank, sum(map(len, found.values())))


def known_depth(one: Framed, path: Path, condition: GeometryCondition) -> Float[Tensor, "h w"]:
    """Depth in metres of an image's part of its condition, 0 in holes and beyond `condition.far`, at the image's
    size."""
    depth = torch.from_numpy(read_depth(path, condition.unit, condition.normal_axes).depth)
    if condition.far is not None:
        depth = torch.where(depth <= condition.far, depth, 0)
    return nearest(depth, one.box(depth.shape[1], depth.shape[0], str(path)), one.size)
