"""Sampling a cascade: a base, and an upsampler that enlarges its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from piti.baselines import BaselineNetwork, ImageNetwork, noise_of
from piti.conditions import Condition
from piti.core.errors import UserError, option
from piti.core.images import quantized, truncated
from piti.diffusion.guidance import Guidance, conditioned, guided
from piti.diffusion.samplers import AfterStep, initial_noise, sample, sampling_timesteps
from piti.diffusion.schedule import Denoise, NoiseSchedule
from piti.diffusion.spacing import reshifted
from piti.models import PIXELS, LanguageSpec, Space, TextEncoderSpec, Tokens, Translator
from piti.models.translator import NetworkStep
from piti.pipelines.canvas import Canvas, fitted
from piti.pipelines.noise import upsampler_generators

OnBatchStep = Callable[[int, Tensor], None]  # (steps done in this batch, x̂₀ [B, C, H, W] in the network's space)


@dataclass(frozen=True)
class NetworkSampling:
    """Resolved sampling settings of one network."""

    guidance: Guidance
    steps: int | str
    sampler: str
    noise: float = 1.0
    """Factor on the initial noise."""
    truncates: bool = False
    """For an upsampler: truncate the small images to 8 bits, as PITI's release does, instead of rounding them."""

    def in_8_bits(self, small: Tensor) -> Tensor:
        """Small images [B, 3, h, w] in [-1, 1], rounded or truncated to 256 levels, for the upsampler."""
        return truncated(small) if self.truncates else quantized(small)


ONE_PASS = NetworkSampling(Guidance(w=0.0), steps=1, sampler="none")
"""Sampling settings of a model that generates images in one pass."""
IN_THE_WEIGHTS = Guidance(w=0.0)
"""Guidance to apply to a student, whose own guidance is part of its weights."""


@dataclass(frozen=True)
class ResolvedSampling:
    """Resolved sampling settings of a cascade; without an upsampler the base's images are the result."""

    base: NetworkSampling
    upsampler: NetworkSampling | None
    steps: int
    """Denoising steps of a batch, over both networks."""
    base_only: bool = False
    """Whether the upsampler was left out on purpose."""
    size: int | None = None
    """The requested short side of the images."""
    square: bool = False
    """Whether only the centre square of a condition is used."""


def _unchanged(timestep: int, x_t: Tensor) -> Tensor:
    return x_t


@dataclass(frozen=True)
class StepControl:
    """Control of a batch between its steps; by default nothing is changed."""

    after_step: AfterStep = _unchanged
    """May replace the state from which the next step of either network starts."""
    strength: Callable[[], float] | None = None
    """w of the base's guidance, called before each of its steps; by default that of its settings."""
    stopped: Callable[[], bool] = lambda: False
    """Whether to skip the remaining steps, called before each of them."""

    def with_fixed_strength(self, w: float) -> StepControl:
        """The same control for a network whose guidance is part of its weights: `after_step` raises UserError once the
        strength is not w."""

        def after(timestep: int, x_t: Tensor) -> Tensor:
            made = self.after_step(timestep, x_t)
            asked = w if self.strength is None else self.strength()
            if asked != w:
                raise UserError(
                    f"the guidance scale became {1 + asked:g}, but w = {w:g} is fixed by this distilled model's "
                    "weights",
                    remedy="do not change it, or use the model that it was distilled from",
                    option="callback_on_step_end",
                )
            return made

        return replace(self, after_step=after, strength=None)


UNCONTROLLED = StepControl()


@dataclass(frozen=True)
class Prepared:
    """A condition ready for generation, from `PITIPipeline.prepare`."""

    raw: Tensor
    """The condition in raw form, [K, h, w], on the CPU, in the dtype in which files are read."""
    canvas: Canvas
    sampling: ResolvedSampling
    content_hash: str
    """Hash of the condition as the base's encoder reads it. With a seed and an image's number it determines the
    noise."""

    def bare(self) -> Prepared:
        """A copy without the raw tensor, to save memory; `with_raw` restores it."""
        return replace(self, raw=torch.empty(0))

    def with_raw(self, raw: Tensor) -> Prepared:
        """A copy with the raw tensor."""
        return replace(self, raw=raw)


@dataclass(frozen=True)
class Batch:
    """Images to generate at once."""

    conditions: list[Prepared]
    """Distinct conditions with the same sampling settings, each encoded once. Conditions that are sampled together have
    canvases of one size."""
    rows: list[int]
    """The condition of each image, an index into `conditions`."""
    generators: list[torch.Generator]
    """The noise generator of each image."""
    latents: Tensor | None = None
    """x_T of the base, [B, C, H, W] over the canvases in its space; by default drawn from the generators."""

    @classmethod
    def of(
        cls,
        conditions: Sequence[Prepared],
        rows: Sequence[int],
        generators: list[torch.Generator],
        latents: Tensor | None = None,
    ) -> Batch:
        """Images of some of these conditions, in the order of their first rows."""
        used = list(dict.fromkeys(rows))
        return cls([conditions[k] for k in used], [used.index(k) for k in rows], generators, latents)

    def picked(self, images: Sequence[int]) -> Batch:
        """The images at these positions."""
        latents = None if self.latents is None else self.latents[list(images)]
        generators = [self.generators[k] for k in images]
        return Batch.of(self.conditions, [self.rows[k] for k in images], generators, latents)

    @property
    def sampling(self) -> ResolvedSampling:
        """The sampling settings of all images."""
        return self.conditions[0].sampling

    @property
    def base_size(self) -> tuple[int, int]:
        """(height, width) of the canvases in pixels of the base's images."""
        return self.conditions[0].canvas.base_size

    @property
    def canvases(self) -> list[Canvas]:
        """The canvas of each image."""
        return [self.conditions[k].canvas for k in self.rows]

    def upsampled(self) -> Batch:
        """The same images with the upsampler's generators, derived from the current state of these."""
        return Batch(self.conditions, self.rows, upsampler_generators(self.generators))


@dataclass(frozen=True)
class Network:
    """A translator with its noise schedule, condition and device."""

    translator: Translator
    schedule: NoiseSchedule
    condition: Condition
    device: torch.device
    space: Space = PIXELS
    step: NetworkStep | None = None
    """An engine's replacement for the translator's own step."""

    @property
    def alone(self) -> bool:
        """Whether images are processed one by one: for an upsampler on a CPU, where batches are no faster and need more
        memory."""
        return self.translator.low_res is not None and self.device.type == "cpu"

    def exact(self) -> Network:
        """A copy computed by torch in the translator's own precision."""
        return replace(self, step=None)

    @torch.no_grad()
    def warm(self) -> None:
        """Run one dummy step at the model's size, so that the engine is prepared."""
        translator, kind = self.translator, {"device": self.device, "dtype": self.translator.dtype}
        size, small = translator.image_size, translator.low_res
        spec, side = getattr(translator.encoder, "spec", None), translator.condition_side or size
        rows, columns = (1, spec.context) if isinstance(spec, TextEncoderSpec | LanguageSpec) else (side, side)
        encoded = self.condition.null(1, rows, columns, **kind)
        x_t = torch.zeros(1, *self.space.shape(size, size), **kind)
        low_res = None if small is None else x_t[..., :small, :small]
        tokens = translator.encode(encoded)
        translator(x_t, torch.zeros(1, dtype=torch.long, device=self.device), tokens, low_res, step=self.step)

    def steps(self, settings: NetworkSampling) -> int:
        """The number of denoising steps of these settings. Raises UserError for invalid ones."""
        count = len(sampling_timesteps(self.schedule, settings.sampler, settings.steps))
        if self.translator.student is not None:
            self.translator.student.check(count, settings.sampler, settings.guidance)
        if self.translator.one_step and count != 1:
            raise UserError(
                f"{count} steps: this {self.translator.role} was trained for one step from noise only",
                remedy="leave steps and sampler out",
            )
        return count

    def sample(
        self,
        batch: Batch,
        settings: NetworkSampling,
        on_step: OnBatchStep,
        low_res: Tensor | None = None,
        control: StepControl = UNCONTROLLED,
    ) -> Tensor:
        """Sample the canvases of a batch, [B, 3, H, W] in [-1, 1]. low_res: the small images that an
        upsampler enlarges."""
        small = None if low_res is None else low_res.to(self.device)
        student = self.translator.student
        if student is not None:
            control = control.with_fixed_strength(settings.guidance.w)
        guidance = settings.guidance if student is None else IN_THE_WEIGHTS
        tokens, both = self.encode(batch, with_null=guidance.w != 0 or control.strength is not None)

        def report(done: int, total: int, x0: Tensor) -> None:
            on_step(done, x0)

        x_T, own = self.noise(batch, settings), batch.generators
        if small is not None and self.translator.noised is not None:
            small = self.translator.noised(small, (x_T.shape[-2], x_T.shape[-1]), own)
        denoise = self.denoiser(tokens, both, guidance, small, strength=control.strength)
        known = self.visited(settings, x_T)
        x_0 = sample(
            denoise, x_T, self.schedule, settings.sampler, known, own, report,
            after_step=control.after_step, stopped=control.stopped,
        )  # fmt: skip
        return self.space.images(x_0)

    def visited(self, settings: NetworkSampling, like: Tensor) -> int | str | Sequence[int]:
        """The steps to sample points like these, [B, C, H, W]: as set, or the timesteps that a student is fixed to; or
        those of a flow whose noise levels follow the image's size. Raises UserError for a size without any."""
        if self.translator.student is not None:
            return self.translator.student.visited(settings.steps)
        factor = self.space.spec.factor
        ratio = self.translator.shift_ratio(like.shape[-2] * factor, like.shape[-1] * factor)
        if ratio == 1:
            return settings.steps
        return reshifted(sampling_timesteps(self.schedule, settings.sampler, settings.steps), len(self.schedule), ratio)

    def noise(self, batch: Batch, settings: NetworkSampling) -> Tensor:
        """The initial noise x_T of a batch, [B, C, H, W], in the network's space."""
        if batch.latents is not None:
            return batch.latents.to(self.device, torch.float32)
        height, width = (side * self.translator.scale for side in batch.base_size)
        shape = (len(batch.rows), *self.space.shape(height, width))
        return settings.noise * initial_noise(shape, batch.generators, device=self.device)

    def denoiser(
        self,
        tokens: Tokens,
        both: Tokens | None,
        guidance: Guidance,
        low_res: Tensor | None = None,
        known: Tensor | None = None,
        strength: Callable[[], float] | None = None,
    ) -> Denoise:
        """The guided denoiser for B encoded conditions, as called by samplers; create a new one for each run.

        tokens, both: see `encode`. low_res: the B small images that an upsampler enlarges, on its device. known:
        [B, 4, H, W], for an inpainting translator. strength: the guidance strength, if it changes during a run.
        """
        dtype = self.translator.dtype

        def predict(x_t: Tensor, t: Tensor, given: Tokens) -> tuple[Tensor, Tensor | None]:
            # a guided pair is a batch of 2 B, and both halves get the same small images and known pixels
            small, kept = (None if x is None else x.repeat(len(x_t) // len(x), 1, 1, 1) for x in (low_res, known))
            if not self.alone:
                return computed(x_t, t, given, small, kept)
            made = [
                computed(x_t[k : k + 1], t[k : k + 1], given.picked([k]), _row(small, k), _row(kept, k))
                for k in range(len(x_t))
            ]
            outputs, variances = zip(*made, strict=True)
            return torch.cat(outputs), None if variances[0] is None else torch.cat(variances)

        def computed(
            x_t: Tensor, t: Tensor, given: Tokens, small: Tensor | None, kept: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            more = {key: value for key, value in {"known": kept, "step": self.step}.items() if value is not None}
            return self.translator(x_t.to(dtype), t, given, small, **more)

        return guided(conditioned(predict, tokens, both, self.schedule), guidance, self.schedule, strength)

    def encode(self, batch: Batch, with_null: bool) -> tuple[Tokens, Tokens | None]:
        """The tokens of a batch, and with `with_null` the same followed by as many null tokens. Each condition is
        encoded once."""
        if self.translator.encoder is None:
            nothing = torch.empty(len(batch.rows), 0, 0, 0, device=self.device, dtype=self.translator.dtype)
            return self.translator.encode(nothing), None
        sized = [fitted(self.condition, one.raw, one.canvas, self.translator) for one in batch.conditions]
        encoded = self.condition.encode(torch.stack(sized)).to(self.device)
        if encoded.is_floating_point():  # token ids of a text stay integers
            encoded = encoded.to(self.translator.dtype)
        _bring(self.translator)
        tokens = self.translator.encode(encoded).picked(batch.rows)
        if not with_null:
            return tokens, None
        null = self.condition.null(1, *encoded.shape[-2:], device=encoded.device, dtype=encoded.dtype)
        return tokens, tokens.joined(self.translator.encode(null).picked([0] * len(batch.rows)))


@dataclass(frozen=True)
class OnePass:
    """A baseline in place of a base: it generates images in one pass, without guidance."""

    translator: BaselineNetwork
    condition: Condition
    device: torch.device

    def steps(self, settings: NetworkSampling) -> int:
        """Always 1. Raises UserError for settings other than `ONE_PASS`."""
        if settings != ONE_PASS:
            raise UserError(
                f"{option('guidance')}, {option('steps')} and {option('sampler')} do not apply: this model "
                "generates images in one pass",
                remedy="leave them out",
            )
        return 1

    def sample(
        self, batch: Batch, settings: NetworkSampling, on_step: OnBatchStep, control: StepControl = UNCONTROLLED
    ) -> Tensor:
        """The canvases of a batch, [B, 3, H, W] in [-1, 1]."""
        network = self.translator
        sized = [fitted(self.condition, one.raw, one.canvas, network) for one in batch.conditions]
        condition = self.condition.encode(torch.stack([sized[k] for k in batch.rows])).to(
            self.device, network.dtype
        )  # [B, C, H, W]
        noise = noise_of(network.baseline, batch.generators, self.device)
        _bring(network)
        images = network(condition, None if noise is None else noise.to(network.dtype)).float().clamp(-1, 1)
        on_step(1, images)
        return control.after_step(0, images)


def sample_cascade(
    base: Network | OnePass,
    upsampler: Network | None,
    batch: Batch,
    on_step: OnBatchStep,
    control: StepControl = UNCONTROLLED,
) -> Tensor:
    """Sample a batch with both networks; returns whole canvases [B, 3, H, W] in [-1, 1]. on_step counts over both.

    If sampling is interrupted in the base, small images are enlarged by nearest neighbour. The upsampler gets the small
    images rounded to 8 bits, see `NetworkSampling.in_8_bits`.
    """
    sampling = batch.sampling
    if upsampler is None or sampling.upsampler is None:
        return base.sample(batch, sampling.base, on_step, control=control)
    second, before = batch.upsampled(), base.steps(sampling.base)
    small = sampling.upsampler.in_8_bits(base.sample(batch, sampling.base, on_step, control=control))  # [B, 3, h, w]
    if control.stopped():
        return F.interpolate(small, scale_factor=upsampler.translator.scale)
    further = replace(control, strength=None)
    return upsampler.sample(second, sampling.upsampler, lambda done, x0: on_step(before + done, x0), small, further)


def _row(x: Tensor | None, k: int) -> Tensor | None:
    return None if x is None else x[k : k + 1]


# Devices


def _bring(translator: ImageNetwork) -> None:
    """Move an offloaded network to its device: offloading hooks run before `forward` only, not `encode`."""
    registry = getattr(translator, "_diffusers_hook", None)
    for hook in (getattr(translator, "_hf_hook", None), registry and registry.get_hook("group_offloading")):
        if hook is not None:
            hook.pre_forward(translator)
