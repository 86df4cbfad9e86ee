"""The pipeline: conditions in, images out, through a base and an upsampler."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from piti.baselines import BaselineNetwork, ImageNetwork
from piti.checkpoints.folder import (
    INDEX_FILE,
    OF_UPSAMPLER,
    SCHEDULERS,
    ModelError,
    ModelFolder,
    ModelInfo,
    Saveable,
    bundled_models,
    find_model,
    list_models,
    write_model_folder,
)
from piti.conditions import Condition, ConditionError, Given, Handed, TextCondition
from piti.core.distributed import usable_device
from piti.core.errors import UserError, option, text_of
from piti.core.images import to_pil
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import OnStep, Scheduler, sampler_of
from piti.diffusion.schedule import NoiseSchedule, noise_schedule_of
from piti.models import Translator
from piti.pipelines.canvas import batches_alike, canvas_of, canvas_over, fitted
from piti.pipelines.cascade import (
    Batch,
    Network,
    OnePass,
    Prepared,
    ResolvedSampling,
    check_cascade,
    one_each,
    sample_cascade,
)
from piti.pipelines.options import (
    GENERAL_DEFAULTS,
    OWN_SAMPLING,
    NetworkOptions,
    SamplingKeywords,
    SamplingOptions,
    UpsamplerOptions,
)

__all__ = [
    "ModelError",
    "ModelInfo",
    "PITIPipeline",
    "PITIPipelineOutput",
    "bundled_models",
    "find_model",
    "list_models",
    "usable_device",
]

ConditionInput = Handed | Mapping[str, Given]

HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "local_files_only", "token", "force_download"})


@dataclass
class PITIPipelineOutput(BaseOutput):
    """What a pipeline returns."""

    images: list[Image.Image]
    """`num_images` for each condition, in the order of the conditions."""


class PITIPipeline(DiffusionPipeline):
    """Translates conditions into images (PITI, section 3): a base, and an upsampler where there is one.

    base: the translator that makes the small image, or a baseline, which makes it in one pass; scheduler: the noise
    schedule that the translator was trained with, none for a baseline; its class is the sampler, where `defaults`
    name none;
    condition: how its input is read; upsampler, upsampler_scheduler: the translator that enlarges the small image, and
    its schedule; defaults: how this model is sampled where a caller does not say, as options or under their flat keys;
    else as in `GENERAL_DEFAULTS`.

    A part may be replaced, also by what `torch.compile` makes of it: `pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config)` makes its class the sampler from then on, and is saved.

    Raises ModelError for parts that do not fit each other, UserError for a scheduler whose settings would not be
    followed, also where a part is replaced.
    """

    base: ImageNetwork
    scheduler: Scheduler | None
    upsampler_scheduler: Scheduler | None
    condition: Condition
    upsampler: Translator | None
    model_cpu_offload_seq = "base->upsampler"
    _optional_components: ClassVar[list[str]] = ["scheduler", "upsampler", "upsampler_scheduler"]

    def __init__(
        self,
        base: ImageNetwork,
        scheduler: Scheduler | None,
        condition: Condition,
        upsampler: Translator | None = None,
        upsampler_scheduler: Scheduler | None = None,
        defaults: SamplingOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            base=base,
            scheduler=scheduler,
            condition=condition,
            upsampler=upsampler,
            upsampler_scheduler=upsampler_scheduler,
        )
        if not isinstance(defaults, SamplingOptions):
            defaults = SamplingOptions.from_flat(defaults or {}, "the model's defaults")
        if upsampler is None and upsampler_scheduler is not None:
            raise ModelError(_TOGETHER)
        self.check_parts()
        self.defaults = defaults.networks_over(self._general_defaults())

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = "defaults" in self.__dict__
        if replaced and name in ("base", "upsampler") and not (value is None or hasattr(value, "one_pass")):
            raise ModelError(
                f"expected a network of this package, or what torch.compile makes of one, got {type(value).__name__}",
                remedy="give what it wraps",
                source=f"pipe.{name}",
            )
        if replaced and name in SCHEDULERS.values() and value is not None:
            network = "base" if name == SCHEDULERS["base"] else "upsampler"
            super().__setattr__("defaults", self.defaults.with_sampler(network, sampler_of(value)))
        super().__setattr__(name, value)

    def _general_defaults(self) -> SamplingOptions:
        """`GENERAL_DEFAULTS`, with the samplers that the schedulers are."""
        first, second = self.scheduler, self.upsampler_scheduler
        by_class = SamplingOptions(
            base=NetworkOptions(sampler=None if first is None else sampler_of(first)),
            upsampler=UpsamplerOptions(sampler=None if second is None else sampler_of(second)),
        )
        return by_class.networks_over(GENERAL_DEFAULTS)

    def check_parts(self) -> None:
        """Raises ModelError unless the parts, as they are now, fit each other."""
        if self.upsampler is not None and self.upsampler_scheduler is None:
            raise ModelError(_TOGETHER)
        if (self.scheduler is None) != self.base.one_pass:
            raise ModelError("a translator goes with its scheduler, a baseline has none; give what belongs together")
        check_cascade(self.condition, self.base, self.upsampler)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule of the scheduler, none for a baseline."""
        return None if self.scheduler is None else noise_schedule_of(self.scheduler)

    @property
    def upsampler_schedule(self) -> NoiseSchedule | None:
        """The noise schedule of the upsampler's scheduler."""
        return None if self.upsampler_scheduler is None else noise_schedule_of(self.upsampler_scheduler)

    @torch.no_grad()
    def __call__(
        self,
        condition: Any,
        num_images: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 8,
        on_step: OnStep | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> PITIPipelineOutput:
        """Translate one condition or several, `num_images` times each.

        condition: a `ConditionInput` or several in a list: a file, a PIL image, its pixels as an array (uint8
        [h, w, 3], or numbers [h, w]; depth as floats in metres), or what the condition's `read` returns, [K, h, w]. Its
        image has its proportions, see `Canvas`. For a prior: the text itself, a `Path` of a text file, or tokens.
        For several conditions at once: one of these for each part that is given, by the part's name.
        generator: decides the noise; the same generator gives the same images, whatever the batch; several: one an
        image, each deciding what it would alone. batch_size: images made at once, by either network. on_step: called
        with (steps done, steps in all, x̂₀ [B, 3, H, W] in [-1, 1]), counted over both networks; x̂₀ is the whole
        canvas.
        sampling: guidance, steps, sampler, the same of the upsampler with `upsampler_` in front, base_only, size and
        square, see `SamplingOptions`; the model's own by default.

        Raises ConditionError or ImageError for a condition, UserError for an option.
        """
        several = isinstance(condition, Sequence) and not isinstance(condition, str | bytes)
        inputs = list(condition) if several else [condition]
        if not inputs:
            raise ConditionError("no condition is given", remedy="give one, or several in a list")
        if num_images < 1 or batch_size < 1:
            raise UserError(f"num_images {num_images} and batch_size {batch_size} must be at least 1")
        resolved = SamplingOptions.from_flat(sampling).resolve(self)
        first = [next(k for k, other in enumerate(inputs) if other is item) for item in inputs]
        distinct = sorted(set(first))  # one given twice is read and encoded once
        prepared = [self.prepare(inputs[k], resolved) for k in distinct]
        rows = [distinct.index(k) for k in first for _ in range(num_images)]
        generators = one_each(generator, len(rows))
        batches = batches_alike([prepared[k].canvas for k in rows], batch_size)
        images: dict[int, Image.Image] = {}
        with self.progress_bar(total=resolved.steps * len(batches)) as bar:  # pyright: ignore[reportCallIssue]

            def stepped(done: int, total: int, x0: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(done, total, x0)

            for positions in batches:
                own = [generators[k] for k in positions]
                batch = Batch.of(prepared, [rows[k] for k in positions], own)
                images |= zip(positions, self.generate(batch, stepped), strict=True)
        return PITIPipelineOutput(images=[images[k] for k in range(len(rows))])

    # The two steps of it

    def prepare(
        self,
        condition: Any,
        options: SamplingOptions | ResolvedSampling = OWN_SAMPLING,
        source: str = "the condition",
        over: tuple[int, int] | None = None,
    ) -> Prepared:
        """Read a condition, and decide on what canvas and how its images are made.

        options: resolved ones for several conditions. source: names the condition in errors. over: (rows, columns) of
        a picture whose proportions the images take, instead of the condition's. Raises ConditionError or ImageError
        for a condition, UserError for an option.
        """
        sampling = options if isinstance(options, ResolvedSampling) else options.resolve(self)
        raw = self._narrowed(self.read(condition, sampling.square))
        upsampler = None if sampling.upsampler is None else self.upsampler
        if over is None:
            canvas = canvas_of(self.condition, raw, self.base, upsampler, sampling.size, source)
        else:
            canvas = canvas_over(*over, self.base, upsampler, sampling.size, source)
        return Prepared(raw, canvas, sampling, content_hash(fitted(self.condition, raw, canvas, self.base)))

    @torch.no_grad()
    def generate(self, batch: Batch, on_step: OnStep | None = None) -> list[Image.Image]:
        """The images of a batch of prepared conditions. on_step: as of `__call__`, of this batch."""
        total = batch.sampling.steps

        def stepped(done: int, x0: Tensor) -> None:
            if on_step is not None:
                on_step(done, total, x0)

        made = sample_cascade(self.base_network(), self.upsampler_network(), batch, stepped).float().cpu()
        self.maybe_free_model_hooks()
        return [to_pil(canvas.crop(x0)) for canvas, x0 in zip(batch.canvases, made, strict=True)]

    def _narrowed(self, raw: Tensor) -> Tensor:
        """A raw tensor in the type that files are read in, on the CPU: noise follows from the bytes of a condition."""
        text = isinstance(self.condition, TextCondition)
        return raw.cpu().to(torch.int32 if text else self.condition.raw_dtype)

    def draws_noise(self, base_only: bool = False) -> bool:
        """Whether several images of one condition differ. base_only: without the upsampler."""
        alone = base_only or self.upsampler is None
        return not (alone and self.base.one_pass and not cast(BaselineNetwork, self.base).baseline.noise_shape)

    # Networks

    def base_network(self) -> Network | OnePass:
        """The base as it is sampled."""
        device = self._device_of(self.base)
        if self.base.one_pass:
            return OnePass(cast(BaselineNetwork, self.base), self.condition, device)
        assert self.schedule is not None
        return Network(cast(Translator, self.base), self.schedule, self.condition, device)

    def upsampler_network(self) -> Network | None:
        """The upsampler as it is sampled, where there is one."""
        if self.upsampler is None or self.upsampler_schedule is None:
            return None
        return Network(self.upsampler, self.upsampler_schedule, self.condition, self._device_of(self.upsampler))

    def _device_of(self, translator: ImageNetwork) -> torch.device:
        return self._execution_device if hasattr(translator, "_hf_hook") else translator.device

    # Conditions

    def read(self, item: Any, square: bool = False) -> Tensor:
        """A condition in raw form, in its own resolution, [K, h, w]; square: cropped at its centre."""
        if isinstance(item, str) and isinstance(self.condition, TextCondition):
            raw = self.condition.tokens(item)
        else:
            raw = self.condition.take(item)
        return self.condition.squared(raw) if square else raw

    # On disk

    def save_pretrained(self, save_directory: str | Path) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the model's folder."""
        parts: dict[str, Saveable | None] = {"base": self.base}
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        if self.upsampler is not None:
            parts |= {"upsampler": self.upsampler, "upsampler_scheduler": self.upsampler_scheduler}
        condition = self.condition.saved_in(Path(save_directory))
        saved = {name: part for name, part in parts.items() if part is not None}
        write_model_folder(Path(save_directory), saved, condition.to_config(), self._own_defaults())

    def _own_defaults(self) -> dict[str, Any]:
        """What the model folder says of sampling, under flat keys: what differs from what holds for any model."""
        general, own = self._general_defaults().to_flat(), self.defaults.to_flat()
        said = {key: value for key, value in own.items() if value != general[key]}
        if self.upsampler is None:
            said = {key: value for key, value in said.items() if not key.startswith(OF_UPSAMPLER)}
        return {key: _plain(value) if isinstance(value, Guidance) else value for key, value in said.items()}

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        name: str | Path,
        torch_dtype: torch.dtype = torch.float32,
        upsampler: str | Path | None = None,
        base_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a bundled model by name, a folder, a training run, or a model of the hub by its id.

        upsampler: a model, as `name`, whose upsampler and its settings replace the model's own, or the one of another
        model that it shares. base_only: load no upsampler. kwargs: passed on to the hub's download (`revision`, which
        is of `name` alone, `cache_dir`, `local_files_only`, `token`). Raises ModelError.
        """
        unknown = kwargs.keys() - HUB_ARGUMENTS
        if unknown:
            known = ", ".join(sorted({"torch_dtype", "upsampler", "base_only", *HUB_ARGUMENTS}))
            raise ModelError(f"from_pretrained: unknown argument {', '.join(sorted(unknown))}; known are {known}")
        if base_only and upsampler is not None:
            raise ModelError(
                f"has no place with {option('base_only')}",
                remedy="leave one of the two out",
                option="upsampler",
                value=upsampler,
            )
        folder = ModelFolder.open(find_model(name, **kwargs))
        if "base" not in folder:
            raise ModelError(_without_base(folder, name))
        other = None if base_only or "upsampler" not in folder else folder
        of_hub = {key: value for key, value in kwargs.items() if key != "revision"}
        if upsampler is not None:
            other = ModelFolder.open(find_model(upsampler, **of_hub))
        elif not base_only and folder.lender is not None:
            other = _lender_of(folder, **of_hub)
        base = _load_base(folder, torch_dtype)
        defaults = {key: value for key, value in folder.defaults.items() if not key.startswith(OF_UPSAMPLER)}
        if other is None:
            return cls(*base, folder.condition, defaults=defaults)
        defaults |= {key: value for key, value in other.defaults.items() if key.startswith(OF_UPSAMPLER)}
        return cls(*base, folder.condition, *_load_upsampler(other, folder.condition, torch_dtype), defaults=defaults)


_TOGETHER = "an upsampler and its scheduler go together; give both, or neither"


def content_hash(content: Tensor) -> str:
    """The hash of a condition as an encoder reads it."""
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def _plain(rule: Guidance) -> float | dict[str, Any]:
    """A rule as JSON holds it: the strength alone where that says it all."""
    return rule.w if rule == Guidance(w=rule.w) else rule.to_dict()


def _lender_of(folder: ModelFolder, **of_hub: Any) -> ModelFolder:
    """The model whose upsampler this one shares. Raises ModelError."""
    try:
        return ModelFolder.open(find_model(str(folder.lender), **of_hub))
    except ModelError as error:
        raise ModelError(
            f"{text_of(error)}; {folder.path} shares its upsampler",
            remedy=f"take it without, by {option('base_only')}, or name another upsampler",
        ) from None


def _without_base(folder: ModelFolder, name: str | Path) -> str:
    """What to say of a folder that is no model by itself."""
    if "upsampler" not in folder:
        return f"{folder.path}: its {INDEX_FILE} names neither 'base' nor 'upsampler'; the folder is no model of piti's"
    return (
        f"{folder.path} holds an upsampler alone, which enlarges what a base makes; translate with a model "
        f"that has a base, and add {option('upsampler')} {name}"
    )


def _load_base(folder: ModelFolder, torch_dtype: torch.dtype) -> tuple[ImageNetwork, Scheduler | None]:
    """A folder's base and its scheduler, none for a baseline. Raises ModelError."""
    if folder.config("base").get("_class_name") != BaselineNetwork.__name__:
        return folder.load("base", torch_dtype)
    try:
        network = BaselineNetwork.from_pretrained(folder.path / "base", torch_dtype=torch_dtype)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder.path}: {error}") from None
    return network.eval(), None


def _load_upsampler(
    folder: ModelFolder, condition: Condition, torch_dtype: torch.dtype
) -> tuple[Translator, Scheduler]:
    """A folder's upsampler and its scheduler. Raises ModelError where it has none, or reads another condition."""
    if "upsampler" not in folder:
        raise ModelError(f"{folder.path} holds no upsampler; give a model, a folder or a training run that does")
    upsampler, scheduler = folder.load("upsampler", torch_dtype)
    if upsampler.encoder is not None and not folder.condition.reads_like(condition):
        raise ModelError(
            f"{folder.path}: its upsampler reads another condition than the base (see condition.json in both); "
            "give one that was trained with the same, or with none"
        )
    return upsampler, scheduler
