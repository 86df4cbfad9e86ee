"""Evaluation of generated images, with everything needed to repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piti.checkpoints.folder import ModelFolder, find_model
from piti.conditions import Condition, ConditionError, MaskCondition, NoCondition
from piti.conditions.coverage import Coverage
from piti.core.devices import usable_device
from piti.core.distributed import Ranks, together
from piti.core.errors import Message, UserError, option
from piti.core.files import check_place
from piti.core.images import ImageError
from piti.core.progress import OnProgress
from piti.evaluation.distances import CMMD_NETWORK, distances
from piti.evaluation.diversity import feature_spread
from piti.evaluation.features import FeatureNetwork, features_of, open_features
from piti.evaluation.generating import GeneratedSplit, JudgedModel, Split, generate_split
from piti.evaluation.judges import check_named, open_judges, with_intervals
from piti.evaluation.material import ConditionFiles, Material, ProgressMeter
from piti.evaluation.memorisation import memorised, training_photographs
from piti.evaluation.options import Options
from piti.evaluation.pairing import (
    PairingError,
    check_alike,
    check_enough,
    conditions_by_stem,
    generated_images,
    is_data_root,
    paired,
    photographs,
    photographs_of,
)
from piti.evaluation.result import Evaluation, Measure
from piti.evaluation.run_facts import Contents, facts_of, notes_of
from piti.generation.options import GenerationOptions
from piti.pipelines.computing import Computing

__all__ = ["Evaluation", "Measure", "Options", "evaluate_files", "evaluate_made", "evaluate_model"]


def evaluate_files(
    generated: Path,
    options: Options,
    real: Path | None = None,
    conditions: Path | Mapping[str, Path] | None = None,
    condition: Condition | None = None,
    on_step: OnProgress | None = None,
    split: str | None = None,
) -> Evaluation:
    """Evaluate a folder of generated PNGs; see `piti.evaluation.pairing` for their names.

    real: photographs for the distances: a folder, or a data root of which `split` is used (by default "val").
    conditions: the folder of the images' conditions, of the kind `condition`, for the agreement with them; for several
    parts a folder for each. Raises UserError, if possible before measuring.
    """
    images = generated_images(generated)
    found = [_given(images, kind, folder) for kind, folder in _folders(conditions, condition)]
    given, notes = tuple(files for files, _ in found), [note for _, said in found for note in said]
    reals = [] if real is None else photographs(real, split or "val")
    of_split = (split or "val") if real is not None and is_data_root(real) else ""
    if split is not None and not of_split:
        what = (
            f"no {option('real')} is given"
            if real is None
            else f"{real} is a plain folder of photographs, without splits"
        )
        raise PairingError(
            what,
            remedy=f"remove it, or give a data root (with images/) as {option('real')}",
            option="split",
            value=split,
        )
    judged = _evaluate(Material(images, generated, reals, real, of_split, given), options, on_step)
    return replace(judged, notes=(*map(Message, notes), *judged.notes))


def evaluate_model(
    model: str,
    split: Split,
    out: Path,
    options: Options,
    generation: GenerationOptions,
    ranks: Ranks | None = None,
    on_step: OnProgress | None = None,
) -> Evaluation | None:
    """Translate a split's conditions into `out`, then evaluate the images against the split's photographs.

    Resumes after interruptions; existing images are kept if they were generated in the same way. ranks: the processes
    that share the translation; the first evaluates, the others return None. on_step: called as (denoising steps done,
    total). See `generate_split` and `evaluate_made` for more options. Raises UserError.
    """
    ranks = ranks or Ranks()
    check_measures(model, split, options, ranks)
    made = generate_split(
        JudgedModel(model, computing=Computing(options.device, engine="torch")), split, out, generation, ranks, on_step
    )
    return evaluate_made(made, out, options) if ranks.main else None


def check_measures(model: str, split: Split, options: Options, ranks: Ranks, real: Path | None = None) -> None:
    """Check, before sampling, whether `evaluate_made` can evaluate a model's images.

    Raises UserError for the networks and photographs, and ModelError for a missing model. Every process of `ranks` must
    call this.
    """
    with together():
        if ranks.main:
            cpu = torch.device("cpu")
            _check_cache(options)
            _networks(options, cpu)
            check_named(options, ModelFolder.open(find_model(model)).condition, cpu)
            reals = photographs_of(split.root, split.name) if real is None else photographs(real, split.name)
            check_enough(reals, real or split.root)
            training_photographs(reals, options)


def evaluate_made(
    made: GeneratedSplit, out: Path, options: Options, real: Path | None = None, on_step: OnProgress | None = None
) -> Evaluation:
    """Evaluate the images that `generate_split` wrote to `out`. real: photographs to use instead of the split's. Raises
    UserError."""
    place, split = Path(made.facts["data"]), str(made.facts["split"])
    reals = made.photographs if real is None else photographs(real, split)
    of_split = split if real is None or is_data_root(real) else ""
    check_enough(made.images, out, f"generated images (more conditions, or {option('num')} 2)")
    given = tuple(
        ConditionFiles(condition, str(next(iter(files.values())).parent), files, paired(made.images, files, place))
        for condition, files in made.conditions.values()
        if condition.spatial and files
    )
    material = Material(made.images, out, reals, real or place, of_split, given)
    found = _evaluate(material, options, on_step)
    return Evaluation(found.measures, {"model": made.facts} | found.facts, (*made.notes, *found.notes))


def _folders(conditions: Path | Mapping[str, Path] | None, condition: Condition | None) -> list[tuple[Condition, Path]]:
    """Each kind of condition with its folder. Raises PairingError."""
    if conditions is None:
        return []
    if condition is None or isinstance(condition, NoCondition):
        raise PairingError(f"{conditions}: the kind of these conditions is not given; pass `condition` too")
    parts = condition.named_parts()
    folders = {next(iter(parts)): conditions} if isinstance(conditions, Path) else conditions
    if folders.keys() - parts.keys():
        raise PairingError(f"conditions are given for {', '.join(folders)}, but the parts are {', '.join(parts)}")
    return [(parts[part], folder) for part, folder in folders.items()]


def _given(images: Sequence[Path], condition: Condition, folder: Path) -> tuple[ConditionFiles, list[str]]:
    """The conditions of a folder's images, and notes on them. Raises PairingError, ConditionError."""
    files = conditions_by_stem(folder, condition.suffixes)
    samples = paired(images, files, folder)
    settled, notes = condition.settled(list(files.values()))
    coverage = Coverage(settled)
    for stem in samples if isinstance(settled, MaskCondition) else ():
        with suppress(ConditionError, ImageError):  # the measure that uses it reports it
            coverage.add(coverage.counted(settled.load(files[stem])))
    return ConditionFiles(settled, str(folder), files, samples), [*notes, *coverage.lacks()]


# The whole


def _evaluate(material: Material, options: Options, on_step: OnProgress | None) -> Evaluation:
    """Open every network, then measure."""
    if material.real:
        check_alike(material.images, options.resize)
    _check_cache(options)
    device = usable_device(options.device)
    networks = _networks(options, device) if material.real else []
    training = training_photographs(material.real, options)
    judges, notes = open_judges(material, options, device)
    if not networks and not judges:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"nothing to measure: give {option('real')} for distances, {option('labels')} with "
            f"{option('segmenter')}, {option('sketches')}, or {option('geometry')} with {option('depth')} "
            f"for agreement, or {option('perceptual')} for the diversity of several samples{why}"
        )
    looked_at = (len(material.images) + len(material.real) + len(training)) * len(networks)
    meter = ProgressMeter(looked_at + sum(judge.images for judge in judges), on_step)
    contents = Contents.of(material.images), Contents.of(material.real)
    facts = facts_of(material, options, networks, device, contents)
    facts["judges"] = [{"of": judge.kind} | judge.facts for judge in judges]
    notes += notes_of(material, options, networks, contents)
    measures: list[Measure] = []
    features = [_features(network, material, options, meter) for network in networks]
    for network, sides, told in zip(networks, features, facts["networks"], strict=True):
        found, settings = _distances(network, sides, material, options)
        measures += found
        told |= settings
    if training:
        whole = Contents.of(training).sha256
        facts["training"] = {"folder": str(options.training), "images": len(training), "sha256": whole}
        measures += memorised(networks, features, material, training, options, meter)
    for judge in judges:
        found, more = judge.measures(options.bootstrap, options.seed, meter.part)
        measures += found
        notes += more
    return Evaluation(tuple(measures), facts, tuple(map(Message, notes)))


def _check_cache(options: Options) -> None:
    """Raises OutputError if computed features could not be cached."""
    if options.cache is not None:
        check_place(options.cache, option("cache"))


def _networks(options: Options, device: torch.device) -> list[FeatureNetwork]:
    """The feature networks. Raises UserError for none, and for two with the same name."""
    if not options.features:
        raise UserError(
            f"{option('real')} is given without {option('features')}", remedy="name a network, such as inception"
        )
    networks = [open_features(name, device) for name in options.features]
    for name, count in Counter(network.name for network in networks).items():
        if count > 1:
            named = ", ".join(network.source for network in networks if network.name == name)
            raise UserError(
                f"{named} are all '{name}', so their results would have the same name",
                remedy="give only one",
                option="features",
            )
    return networks


def _features(
    network: FeatureNetwork, material: Material, options: Options, meter: ProgressMeter
) -> tuple[Tensor, Tensor]:
    """Features of the generated and the real images."""
    generated, real = (
        features_of(network, images, options.resize, options.batch, meter.part(len(images)), options.cache)
        for images in (material.images, material.real)
    )
    return generated, real


def _distances(
    network: FeatureNetwork, sides: tuple[Tensor, Tensor], material: Material, options: Options
) -> tuple[list[Measure], dict[str, Any]]:
    """Measures from one feature network, and their settings. sides: features of the generated and the real images."""
    generated, real = sides
    found, settings = distances(network.name, real, generated, options.bootstrap, options.seed)
    if network.name == CMMD_NETWORK or len(material.samples) == len(material.images):
        return found, settings
    row = {path: k for k, path in enumerate(material.images)}
    rows = {stem: [row[path] for path in images] for stem, images in material.samples.items()}
    spread = feature_spread(generated, rows, network.name)
    return [*found, *with_intervals(spread, options.bootstrap, options.seed)], settings
