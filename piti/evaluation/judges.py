"""Judges of images against their conditions, and of samples against each other, as measures with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from piti.conditions import Condition, GeometryCondition, MaskCondition, SketchCondition
from piti.core.errors import option
from piti.core.progress import OnProgress
from piti.evaluation.depth import DepthAgreement, depth_error, open_depth
from piti.evaluation.diversity import diversity, photograph_distance
from piti.evaluation.intervals import percentiles
from piti.evaluation.masks import Agreement, agreement
from piti.evaluation.material import ConditionFiles, Material
from piti.evaluation.objects import LEAST, ObjectDistances, object_distances
from piti.evaluation.options import Options
from piti.evaluation.per_condition import PerCondition
from piti.evaluation.perceptual import open_perceptual
from piti.evaluation.result import Measure
from piti.evaluation.segmentation import LabelMap, Segmenter, matched_labels, open_segmenter, read_aliases
from piti.evaluation.sketches import LineAgreement, line_distance

REAL = "real_"
"""How the names of measures begin that were taken of the photographs of the same conditions."""
OF_REAL = ("miou", "pixel_accuracy", "small_recall", "small_found", "line_distance", "depth_error", "object_distance")
"""What is told of photographs: what the judge makes of what should be best."""
_UNCERTAIN = {"small_regions"}  # counts, which get no interval
_NAMED = 5

Samples = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Judge:
    """One judge at work."""

    kind: str
    """Of the conditions, or "diversity" or "photographs"."""
    facts: dict[str, Any]
    judged: Callable[[Samples, OnProgress], PerCondition]
    samples: Samples
    real: Samples
    """The photograph of each condition, or nothing."""

    @property
    def images(self) -> int:
        """How many it looks at."""
        return sum(map(len, self.samples.values())) + len(self.real)

    def measures(self, draws: int, seed: int, part: Callable[[int], OnProgress]) -> tuple[list[Measure], list[str]]:
        """What it says, and what a person should know. draws: for the intervals, 0 for none. Raises UserError."""
        found = self.judged(self.samples, part(sum(map(len, self.samples.values()))))
        measures = with_intervals(found, draws, seed)
        notes = _notes(found)
        if self.real:
            of_real = with_intervals(self.judged(self.real, part(len(self.real))), draws, seed)
            measures += [replace(one, name=REAL + one.name) for one in of_real if one.name in OF_REAL]
        return measures, notes


def open_judges(material: Material, options: Options, device: torch.device) -> tuple[list[Judge], list[str]]:
    """Everyone who can judge, and what is not judged. Raises UserError for networks that cannot be had."""
    judges: list[Judge] = []
    notes: list[str] = []
    for given in material.given:
        kind = given.condition.kind
        if any(judge.kind == kind for judge in judges):
            notes.append(f"several conditions of the kind {kind}: the first alone is judged, not {given.place}")
            continue
        judge = _judge_of(given, material, options, device)
        if isinstance(judge, Judge):
            judges.append(judge)
        else:
            notes.append(judge)
    kinds = {type(given.condition) for given in material.given}
    for flag, network, kind in (
        (option("segmenter"), options.segmenter, MaskCondition),
        (option("depth"), options.depth, GeometryCondition),
    ):
        if network and not any(issubclass(known, kind) for known in kinds):
            notes.append(f"{flag} judges nothing here: no conditions of its kind ({kind.kind}) are given")
    if options.objects:
        compared = [_of_objects(given, material, options) for given in material.given if _has_masks(given)]
        judges += compared
        if not compared:
            notes.append(f"{option('objects')} measures nothing here: no masks are given")
    perceptual, more = _perceptual(material, options, device)
    return [*judges, *perceptual], [*notes, *more]


def check_named(options: Options, condition: Condition, device: torch.device) -> None:
    """Open every judge that the options name, and keep none. condition: what they will judge by.

    Raises UserError for one that cannot be had, and where a segmenter's labels fit no class of the masks.
    """
    masks = [part for part in condition.named_parts().values() if isinstance(part, MaskCondition)]
    if options.segmenter:
        segmenter = open_segmenter(options.segmenter, device)
        for mask in masks[:1]:  # of several the first alone is judged
            matched_labels(segmenter, mask, options.aliases)
    if options.aliases:
        read_aliases(options.aliases)
    if options.depth:
        open_depth(options.depth, device)
    if options.perceptual is not None:
        open_perceptual(options.perceptual, device)


def _perceptual(material: Material, options: Options, device: torch.device) -> tuple[list[Judge], list[str]]:
    """Who compares samples with each other and with their photographs, and what is not compared."""
    several = {stem: images for stem, images in material.samples.items() if len(images) > 1}
    photographs = material.photographs
    paired = {stem: images for stem, images in material.samples.items() if stem in photographs}
    if options.perceptual is None:
        notes = [
            f"{len(several)} conditions have several samples; name a network with {option('perceptual')} "
            "to measure how much these differ"
        ]
        return [], notes if several else []
    if not several and not paired:
        return [], [
            f"{option('perceptual')} measures nothing here: no condition has several samples, between "
            f"which diversity is measured (make more with {option('num')} 4), and no image has a photograph of its name"
        ]
    judge = open_perceptual(options.perceptual, device)
    facts = _facts(judge) | {"layers": list(options.perceptual.chosen_layers)}
    facts |= {"heads_sha256": judge.heads_sha256} if judge.heads else {}

    def between(samples: Samples, on_step: OnProgress) -> PerCondition:
        return diversity(samples, judge, options.resize, options.batch, on_step)

    def to_photographs(samples: Samples, on_step: OnProgress) -> PerCondition:
        return photograph_distance(samples, photographs, judge, options.resize, options.batch, on_step)

    found = [Judge("diversity", facts, between, several, {})] if several else []
    if not paired:
        return found, []
    lacking = len(material.samples) - len(paired)
    notes = [f"{lacking} conditions have no photograph of their name, and no distance to it"] if lacking else []
    return [*found, Judge("photographs", facts, to_photographs, paired, {})], notes


def _has_masks(given: ConditionFiles) -> bool:
    return isinstance(given.condition, MaskCondition)


def _of_objects(given: ConditionFiles, material: Material, options: Options) -> Judge:
    """Who compares objects of one class within an image."""
    condition = given.condition
    assert isinstance(condition, MaskCondition)

    def judged(samples: Samples, on_step: OnProgress) -> PerCondition:
        return object_distances(samples, given.files, condition, options.resize, options.batch, on_step)

    return Judge("objects", {}, judged, given.samples, _photographs(given, material))


def _photographs(given: ConditionFiles, material: Material) -> Samples:
    """The photograph of each condition; nothing where some lack theirs."""
    photographs = material.photographs
    real = {stem: [photographs[stem]] for stem in given.samples if stem in photographs}
    return real if len(real) == len(given.samples) else {}


def _judge_of(given: ConditionFiles, material: Material, options: Options, device: torch.device) -> Judge | str:
    """Who judges one kind of condition, or why nobody does."""
    real = _photographs(given, material)
    condition = given.condition
    if isinstance(condition, SketchCondition):
        return Judge("sketch", {}, _lines(given, condition, options), given.samples, real)
    if isinstance(condition, MaskCondition) and options.segmenter:
        segmenter = open_segmenter(options.segmenter, device)
        labels = matched_labels(segmenter, condition, options.aliases)
        facts = _facts(segmenter) | {
            "labels": {label: name for label, name in _matched(labels) if name},
            "labels_of_no_class": list(labels.other_labels),
            "classes_not_judged": list(labels.unnamed_classes),
        }
        return Judge(condition.kind, facts, _masks(given, condition, segmenter, labels, options), given.samples, real)
    if isinstance(condition, GeometryCondition) and options.depth:
        estimator = open_depth(options.depth, device)
        facts = _facts(estimator) | {"inverse": estimator.inverse}

        def judged(samples: Samples, on_step: OnProgress) -> PerCondition:
            return depth_error(samples, given.files, condition, estimator, options.resize, options.batch, on_step)

        return Judge("geometry", facts, judged, given.samples, real)
    flag = {MaskCondition: option("segmenter"), GeometryCondition: option("depth")}
    wanted = [name for kind, name in flag.items() if isinstance(condition, kind)]
    remedy = f"; name a model with {wanted[0]}" if wanted else ""
    return f"agreement with the {condition.kind} conditions is not measured{remedy}"


def _lines(
    given: ConditionFiles, condition: SketchCondition, options: Options
) -> Callable[[Samples, OnProgress], PerCondition]:
    return lambda samples, on_step: line_distance(samples, given.files, condition, options.resize, on_step)


def _masks(
    given: ConditionFiles, condition: MaskCondition, segmenter: Segmenter, labels: LabelMap, options: Options
) -> Callable[[Samples, OnProgress], PerCondition]:
    def judged(samples: Samples, on_step: OnProgress) -> PerCondition:
        return agreement(samples, given.files, condition, segmenter, labels, options.resize, options.batch, on_step)

    return judged


def _facts(judge: Any) -> dict[str, Any]:
    return {"name": judge.name, "source": judge.source, "sha256": judge.sha256}


def _matched(labels: LabelMap) -> list[tuple[str, str]]:
    """Each label with the class that it stands for, if any."""
    return [
        (label, labels.classes[index] if index >= 0 else "")
        for label, index in zip(labels.labels, labels.indices, strict=True)
    ]


def with_intervals(found: PerCondition, draws: int, seed: int) -> list[Measure]:
    """What was found, each with its 95% interval: percentiles over draws of conditions, with repetition.

    Samples of one condition stay together. What a draw does not have (a class that none of its masks holds) is left
    out of it. draws: 0 for no intervals, which fewer than two conditions do not get either, nor what is the same in
    all draws, such as a class that is never seen right.
    """
    generator, count = torch.Generator().manual_seed(seed), len(found.stems)
    drawn: dict[tuple[str, str], list[float]] = {}
    for _ in range(draws if count > 1 else 0):
        chosen = torch.randint(count, (count,), generator=generator)
        for key, value in found.measures(chosen).items():
            drawn.setdefault(key, []).append(value)
    measures = []
    for (name, of), value in found.measures().items():
        interval = None
        if name not in _UNCERTAIN and (name, of) in drawn:
            interval = percentiles(torch.tensor(drawn[name, of], dtype=torch.float64))
        measures.append(Measure.taken(name, value, interval, of))
    return measures


def _notes(found: PerCondition) -> list[str]:
    """What was left out."""
    if isinstance(found, Agreement) and found.labels.unnamed_classes:
        named = ", ".join(found.labels.unnamed_classes)
        return [
            f"the segmenter has no label for {named}: their pixels count nowhere; name what it calls them in "
            f"{option('aliases')}"
        ]
    if isinstance(found, ObjectDistances) and not found.stems:
        return [f"no mask has two objects of one class that cover {LEAST:.1%} of the image each: none were compared"]
    if isinstance(found, LineAgreement | DepthAgreement) and found.blank:
        more = f" and {len(found.blank) - _NAMED} more" if len(found.blank) > _NAMED else ""
        return [f"left out, with nothing to compare: {', '.join(found.blank[:_NAMED])}{more}"]
    return []
