"""Losses as a recipe sets them: how much each of a stage counts, and at which timesteps; how eq. 3 weighs these."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator

from piti.core.spec import Spec, choices
from piti.diffusion.augmentation import KINDS
from piti.diffusion.guidance import Guidance
from piti.diffusion.losses import acts_at, adversarial_named, weighting_named
from piti.diffusion.timesteps import timesteps_named

Beta = Annotated[float, Field(ge=0, lt=1)]
"""Of AdamW's moments."""


class RangedLossSpec(Spec):
    """How much a loss counts, and at which timesteps."""

    weight: float = Field(default=1.0, ge=0)
    """What it is multiplied by in the sum of the losses."""
    noise: tuple[float, float] = (0.0, 1.0)
    """The timesteps at which it acts, as shares of T, from and below."""

    @field_validator("noise")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("expected [from, below] with 0 <= from < below <= 1, shares of the timesteps")
        return value

    def count(self, steps: int) -> int:
        """At how many of `steps` timesteps it acts."""
        return int(acts_at(torch.arange(steps), steps, self.noise).sum())


class LossSpec(Spec):
    """How eq. 3 weighs the timesteps and the variational bound."""

    weighting: str = "uniform"
    """uniform: all timesteps alike. min_snr: those of little noise less (Hang et al. 2023). detail: for an upsampler
    with `model.detail`: alike for an image that is known up to a deviation of 0.15."""
    vb_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Weight of the bound; none: T / 1000, as GLIDE trains."""
    timesteps: str = "even"
    """even: all alike. second_moment: where losses are large, each divided by its chance, as the released base trains
    (improved DDPM, section 3.3)."""

    @field_validator("weighting")
    @classmethod
    def _known(cls, name: str) -> str:
        weighting_named(name)
        return name

    @field_validator("timesteps")
    @classmethod
    def _known_draws(cls, name: str) -> str:
        timesteps_named(name)
        return name


class DistillationSpec(Spec):
    """What takes the place of eq. 3 where a model is distilled: the student's x̂₀ after the teacher's steps; see
    `piti.diffusion.distillation`."""

    steps: int | None = Field(default=4, ge=1)
    """The student's; null: the guidance alone is distilled, at every timestep, and the student is sampled as its
    teacher is, in half the passes."""
    substeps: int = Field(default=6, ge=1)
    """The teacher's in each of them, each with guidance; without `steps` it has no meaning."""
    guidance: Guidance = Guidance(w=1.0)
    """Of the teacher; it becomes part of the student's weights."""
    student: str | None = None
    """A student that was made before, a model or a run, from whose weights this one begins; by default it begins from
    the teacher's. To finish one with an adversary, or to halve its steps. Stages that train `lora` take of it what
    low-rank adapters of the teacher hold: the first singular vectors of each layer's difference."""

    @property
    def passes(self) -> int:
        """Of the teacher's network, for one sample."""
        return (2 if self.guidance.w else 1) * (1 if self.steps is None else self.substeps)


class DiffusionLossSpec(RangedLossSpec):
    """Eq. 3 within a stage."""


class PixelLossSpec(RangedLossSpec):
    """The mean absolute difference of x̂₀ and x₀, beyond the paper."""


class ConsistencyLossSpec(RangedLossSpec):
    """The mean absolute difference of the shrunk x̂₀ and the small image that it was made of, beyond the paper.

    For small images that are what shrinking a photograph gives: with a recipe's `degradation` only those that a base
    generated are held to it.
    """

    pool: int = Field(default=1, ge=1)
    """Both are compared as means of squares of this many pixels. A base that makes its images in patches leaves a grid
    of them on plain surfaces, which the upsampler otherwise has to keep: its `patch_size` lets it go."""


class ImageLossSpec(RangedLossSpec):
    """When a loss on x̂₀ acts, and how much it counts."""

    weight: float = Field(default=0.004, ge=0)
    after: int = Field(default=1000, ge=0)
    """Steps of the stage before it acts: until then x̂₀ is not yet worth judging."""
    noise: tuple[float, float] = (0.0, 0.5)
    """The timesteps at which it acts, as shares of T, from and below; the paper and the released code take all, [0, 1].
    At large t x̂₀ is the mean of many images:
    of a photograph's detail the plain street upsampler's x̂₀ has 85% at 0.2 T, 55% at 0.5 T, 42% at 0.9 T (bicubic:
    32%; `benchmarks/predicted_images.py`). Where less than half is left, sharpness would be made up."""
    clip: bool = False
    """Whether x̂₀ is clipped to [−1, 1] before it is looked at, as in the released code."""


class PerceptualLossSpec(ImageLossSpec):
    """Eq. 4. The network whose features are compared is the recipe's `perceptual`."""

    error: Literal["absolute", "squared"] = "absolute"
    """How features differ: by the mean absolute difference, or by the mean square, as in the released code."""
    jitter: int = Field(default=0, ge=0)
    """By how many pixels at most both images are cut off at their edges, alike and anew for each sample: a network with
    strides otherwise looks at the same grid of pixels, and leaves it in the image."""


class AdversarialLossSpec(ImageLossSpec):
    """Eq. 5. The discriminator is the recipe's `discriminator`."""

    weight: float = Field(default=0.01, ge=0)
    kind: str = "non_saturating"
    """non_saturating, hinge or wgan_gp."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the discriminator's AdamW."""
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Of the same."""
    gradient_penalty: float | None = Field(default=None, ge=0)
    """Weight of the penalty on the discriminator's gradient; none: the loss's own."""
    r1: float = Field(default=0.0, ge=0)
    """γ of the penalty on the discriminator's slope at photographs (R1), γ/2 ‖∇D‖²; 0: none."""
    augment: tuple[str, ...] = ()
    """How all that a discriminator sees is changed, differentiably (Zhao et al. 2020): colour, shift, cutout."""

    @field_validator("augment")
    @classmethod
    def _kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown augmentation '{kind}'; {choices(kind, KINDS)}")
        return kinds

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        adversarial_named(kind)
        return kind
