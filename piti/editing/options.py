"""Settings of an edit, and its result."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from PIL import Image
from torch import Tensor

from piti.core.errors import option
from piti.core.images import Source, loss_as_rgb
from piti.core.spec import SpecError, choices
from piti.diffusion.inversion import SAMPLER
from piti.editing.regions import EditError
from piti.pipelines.cascade import OnePass, ResolvedSampling
from piti.pipelines.options import FLAT_KEYS, OWN_SAMPLING, NetworkOptions, SamplingOptions, UpsamplerOptions
from piti.pipelines.pipeline import PITIPipeline

VARIETY = 0.7
"""Default share of fresh noise in the region."""
STEPS = 25
"""Default DDIM steps of the base."""
UPSAMPLER_STEPS = 10
"""Default DDIM steps of a multi-step upsampler."""


@dataclass(frozen=True)
class EditSettings:
    """Settings of an edit."""

    sampling: SamplingOptions = OWN_SAMPLING
    """Guidance applies to sampling under the new condition. Steps are those of inversion and sampling each, by default
    `STEPS` and `UPSAMPLER_STEPS`. A factor on the initial noise is for one-step upsamplers, which are not inverted. The
    size is the short side at which the image is edited."""
    refinements: int = 1
    """Refinements per inversion step, see `invert`."""
    variety: float | None = None
    """Share of fresh noise in the base's repainted region, 0 … 1; at 0, as in the paper, all images are the same. By
    default `VARIETY`, and 0 if everything is repainted, so that the image stays recognisable."""
    dilate: float = 0.03
    """How far the region extends beyond the change, as a share of the short side."""
    feather: float = 0.04
    """Width over which the region fades out, as a share of the short side."""
    keep_exact: bool = False
    """Return images of the input's size that equal it bit for bit outside the region."""
    measure: bool = False
    """Also sample the inverted image back under its own condition, and measure the reconstruction PSNR."""

    def __post_init__(self) -> None:
        """Raises EditError for values out of range, and for sampling options that do not apply to edits."""
        for name in ("variety", "dilate", "feather"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise EditError("is out of range", remedy="give 0 to 1", option=name, value=value)
        if not isinstance(self.refinements, Integral) or self.refinements < 0:
            raise EditError("give 0 (plain inversion) or more", option="refinements", value=self.refinements)
        if self.sampling.base.sampler or self.sampling.upsampler.sampler or self.sampling.square:
            raise EditError(f"edits always use {SAMPLER} on the whole image; leave sampler and square out")

    @classmethod
    def from_flat(cls, **values: Any) -> EditSettings:
        """The settings from values that include those of `sampling` under flat keys. Raises SpecError, EditError."""
        sampling, others = SamplingOptions.split(values)
        own = [one.name for one in fields(cls) if one.name != "sampling"]
        for key in others:
            if key not in own:
                raise SpecError(f"edit settings: unknown key '{key}'; {choices(key, (*FLAT_KEYS, *own))}")
        return cls(sampling, **others)

    def resolve(self, pipeline: PITIPipeline) -> ResolvedSampling:
        """The resolved sampling settings of this edit.

        Raises UserError for invalid options, EditError for a model or an option that an edit cannot use.
        """
        check_edits(pipeline)
        asked = self.sampling
        base = asked.base.over(NetworkOptions(steps=STEPS)).model_copy(update={"sampler": SAMPLER})
        upsampler = asked.upsampler
        if pipeline.upsampler is not None and not asked.base_only:
            defaults = UpsamplerOptions() if pipeline.upsampler.one_step else self._inverted()
            upsampler = upsampler.over(defaults).model_copy(update={"sampler": SAMPLER})
        return asked.model_copy(update={"base": base, "upsampler": upsampler}).resolve(pipeline)

    def _inverted(self) -> UpsamplerOptions:
        """The defaults of an upsampler that inverts the image.

        Raises EditError for a factor on its initial noise, which is the inverted image's.
        """
        noise = self.sampling.upsampler.noise
        if noise is not None:
            raise EditError(
                "this upsampler starts from the noise of the inverted image, unscaled",
                remedy="leave it out; it is only for one-step upsamplers",
                option="upsampler_noise",
                value=noise,
            )
        return UpsamplerOptions(steps=UPSAMPLER_STEPS, noise=1.0)


DEFAULTS = EditSettings()


@dataclass(frozen=True)
class Edited:
    """Result of an edit."""

    images: list[Image.Image]
    region: Image.Image
    """Greyscale image of the images' size: 0 is kept, 255 repainted."""
    share: float
    """Share of the image that is repainted, fully or partly."""
    outside: list[float | None]
    """PSNR in dB of each image against the input outside the region; infinite if they are equal, None if there is no
    outside."""
    shows: Tensor | None
    """The condition that the images now show, as a raw tensor; None if a region was repainted and the condition of the
    rest is unknown or cannot be combined with it (see `mixed`)."""
    variety: float
    """Share of fresh noise used in the region."""
    size: int
    """Short side at which the image was edited."""
    returned: float | None = None
    """PSNR in dB of the input inverted and sampled back under its own condition, if measured."""
    returned_small: bool = False
    """Whether `returned` is that of the base's small image, since a one-step upsampler is not inverted."""


def check_exact(picture: Image.Image | Source, source: str) -> None:
    """Raise EditError, naming `source`, for an image that 8-bit RGB cannot represent exactly."""
    lost = loss_as_rgb(picture)
    if lost:
        raise EditError(
            f"images are written as 8-bit RGB, which would lose {lost}, but {option('keep_exact')} keeps every bit",
            remedy=f"export it as 8-bit RGB without transparency, or leave {option('keep_exact')} out",
            source=source,
        )


def check_edits(pipeline: PITIPipeline) -> None:
    """Raise EditError for models that cannot edit: baselines and distilled models."""
    network = pipeline.base_network()
    if isinstance(network, OnePass):
        raise EditError("this model generates images in one pass and cannot invert them; edit with a diffusion model")
    student = network.translator.student
    if student is not None:
        raise EditError(
            "this model was distilled and always applies guidance, but inversion needs steps without guidance",
            remedy=f"edit with {student.origin}",
        )
