"""Editing of images in memory, each result with metadata on its generation and condition."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from piti.checkpoints.folder import OF_UPSAMPLER
from piti.core.images import PREFIX
from piti.diffusion.samplers import OnStep
from piti.editing import BATCH, Edited, EditInput, EditRun, EditSettings
from piti.generation.generate import MadeImage
from piti.generation.kept import RequestedImage
from piti.generation.metadata import EDIT, condition_text, raw_hash, surroundings
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

    def text(self) -> dict[str, str]:
        """These names as metadata, except the model's."""
        said = {"edited": self.image, "edit_to": self.to, "edit_from": self.from_, "edit_region": self.region}
        return _text({key: value for key, value in said.items() if value is not None})


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


@dataclass(frozen=True)
class EditJob:
    """An edit of one image, with the metadata and the noise of each of its results."""

    run: EditRun
    text: Mapping[str, str]
    """Metadata of all results."""
    decisive: Mapping[str, str]
    """Metadata that determines the pixels, besides an image's number: without names, and without the condition."""
    seed: int
    content_hash: str

    @classmethod
    def of(
        cls, pipeline: PITIPipeline, given: EditInput, settings: EditSettings, names: Names, seed: int = 0
    ) -> EditJob:
        """Check and encode the inputs. Arguments and errors as for `make_edits`."""
        run = EditRun.of(pipeline, given, settings)
        resolved = _settings_text(given.to.sampling, settings, run)
        decisive = _text({"seed": seed, "edit_inputs_sha256": _inputs_hash(run, given), "model": names.model})
        decisive |= {EDIT: resolved} | surroundings(pipeline)
        text = decisive | names.text()
        if run.shows is not None:
            text |= condition_text(pipeline, given.to.with_raw(run.shows), names.to)
        return cls(run, text, decisive, seed, given.to.content_hash)

    def requested(self, target: Path, number: int) -> RequestedImage:
        """An image of this edit as a file. number: of the image."""
        return RequestedImage(target, self.run.size, {**self.decisive, **_text({"number": number})})

    def numbered(self, image: Image.Image, number: int) -> MadeImage:
        """An image of this edit with its metadata."""
        return MadeImage(image, {**self.text, **_text({"number": number})}, number)

    def make(
        self,
        numbers: Sequence[int],
        on_made: Callable[[MadeImage], None],
        batch: int = BATCH,
        on_step: OnStep | None = None,
    ) -> float | None:
        """Generate the images with these numbers, and pass each to `on_made` when its batch is done.

        Returns the PSNR of the reconstruction as `EditRun.sample`; errors of the callbacks propagate.
        """
        seeds = [seed_of(self.seed, self.content_hash, number) for number in numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        left = iter(numbers)

        def on_images(images: list[Image.Image]) -> None:
            for image in images:
                on_made(self.numbered(image, next(left)))

        return self.run.sample(generators, batch, on_step, on_images)

    def edits(self, images: list[MadeImage], returned: float | None) -> Edits:
        """The results of this edit. returned: from `make`."""
        edited = self.run.result([made.image for made in images], returned)
        notes = []
        if len(images) > 1 and edited.variety == 0:
            notes.append("no new noise was drawn (variety 0), so all images are the same; increase variety")
        return Edits(images, edited, notes)


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
    job, images = EditJob.of(pipeline, given, settings, names, seed), []
    returned = job.make(range(num), images.append, on_step=on_step)
    return job.edits(images, returned)


def _settings_text(sampling: ResolvedSampling, settings: EditSettings, run: EditRun) -> str:
    """All resolved settings of an edit, as JSON."""
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
        "variety": run.variety,
        "size": run.short_side,
    }
    return json.dumps(values, sort_keys=True)


def _inputs_hash(run: EditRun, given: EditInput) -> str:
    """The hash of the image's RGB pixels at the size of the results, both conditions and the region."""
    pixels = torch.from_numpy(np.array(run.resized))  # [h, w, 3]
    hashes = ["" if part is None else raw_hash(part) for part in (pixels, given.to.raw, given.from_, run.white)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _text(values: Mapping[str, object]) -> dict[str, str]:
    return {f"{PREFIX}{key}": str(value) for key, value in values.items()}
