"""Distillation of a guided teacher into a student with few steps: the student's targets.

Papers: guided distillation (Meng et al. 2023, arXiv 2210.03142), which builds the guidance into the weights, and
progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), whose target is generalised here from two teacher steps
to several, so that one student replaces a chain of halvings.

Symbols: α_t = √ᾱ_t, σ_t = √(1−ᾱ_t); the teacher's guided steps lead from x_t to x_s, and the student's single DDIM step
should do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import sampling_timesteps
from piti.diffusion.schedule import Images, NoiseSchedule, Timesteps

CLEAN = -1
"""The timestep after the last one, where x_s is the image itself."""

Guess = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t [B]) -> x̂₀ [B, C, H, W], guided and bounded


class StudentSpec(Spec):
    """The timesteps and the guidance that are built into the weights of a distilled translator."""

    timesteps: tuple[int, ...] | None = Field(min_length=1)
    """The timesteps that it was trained at, ascending; it can only be sampled at exactly these. None: all timesteps,
    with any steps and sampler, if only the guidance was distilled."""
    guidance: Guidance
    """The guidance in its weights. A file may give only `w`, the strength under the default rule."""
    teacher: str | None = None
    """The model that it was distilled from, if known."""

    @model_validator(mode="before")
    @classmethod
    def _strength_alone(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "w" not in values or "guidance" in values:
            return values
        return {**{key: value for key, value in values.items() if key != "w"}, "guidance": {"w": values["w"]}}

    @field_validator("timesteps")
    @classmethod
    def _ascending(cls, timesteps: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if timesteps is None:
            return None
        if list(timesteps) != sorted(set(timesteps)) or timesteps[0] < 0:
            raise UserError(f"expected distinct ascending timesteps of at least 0, got {list(timesteps)}")
        return timesteps

    def check(self, steps: int, sampler: str, guidance: Guidance) -> None:
        """Raise UserError for sampling settings that a student does not support."""
        remedy = f"leave it out, or use {self.origin}"
        if self.timesteps is not None and steps != len(self.timesteps):
            problem = f"this model was distilled to {len(self.timesteps)} steps and supports no other number"
            raise UserError(problem, remedy=remedy, option="steps", value=steps)
        if self.timesteps is not None and sampler != "ddim":
            problem = "this model was distilled for 'ddim' and supports no other sampler"
            raise UserError(problem, remedy=remedy, option="sampler", value=sampler)
        if guidance.w != self.guidance.w:
            problem = f"this model was distilled with a guidance of {self.guidance.w:g}, which is part of its weights"
            raise UserError(problem, remedy=remedy, option="guidance", value=guidance.w)
        if guidance != self.guidance:
            here, own = (f"{one.kind}, {one.interval[0]:g} to {one.interval[1]:g}" for one in (guidance, self.guidance))
            raise UserError(
                f"this model was distilled with the guidance {own}, which is part of its weights, got {here}",
                remedy=f"leave rule and interval out, or use {self.origin}",
            )

    @property
    def origin(self) -> str:
        """The teacher, named in a phrase."""
        named = "" if self.teacher is None else f", {self.teacher}"
        return f"the model that it was distilled from{named}"

    def visited(self, steps: int | str) -> int | str | tuple[int, ...]:
        """The steps to sample: its own timesteps if these are fixed, else `steps`."""
        return steps if self.timesteps is None else self.timesteps


@dataclass(frozen=True)
class StudentGrid:
    """A student's timesteps, and the teacher's steps in each of its own.

    Spaced as for "dpm++", denser towards the image, or evenly for a flow; see `sampling_timesteps`.
    """

    schedule: NoiseSchedule
    walks: Int[Tensor, "n k"]
    """The teacher's timesteps for each timestep of the student, ascending; the first is the student's own."""

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int | None, substeps: int) -> StudentGrid:
        """The grid of `steps` student steps with `substeps` teacher steps each. steps None: every timestep, with the
        guided teacher's x̂₀ as the target. Raises UserError if there are too few timesteps."""
        if steps is None:
            return cls(schedule, torch.arange(len(schedule))[:, None])
        visited = sampling_timesteps(schedule, "dpm++", steps * substeps)
        return cls(schedule, torch.tensor(visited).view(steps, substeps).flip(1))

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The student's, ascending."""
        return tuple(self.walks[:, 0].tolist())

    def ends(self, k: Int[Tensor, " b"]) -> Timesteps:
        """The timestep at which the student's step `k` ends, or `CLEAN`."""
        after = torch.cat([torch.tensor([CLEAN]), self.walks[:-1, 0]])
        return after.to(k.device)[k]

    def target(self, guess: Guess, x_t: Images, k: Int[Tensor, " b"]) -> Images:
        """The target for the student's x̂₀ at its step `k`: the x̂₀ with which a DDIM step arrives where the teacher
        does.

        guess: the guided teacher; k: for each sample, ascending with the timesteps.
        """
        x, walk, end = x_t, self.walks.to(k.device)[k], self.ends(k)
        if walk.shape[1] == 1:  # `x0_of_step` inverts `ddim_step`
            return guess(x_t, walk[:, 0])
        for j in range(walk.shape[1]):
            t = walk[:, j]
            x = self.ddim_step(x, guess(x, t), t, walk[:, j + 1] if j + 1 < walk.shape[1] else end)
        return self.x0_of_step(x, x_t, walk[:, 0], end)

    def ddim_step(self, x_t: Images, x0: Images, t: Timesteps, s: Timesteps) -> Images:
        """DDIM's step from t to s (Song et al. 2020, eq. 12 with σ = 0): α_s x̂₀ + (σ_s/σ_t)(x_t − α_t x̂₀)."""
        (alpha, sigma), (alpha_s, sigma_s) = self._levels(t, x_t), self._levels(s, x_t)
        return alpha_s * x0 + sigma_s / sigma * (x_t - alpha * x0)

    def x0_of_step(self, x_s: Images, x_t: Images, t: Timesteps, s: Timesteps) -> Images:
        """The x̂₀ with which `ddim_step` leads from x_t to x_s: its inverse (Salimans & Ho 2022, appendix G)."""
        (alpha, sigma), (alpha_s, sigma_s) = self._levels(t, x_t), self._levels(s, x_t)
        ratio = sigma_s / sigma
        return (x_s - ratio * x_t) / (alpha_s - ratio * alpha)

    def weight(self, k: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """max(α²/σ², 1) of the student's timesteps: the truncated SNR of Salimans & Ho 2022, section 4."""
        snr = self.schedule.signal_to_noise[self.walks[:, 0]]
        return snr.clamp(min=1).float().to(k.device)[k]

    def _levels(self, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps, 1 and 0 where clean, [B, 1, 1, 1] on `like`'s device; `t` may be on the CPU."""
        squared = torch.cat([torch.ones(1, dtype=torch.float64), self.schedule.alphas_cumprod.double()])
        found = squared.to(t.device)[t + 1].view(-1, 1, 1, 1)
        return found.sqrt().to(like, non_blocking=True), (1 - found).sqrt().to(like, non_blocking=True)
