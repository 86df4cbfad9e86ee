"""Segmentation networks of transformers: which class every pixel of an image shows.

N is the number of images, L the number of the network's labels, Q that of its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from piti.evaluation.pretrained import ByPretrained, JudgeError, Named, load_pretrained

_WHAT = "a network for semantic segmentation"
_FLAG = "--segmenter"
_BY_QUERIES = ("mask2former", "maskformer")


@runtime_checkable
class Segmenter(Named, Protocol):
    """Images of one size => the number of a label for every pixel."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What each number stands for, in the network's own words."""
        ...

    def __call__(self, images: list[Image.Image]) -> Integer[Tensor, "N h w"]:
        """Numbers of labels at the images' size, on the CPU."""
        ...


@dataclass(frozen=True)
class TransformersSegmenter(ByPretrained):
    """One score a label and position (AutoModelForSemanticSegmentation), or queries (Mask2Former, MaskFormer).

    Preprocessing is what its `preprocessor_config.json` states. Scores are brought to the image's own size
    bilinearly; the label with the highest is taken.
    """

    labels: tuple[str, ...]

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Integer[Tensor, "N h w"]:
        """Numbers of labels [N, h, w] of images of one size, int64 on the CPU. Raises JudgeError."""
        inputs = self.judge.prepared(images)
        width, height = images[0].size
        scores = self._scores(inputs)  # [N, L, h', w']
        if scores.shape[1] != len(self.labels):
            raise JudgeError(
                f"{_FLAG} {self.source}: gives {scores.shape[1]} scores a pixel, and its config.json names "
                f"{len(self.labels)} labels; correct id2label there"
            )
        if not torch.isfinite(scores).all():
            raise JudgeError(f"{_FLAG} {self.source}: gives NaN or infinite scores; fetch or train its weights again")
        whole = inputs["pixel_values"].shape[-2:]
        part = _shown(inputs.get("pixel_mask"))
        guesses = []
        for score in scores:  # one at a time: at the image's size, many labels take much memory
            if part is not None:
                score = _resized(score, whole)[..., : part[0], : part[1]]
            guesses.append(_resized(score, (height, width)).argmax(0).cpu())  # [h, w]
        return torch.stack(guesses)

    def _scores(self, inputs: dict[str, Tensor]) -> Float[Tensor, "N L h2 w2"]:
        network = self.judge.network
        if network.config.model_type not in _BY_QUERIES:
            return network(pixel_values=inputs["pixel_values"]).logits
        found = network(**{key: inputs[key] for key in ("pixel_values", "pixel_mask") if key in inputs})
        return query_scores(found.class_queries_logits, found.masks_queries_logits)


def query_scores(labels: Float[Tensor, "N Q L1"], masks: Float[Tensor, "N Q h w"]) -> Float[Tensor, "N L h w"]:
    """A score a label and pixel of queries: p(label of q) times p(pixel in q's mask), added up over the queries.

    labels, masks: logits; the last label says that a query shows nothing. MaskFormer (Cheng et al. 2021), section 3.4,
    semantic inference; Mask2Former does the same.
    """
    return torch.einsum("nql,nqhw->nlhw", labels.softmax(-1)[..., :-1], masks.sigmoid())


def open_segmenter(source: str, device: torch.device) -> TransformersSegmenter:
    """A segmentation network by hub repository or local folder. Raises JudgeError."""
    tasks = {"SemanticSegmentation": (), "UniversalSegmentation": _BY_QUERIES}
    judge = load_pretrained(source, tasks, _WHAT, _FLAG, device)
    named: dict[int, str] = judge.network.config.id2label
    count = max(named, default=-1) + 1
    return TransformersSegmenter(judge, tuple(named.get(k, f"LABEL_{k}") for k in range(count)))


def _shown(mask: Shaped[Tensor, "N h w"] | None) -> tuple[int, int] | None:
    """(height, width) of what is no padding, at the right and at the bottom; None where there is none."""
    if mask is None or bool(mask.all()):
        return None
    return int(mask[0].any(1).sum()), int(mask[0].any(0).sum())


def _resized(score: Float[Tensor, "L h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "L h2 w2"]:
    return F.interpolate(score[None].float(), tuple(size), mode="bilinear", align_corners=False)[0]
