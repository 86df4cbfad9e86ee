"""Segmentation networks of transformers, and the matching of their labels with classes.

N is the number of images, L the number of the network's labels, Q that of its queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from piti.conditions import MaskCondition
from piti.core.json_files import JsonError, read_json
from piti.core.spec import choices
from piti.evaluation.per_condition import AlignmentError
from piti.evaluation.pretrained import ByPretrained, JudgeError, Named, load_pretrained, pretrained_sha256

_WHAT = "a network for semantic segmentation"
_OPTION = "segmenter"
_BY_QUERIES = ("mask2former", "maskformer")


@runtime_checkable
class Segmenter(Named, Protocol):
    """Images of one size => a label index for every pixel."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The network's label names, by index."""
        ...

    def __call__(self, images: list[Image.Image]) -> Integer[Tensor, "N h w"]:
        """Label indices at the images' size, on the CPU."""
        ...


@dataclass(frozen=True)
class TransformersSegmenter(ByPretrained):
    """A network with a score per label and position (AutoModelForSemanticSegmentation), or queries (Mask2Former,
    MaskFormer).

    Preprocessing follows its `preprocessor_config.json`. Scores are resized bilinearly to the image's size; the label
    with the highest score is used.
    """

    labels: tuple[str, ...]

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Integer[Tensor, "N h w"]:
        """Label indices [N, h, w] for images of one size, int64 on the CPU. Raises JudgeError."""
        inputs = self.judge.prepared(images)
        width, height = images[0].size
        scores = self._scores(inputs)  # [N, L, h', w']
        if scores.shape[1] != len(self.labels):
            raise JudgeError(
                f"returns {scores.shape[1]} scores per pixel, but its config.json names {len(self.labels)} labels",
                remedy="correct id2label there",
                option=_OPTION,
                value=self.source,
            )
        if not torch.isfinite(scores).all():
            raise JudgeError(
                "returns NaN or infinite scores",
                remedy="download or train its weights again",
                option=_OPTION,
                value=self.source,
            )
        whole = inputs["pixel_values"].shape[-2:]
        part = _shown(inputs.get("pixel_mask"))
        guesses = []
        for score in scores:  # one at a time, since many labels at full size need much memory
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
    """Scores per label and pixel from queries: p(label of q) times p(pixel in q's mask), summed over the queries.

    labels, masks: logits; the last label means no object. MaskFormer (Cheng et al. 2021), section 3.4, semantic
    inference; the same for Mask2Former.
    """
    return torch.einsum("nql,nqhw->nlhw", labels.softmax(-1)[..., :-1], masks.sigmoid())


def open_segmenter(source: str, device: torch.device) -> TransformersSegmenter:
    """Load a segmentation network from a hub repository or local folder. Raises JudgeError."""
    tasks = {"SemanticSegmentation": (), "UniversalSegmentation": _BY_QUERIES}
    judge = load_pretrained(source, tasks, _WHAT, _OPTION, device)
    named: dict[int, str] = judge.network.config.id2label
    count = max(named, default=-1) + 1
    return TransformersSegmenter(judge, tuple(named.get(k, f"LABEL_{k}") for k in range(count)))


def segmenter_sha256(source: str) -> str:
    """The hash of the weights that `open_segmenter` loads for this name. Raises JudgeError."""
    return pretrained_sha256(source, _WHAT, _OPTION)


def _shown(mask: Shaped[Tensor, "N h w"] | None) -> tuple[int, int] | None:
    """(height, width) without padding at the right and bottom; None if there is no padding."""
    if mask is None or bool(mask.all()):
        return None
    return int(mask[0].any(1).sum()), int(mask[0].any(0).sum())


def _resized(score: Float[Tensor, "L h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "L h2 w2"]:
    return F.interpolate(score[None].float(), tuple(size), mode="bilinear", align_corners=False)[0]


OTHER = -1
"""The class of a label that matches no class of a mask."""
_NAMED = 12

Aliases = Mapping[str, str | None]
"""A network's label => a mask's class, or None for none of them."""


@dataclass(frozen=True)
class LabelMap:
    """Mapping of a network's labels to a mask's classes."""

    labels: tuple[str, ...]
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    """Class index of each label, or `OTHER`."""

    @property
    def unnamed_classes(self) -> tuple[str, ...]:
        """Classes without a label, on which the network cannot be evaluated."""
        return tuple(name for k, name in enumerate(self.classes) if k not in self.indices)

    @property
    def other_labels(self) -> tuple[str, ...]:
        """Labels that match no class of the mask."""
        return tuple(name for name, k in zip(self.labels, self.indices, strict=True) if k == OTHER)

    @cached_property
    def _table(self) -> Integer[Tensor, " labels"]:
        return torch.tensor(self.indices)

    def __call__(self, guess: Integer[Tensor, "*any"]) -> Integer[Tensor, "*any"]:
        """Label indices to class indices, `OTHER` for labels without a class."""
        return self._table[guess]


def read_aliases(path: Path) -> dict[str, str | None]:
    """A JSON file {"their name": "our name" or null, …}. Raises AlignmentError."""
    try:
        values = read_json(path)
    except JsonError as error:
        raise AlignmentError(f"{path}: cannot be read as JSON ({error.problem}); check the path and the file") from None
    if not isinstance(values, dict) or not all(value is None or isinstance(value, str) for value in values.values()):
        raise AlignmentError(f'{path}: expected {{"label of the network": "class of the mask" or null, …}}')
    return values


def matched_labels(segmenter: Segmenter, condition: MaskCondition, aliases: Path | None) -> LabelMap:
    """A segmenter's labels matched with a mask's classes, see `match_labels`. aliases: their JSON file."""
    names = None if aliases is None else read_aliases(aliases)
    return match_labels(segmenter.labels, condition.classes.names, names, segmenter.source)


def match_labels(
    labels: Sequence[str], classes: Sequence[str], aliases: Aliases | None = None, source: str = "the segmenter"
) -> LabelMap:
    """Match by name, ignoring case, spaces, `_` and `-`; each synonym in "building; edifice" matches.

    aliases: for labels with other names, or without a class. source: the network, for errors. Raises AlignmentError for
    aliases of unknown names, and if nothing matches.
    """
    known = _by_key(classes, "classes")
    said = _checked(aliases or {}, labels, known, classes)
    indices = []
    for label in labels:
        if _key(label) in said:
            indices.append(said[_key(label)])
        else:
            found = [known[key] for key in _keys(label) if key in known]
            indices.append(found[0] if found else OTHER)
    if set(indices) <= {OTHER}:
        raise AlignmentError(
            f"{source}: none of its labels ({_listed(labels)}) matches a class of the masks ({_listed(classes)}); give "
            "a "
            'JSON file of aliases, {"label": "class" or null}, or a network that was trained on these classes'
        )
    return LabelMap(tuple(labels), tuple(classes), tuple(indices))


def _checked(
    aliases: Aliases, labels: Sequence[str], known: Mapping[str, int], classes: Sequence[str]
) -> dict[str, int]:
    """The class index for the key of each label with an alias."""
    theirs = {_key(label) for label in labels}
    said: dict[str, int] = {}
    for label, name in aliases.items():
        if _key(label) not in theirs:
            raise AlignmentError(f"aliases: the network has no label '{label}'; {choices(label, labels)}")
        if name is not None and _key(name) not in known:
            raise AlignmentError(
                f"aliases: '{label}' maps to '{name}', which is not a class of the masks; {choices(name, classes)}"
            )
        said[_key(label)] = OTHER if name is None else known[_key(name)]
    return said


def _by_key(names: Sequence[str], what: str) -> dict[str, int]:
    """The index of each name by its keys: whole names first, then unused synonyms."""
    places: dict[str, int] = {}
    for k, name in enumerate(names):
        if _key(name) in places:
            other = names[places[_key(name)]]
            raise AlignmentError(f"{what} '{other}' and '{name}' differ only in case, spaces, `_` or `-`; rename one")
        places[_key(name)] = k
    for k, name in enumerate(names):
        for key in _keys(name):
            places.setdefault(key, k)
    return places


def _keys(name: str) -> list[str]:
    """Keys of a name: itself, then its synonyms."""
    parts = re.split(r"[;,]", name)
    return [_key(name), *(_key(part) for part in parts if len(parts) > 1)]


def _key(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
