"""`PITIPipeline`: from conditions to images, through a base and an upsampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack, cast

import torch
from PIL import Image
from torch import Tensor

from piti.baselines import BaselineNetwork, ImageNetwork
from piti.checkpoints.compatibility import check_cascade
from piti.checkpoints.folder import SCHEDULERS, ModelError, bundled_models, find_model
from piti.checkpoints.listing import ModelEntry, list_models
from piti.conditions import Condition, TextCondition
from piti.core.devices import usable_device
from piti.core.errors import UserError
from piti.core.images import to_pil
from piti.core.seeding import draws_on
from piti.diffusion.samplers import OnStep, Scheduler, sampler_of, scheduler_named
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import noise_schedule_of, spec_of
from piti.engine import Engine, EngineError, TorchEngine, engine_named
from piti.models import PIXELS, Space, Translator
from piti.models.space import Autoencoder
from piti.pipelines.call import (
    TENSOR_INPUTS,
    CallState,
    ConditionInput,
    OutputType,
    PITIPipelineOutput,
    StepCallback,
    StepEnd,
    as_output,
    check_output,
    checked_latents,
    gathered,
    images_each,
    listed,
    merged,
    one_call,
)
from piti.pipelines.canvas import batches_alike, canvas_of, canvas_over, content_hash, fitted
from piti.pipelines.cascade import (
    UNCONTROLLED,
    Batch,
    Network,
    OnePass,
    Prepared,
    ResolvedSampling,
    StepControl,
    sample_cascade,
)
from piti.pipelines.noise import one_each
from piti.pipelines.options import (
    OWN_SAMPLING,
    SamplingKeywords,
    SamplingOptions,
)
from piti.pipelines.saved import SavedPipeline

__all__ = [
    "ModelEntry",
    "ModelError",
    "PITIPipeline",
    "PITIPipelineOutput",
    "bundled_models",
    "find_model",
    "list_models",
    "usable_device",
]


class PITIPipeline(CallState, SavedPipeline):
    """Translates conditions into images (PITI, section 3) with a base and an optional upsampler.

    base: the translator that generates the small image, or a baseline, which does so in one pass.
    scheduler: the noise schedule that the base was trained with; None for a baseline. Its class is the sampler, unless
    `defaults` names another.
    condition: how the input is read and encoded.
    upsampler, upsampler_scheduler: the translator that enlarges the small image, and its noise schedule.
    defaults: the model's default sampling options, as `SamplingOptions` or under their flat keys; options that are not
    set are as in `GENERAL_DEFAULTS`.
    vae: the autoencoder of a latent base.

    Components can be replaced, also by their `torch.compile`d versions. After `pipe.scheduler =
    DDIMScheduler.from_config(pipe.scheduler.config)` the new scheduler's class is the sampler, also in a saved model.

    Raises ModelError for incompatible components, and UserError for a scheduler with unsupported settings: on
    construction, when a component is replaced, or at the next call.
    """

    model_cpu_offload_seq = "base->vae->upsampler"
    _optional_components: ClassVar[list[str]] = ["upsampler", "upsampler_scheduler", "vae"]
    _callback_tensor_inputs: ClassVar[list[str]] = TENSOR_INPUTS

    def __init__(
        self,
        base: ImageNetwork,
        scheduler: Scheduler | None,
        condition: Condition,
        upsampler: Translator | None = None,
        upsampler_scheduler: Scheduler | None = None,
        defaults: SamplingOptions | Mapping[str, Any] | None = None,
        vae: Autoencoder | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            base=base,
            scheduler=scheduler,
            condition=condition,
            upsampler=upsampler,
            upsampler_scheduler=upsampler_scheduler,
            vae=vae,
        )
        if not isinstance(defaults, SamplingOptions):
            defaults = SamplingOptions.from_flat(defaults or {}, "the model's defaults")
        if upsampler is None and upsampler_scheduler is not None:
            raise ModelError(_TOGETHER)
        self.check_parts()
        self.engine: Engine = TorchEngine()
        self.defaults = defaults

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = "_defaults" in self.__dict__
        if replaced and name in ("base", "upsampler") and not (value is None or hasattr(value, "one_pass")):
            raise ModelError(
                f"expected a network of this package, or a compiled one, got {type(value).__name__}",
                remedy="assign the network that it wraps",
                source=f"pipe.{name}",
            )
        if replaced and name in SCHEDULERS.values() and value is not None:
            network = "base" if name == SCHEDULERS["base"] else "upsampler"
            self._check_schedule(name, value)
            super().__setattr__("defaults", self.defaults.with_sampler(network, sampler_of(value)))
        super().__setattr__(name, value)

    def _check_schedule(self, name: str, scheduler: Scheduler) -> None:
        """Raise UserError for an unsupported scheduler class, or one with another noise schedule than before."""
        scheduler_named(type(scheduler).__name__)
        before = getattr(self, name, None)
        if before is None:
            return
        old, new = spec_of(before), spec_of(scheduler)
        if (old.betas, old.beta_range, old.steps, old.shift) != (new.betas, new.beta_range, new.steps, new.shift):
            raise UserError(
                f"{type(scheduler).__name__}: {new.to_dict()} differs from the noise schedule that the network "
                f"was trained with, {old.to_dict()}",
                remedy="create the scheduler by from_config(pipe.scheduler.config)",
            )

    def check_parts(self) -> None:
        """Raise ModelError if the current components are incompatible."""
        if self.upsampler is not None and self.upsampler_scheduler is None:
            raise ModelError(_TOGETHER)
        if (self.scheduler is None) != self.base.one_pass:
            raise ModelError("a translator needs its scheduler, and a baseline has none; add or remove the scheduler")
        check_cascade(self.condition, self.base, self.upsampler)
        for network, scheduler in ((self.base, self.scheduler), (self.upsampler, self.upsampler_scheduler)):
            if isinstance(network, Translator) and scheduler is not None:
                scheduler_named(type(scheduler).__name__)  # others describe their noise schedule by other keys
                network.check_schedule(spec_of(scheduler))
        bounded = self.schedule is not None and self.schedule.has_bounds
        if self.space.spec.latent and bounded:
            raise ModelError(
                "the base works on latents, but the scheduler clips them (clip_sample or thresholding)",
                remedy="create the scheduler by from_config(pipe.scheduler.config)",
            )

    @property
    def space(self) -> Space:
        """The space of the base: pixels, or the autoencoder's latents. Raises UserError if the autoencoder is
        missing."""
        return PIXELS if self.base.one_pass else Space(cast(Translator, self.base).space_spec, self.vae)

    def shown(self, x0: Tensor) -> Tensor:
        """The x̂₀ [B, C, H, W] passed to `on_step`, in the space of the current network, as images [B, 3, H, W]."""
        return self.space.images(x0) if x0.shape[1] == self.space.spec.channels else x0

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule of the scheduler; None for a baseline."""
        return None if self.scheduler is None else noise_schedule_of(self.scheduler)

    @property
    def upsampler_schedule(self) -> NoiseSchedule | None:
        """The noise schedule of the upsampler's scheduler; None without one."""
        return None if self.upsampler_scheduler is None else noise_schedule_of(self.upsampler_scheduler)

    @torch.no_grad()
    def __call__(
        self,
        condition: ConditionInput | Sequence[ConditionInput] | None = None,
        num_images: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 8,
        on_step: OnStep | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> PITIPipelineOutput:
        """Translate one condition or several, generating `num_images` images of each (1 by default).

        condition: a `ConditionInput`, such as a file or a PIL image, or a list of these. Images have the aspect ratio
        of their condition, see `Canvas`. generator: determines the noise, which is drawn on its device; images do not
        depend on `batch_size`. A list has one generator per image, and each image is then the same as if it were
        generated alone. batch_size: images generated at once, by either network. on_step: called as (steps done, total
        steps, x̂₀ [B, C, H, W]) after each step of a batch, counted over both networks. x̂₀ is the whole canvas in the
        space of the current network; `shown` converts it to images. sampling: `SamplingOptions` as keywords: guidance,
        steps and sampler, those of the upsampler with the prefix `upsampler_`, base_only, size and square. By default
        the model's.

        As in diffusers: num_inference_steps is steps, guidance_scale is 1 + w, num_images_per_prompt is num_images;
        latents: the base's initial noise [N, C, H, W], in its space; output_type: see `OutputType`; return_dict: False
        for a tuple; callback_on_step_end: see `StepCallback`.

        Raises ConditionError or ImageError for an invalid condition, and UserError for an invalid option or one given
        under both names.
        """
        inputs = listed(condition)
        count = images_each(num_images, num_images_per_prompt, batch_size)
        options = SamplingOptions.from_flat(merged(sampling, num_inference_steps, guidance_scale))
        callback = StepCallback.of(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        everything = self._prepared(inputs, count, generator, options, latents)
        check_output(output_type, everything.canvases, self.space)
        images = self._in_batches(everything, batch_size, on_step, callback, output_type)
        output = gathered(images, output_type)
        return PITIPipelineOutput(images=output) if return_dict else (output,)  # pyright: ignore[reportReturnType]

    def _prepared(
        self,
        inputs: Sequence[object],
        count: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        options: SamplingOptions,
        latents: Tensor | None,
    ) -> Batch:
        """All images of a call, `count` per input; their canvases may differ."""
        resolved = options.resolve(self)
        first = [next(k for k, other in enumerate(inputs) if other is item) for item in inputs]
        distinct = sorted(set(first))  # an input given twice is read and encoded once
        prepared = [self.prepare(inputs[k], resolved) for k in distinct]
        rows = [distinct.index(k) for k in first for _ in range(count)]
        space = None if self.base.one_pass else self.space
        latents = checked_latents(latents, [prepared[k].canvas for k in rows], space)
        return Batch(prepared, rows, one_each(generator, len(rows), draws_on(self._device_of(self.base))), latents)

    def _in_batches(
        self,
        everything: Batch,
        batch_size: int,
        on_step: OnStep | None,
        callback: StepCallback | None,
        output_type: OutputType,
    ) -> list[Image.Image | Tensor]:
        """The images of a call, generated `batch_size` at a time."""
        resolved = everything.sampling
        batches = batches_alike(everything.canvases, batch_size)
        images: dict[int, Image.Image | Tensor] = {}
        with one_call(self), self.progress_bar(total=resolved.steps * len(batches)) as bar:  # pyright: ignore[reportCallIssue]
            self._num_timesteps, self._interrupt = resolved.steps, False

            def stepped(done: int, total: int, x0: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(done, total, x0)

            for positions in batches:
                w = resolved.base.guidance.w
                self._guidance_scale = 1 + w  # undo a callback's change in an earlier batch
                control = UNCONTROLLED if callback is None else callback.control(w)
                made = self._sampled(everything.picked(positions), stepped, control)
                images |= zip(positions, (as_output(image, output_type) for image in made), strict=True)
        return [images[k] for k in range(len(images))]

    # The two steps of a call: prepare and generate

    def prepare(
        self,
        condition: object,
        options: SamplingOptions | ResolvedSampling = OWN_SAMPLING,
        source: str = "the condition",
        over: tuple[int, int] | None = None,
    ) -> Prepared:
        """Read a condition, and determine the canvas and the sampling settings of its images.

        options: may be resolved already, if several conditions share them. source: the condition's name in errors.
        over: (rows, columns) whose aspect ratio the images take, instead of the condition's. Raises ConditionError or
        ImageError for an invalid condition, UserError for an invalid option.
        """
        sampling = options if isinstance(options, ResolvedSampling) else options.resolve(self)
        raw = self._narrowed(self.read(condition, sampling.square))
        upsampler = None if sampling.upsampler is None else self.upsampler
        if over is None:
            canvas = canvas_of(self.condition, raw, self.base, upsampler, sampling.size, source)
        else:
            canvas = canvas_over(*over, self.base, upsampler, sampling.size, source)
        return Prepared(raw, canvas, sampling, content_hash(fitted(self.condition, raw, canvas, self.base)))

    def generate(self, batch: Batch, on_step: OnStep | None = None) -> list[Image.Image]:
        """Generate the images of a batch of prepared conditions. on_step: as in `__call__`, for this batch."""
        return [to_pil(image) for image in self._sampled(batch, on_step)]

    @torch.no_grad()
    def _sampled(
        self, batch: Batch, on_step: OnStep | None = None, control: StepControl = UNCONTROLLED
    ) -> list[Tensor]:
        """The images of a batch, [3, h, w] in [-1, 1], float32 on the CPU."""
        total = batch.sampling.steps

        def stepped(done: int, x0: Tensor) -> None:
            if on_step is not None:
                on_step(done, total, x0)

        made = sample_cascade(self.base_network(), self.upsampler_network(), batch, stepped, control).float().cpu()
        self.maybe_free_model_hooks()
        return [canvas.crop(x0) for canvas, x0 in zip(batch.canvases, made, strict=True)]

    def _narrowed(self, raw: Tensor) -> Tensor:
        """A raw tensor on the CPU in the dtype that files are read as, since noise is derived from a condition's
        bytes."""
        text = isinstance(self.condition, TextCondition)
        return raw.cpu().to(torch.int32 if text else self.condition.raw_dtype)

    def draws_noise(self, base_only: bool = False) -> bool:
        """Whether images of one condition differ from seed to seed. base_only: without the upsampler."""
        alone = base_only or self.upsampler is None
        return not (alone and self.base.one_pass and not cast(BaselineNetwork, self.base).baseline.noise_shape)

    # Networks

    def use_engine(self, name: str, dtype: str = "auto") -> Self:
        """Compute the networks' steps with "torch", "openvino", or the choice of "auto", see `engine_named`.

        Encoders, baselines and edits always use torch. Returns the pipeline. Raises EngineError.
        """
        engine, stepping = engine_named(name, self.device, dtype), self._stepping()
        if not stepping or (engine.name != TorchEngine.name and not all(part.compiles for part in stepping)):
            if stepping and name != "auto":
                raise EngineError("does not support UNets of other families", option="engine", value=name)
            engine = TorchEngine()
        self.engine = engine
        return self

    def engine_ready(self) -> bool:
        """Whether the engine has prepared all networks; if not, the first images take seconds longer."""
        return all(self.engine.ready(part) for part in self._stepping())

    def _stepping(self) -> list[Translator]:
        """The networks that take denoising steps."""
        parts = [part for part in (self.base, self.upsampler) if part is not None and not part.one_pass]
        return [cast(Translator, part) for part in parts]

    def warm(self) -> None:
        """Prepare the engine, so that the first images take no longer than later ones."""
        for network in (self.base_network(), self.upsampler_network()):
            if isinstance(network, Network):
                network.warm()

    def base_network(self) -> Network | OnePass:
        """The base, ready for sampling."""
        device = self._device_of(self.base)
        if self.base.one_pass:
            return OnePass(cast(BaselineNetwork, self.base), self.condition, device)
        assert self.schedule is not None
        base = cast(Translator, self.base)
        return Network(base, self.schedule, self.condition, device, self.space, self.engine.step(base))

    def upsampler_network(self) -> Network | None:
        """The upsampler, ready for sampling; None without one."""
        if self.upsampler is None or self.upsampler_schedule is None:
            return None
        device, step = self._device_of(self.upsampler), self.engine.step(self.upsampler)
        return Network(self.upsampler, self.upsampler_schedule, self.condition, device, step=step)

    def _device_of(self, translator: ImageNetwork) -> torch.device:
        return self._execution_device if hasattr(translator, "_hf_hook") else translator.device

    # Conditions

    def read(self, item: object, square: bool = False) -> Tensor:
        """Read a condition as a raw tensor [K, h, w] at its own resolution. square: only its centre square."""
        if isinstance(item, str) and isinstance(self.condition, TextCondition):
            raw = self.condition.tokens(item)
        else:
            reader = self.condition.beside(item)
            raw = reader.take(item) if isinstance(item, Tensor) else reader.declared(reader.take(item))
        return self.condition.squared(raw) if square else raw


_TOGETHER = "an upsampler needs its scheduler; give both, or neither"
