"""Editing of images in memory, each result with metadata on its generation and condition."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from piti.checkpoints.folder import OF_UPSAMPLER
from piti.core.images import PREFIX
from piti.diffusion.samplers import OnStep
from piti.editing import Edited, EditInput, EditSettings, edit_prepared
from piti.generation.generate import MadeImage
from piti.generation.metadata import condition_text, surroundings
from piti.generation.options import seed_of
from piti.pipelines.cascade import ResolvedSampling
from piti.pipelines.pipeline import PITIPipeline

THE_IMAGES_OWN = "the image's own"
"""The name of a condition that is stored in an image."""


@dataclass(frozen=True)
class Names:
    """Names of an edit's model, image and conditions, for the metadata."""

    model: str
    image: str
    to: str
    from_: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Edits:
    """Results of an edit, with messages for the user."""

    images: list[MadeImage]
    edited: Edited
    notes: list[str]

    def words(self) -> str:
        """A summary: the repainted share, and the reconstruction error of the rest."""
        edited = self.edited
        parts = [f"{100 * edited.share:.1f}% of the image was repainted"]
        outside = [value for value in edited.outside if value is not None]
        if outside:
            worst = min(outside)
            exact = math.isinf(worst)
            parts.append("the rest is unchanged" if exact else f"the rest was reconstructed at {worst:.1f} dB")
        if edited.returned is not None:
            whole = "exact" if math.isinf(edited.returned) else f"{edited.returned:.1f} dB"
            what = "small image" if edited.returned_small else "whole image"
            parts.append(f"reconstruction of the {what} by inversion: {whole}")
        return "; ".join(parts)


def make_edits(
    pipeline: PITIPipeline,
    given: EditInput,
    settings: EditSettings,
    names: Names,
    num: int = 1,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Edits:
    """Edit an image `num` times.

    names: for the metadata. seed: with the new condition and an image's number, it determines the new noise. Raises as
    `edit`, and whatever `on_step` raises.
    """
    seeds = [seed_of(seed, given.to.content_hash, k) for k in range(num)]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    edited = edit_prepared(pipeline, given, settings, generators, on_step=on_step)
    common = _text(given.to.sampling, settings, edited, seed, names) | surroundings(pipeline)
    if edited.shows is not None:
        common |= condition_text(pipeline, given.to.with_raw(edited.shows), names.to)
    images = [MadeImage(made, common | {f"{PREFIX}number": str(k)}, k) for k, made in enumerate(edited.images)]
    notes = []
    if num > 1 and edited.variety == 0:
        notes.append("no new noise was drawn (variety 0), so all images are the same; increase variety")
    return Edits(images, edited, notes)


def _text(
    sampling: ResolvedSampling, settings: EditSettings, edited: Edited, seed: int, names: Names
) -> dict[str, str]:
    """Metadata of all images of an edit: the model, names and all resolved settings."""
    values = {key: value for key, value in vars(settings).items() if key not in ("sampling", "measure")}
    upsampler = sampling.upsampler
    values |= {
        "guidance": sampling.base.guidance.to_dict(),
        "steps": sampling.base.steps,
        f"{OF_UPSAMPLER}guidance": None if upsampler is None else upsampler.guidance.to_dict(),
        f"{OF_UPSAMPLER}steps": None if upsampler is None else upsampler.steps,
        f"{OF_UPSAMPLER}noise": None if upsampler is None else upsampler.noise,
        f"{OF_UPSAMPLER}truncates": None if upsampler is None else upsampler.truncates,
        "base_only": sampling.base_only,
        "variety": edited.variety,
        "size": edited.size,
    }
    said = {
        "edited": names.image,
        "edit": json.dumps(values, sort_keys=True),
        "edit_to": names.to,
        **({} if names.from_ is None else {"edit_from": names.from_}),
        **({} if names.region is None else {"edit_region": names.region}),
        "model": names.model,
        "seed": seed,
    }
    return {f"{PREFIX}{key}": str(value) for key, value in said.items()}
