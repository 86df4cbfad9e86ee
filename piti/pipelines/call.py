"""Arguments and outputs of a pipeline call under diffusers' names: keywords, initial noise, callbacks, outputs.

`guidance_scale` is 1 + w, `num_inference_steps` is `steps`, `num_images_per_prompt` is `num_images`. Giving both names
of an argument is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from piti.conditions import ConditionError, Given, Handed
from piti.core.errors import UserError, option
from piti.core.images import ImageError, to_pil
from piti.core.spec import choices
from piti.models import Space
from piti.pipelines.canvas import Canvas
from piti.pipelines.cascade import StepControl
from piti.pipelines.options import SamplingKeywords

if TYPE_CHECKING:
    from piti.pipelines.pipeline import PITIPipeline

ConditionInput = Handed | Mapping[str, Given]
"""A file; a PIL image; its pixels as an array (uint8 [h, w, 3], or numbers [h, w]; depth as floats in metres); a tensor
[h, w], read like the array; or a raw tensor [K, h, w] as returned by the condition's `read`. For a prior: the text
itself, a `Path` of a text file, or tokens. For a model of several conditions: a mapping from each given part's name to
one of these."""

OutputType = Literal["pil", "np", "pt", "latent"]
"""`pil`: PIL images; `np`: array [N, H, W, 3] in [0, 1]; `pt`: tensor [N, 3, H, W] in [0, 1]; `latent`: tensor [N, 3,
H, W] in [-1, 1], the output of the last network of a pixel-space model (an error for a latent model). Arrays and
tensors are float32, tensors on the CPU."""

Images = list[Image.Image] | np.ndarray | Tensor

StepEnd = Callable[..., dict[str, Any] | None]  # (pipeline, step, timestep, {name: tensor}) -> replaced tensors

TENSOR_INPUTS = ["latents"]
"""Tensors that a callback may read and replace."""

FOREIGN = {
    "prompt": "give the condition as the first argument, {condition}",
    "image": "give the condition as the first argument, {condition}",
    "mask_image": "give the mask as the first argument, {condition}; piti.edit changes a part of a photograph",
    "negative_prompt": "leave it out: guidance uses the null condition; its strength is {guidance_scale}",
    "height": "give {size}, the image's short side; its aspect ratio is the condition's",
    "width": "give {size}, the image's short side; its aspect ratio is the condition's",
    "eta": "give {sampler}: 'ddim' is eta 0, 'ddpm' eta 1",
    "strength": "leave it out: sampling starts from noise; piti.edit starts from a photograph",
    "timesteps": "give {num_inference_steps}, a count or a respacing by name",
    "sigmas": "give {num_inference_steps}, a count or a respacing by name",
    "guidance_rescale": "give {guidance} as Guidance(kind='rescaled', w=…)",
    "callback": "give {callback_on_step_end}",
    "callback_steps": "give {callback_on_step_end}, which is called after every step",
}
"""Keywords of other diffusers pipelines that are not supported, and what to do instead."""

NAMES_OF_DIFFUSERS = (
    "num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator", "latents", "output_type",
    "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
)  # fmt: skip
"""Supported argument names of diffusers."""

T = TypeVar("T")


@dataclass
class PITIPipelineOutput(BaseOutput):
    """Output of `PITIPipeline`."""

    images: Any
    """`num_images` images per condition, in the order of the conditions: a list of PIL images, or an array or tensor,
    see `OutputType`."""


# Arguments


def listed(condition: object) -> list[object]:
    """The conditions as a list: a single one, or those of a sequence other than a string. Raises ConditionError for an
    empty sequence."""
    inputs: list[object] = [condition]
    if isinstance(condition, Sequence) and not isinstance(condition, str | bytes):
        inputs = list(condition)
    if not inputs:
        raise ConditionError("no condition is given", remedy="give one, or several in a list")
    return inputs


def one_of(ours: str, own: T | None, theirs: str, other: T | None) -> T | None:
    """The value given under one of two names, None for neither. Raises UserError for both."""
    if own is not None and other is not None:
        raise UserError(
            f"is another name of {option(ours)}, which is also given", remedy="remove one of the two", option=theirs
        )
    return other if own is None else own


def merged(
    sampling: SamplingKeywords, num_inference_steps: int | None, guidance_scale: float | None
) -> SamplingKeywords:
    """Sampling options merged with those under diffusers' names.

    Raises UserError for both names of an option, an unsupported name, and an invalid guidance scale.
    """
    _check_names(sampling)
    if guidance_scale is not None and (not isinstance(guidance_scale, Real) or not guidance_scale >= 1):
        raise UserError(
            "expected a number of at least 1 (it is 1 + w; 1 is no guidance)",
            option="guidance_scale",
            value=repr(guidance_scale),
        )
    strength = None if guidance_scale is None else strength_of(guidance_scale)
    steps = one_of("steps", sampling.get("steps"), "num_inference_steps", num_inference_steps)
    guidance = one_of("guidance", sampling.get("guidance"), "guidance_scale", strength)
    return {**sampling, "steps": steps, "guidance": guidance}


def strength_of(scale: float) -> float:
    """w of a scale 1 + w, in decimal: 0.3 for 1.3, whereas 1.3 − 1 in binary floating point is not 0.3. A scale below 1
    turns guidance off, as in diffusers."""
    return 0.0 if scale < 1 else float(Decimal(str(float(scale))) - 1)


def _check_names(given: Mapping[str, object]) -> None:
    """Raise UserError for an unsupported keyword of diffusers, with what to use instead."""
    for name in given:
        if name in FOREIGN:
            ours = ("condition", *SamplingKeywords.__annotations__, *NAMES_OF_DIFFUSERS)
            instead = FOREIGN[name].format_map({key: option(key) for key in ours})
            raise UserError(
                f"is not supported; of diffusers' arguments this pipeline takes {', '.join(NAMES_OF_DIFFUSERS)}",
                remedy=instead,
                option=name,
            )


def images_each(num_images: int | None, num_images_per_prompt: int | None, batch_size: int) -> int:
    """The number of images per condition. Raises UserError for both names, and for counts below 1."""
    count = one_of("num_images", num_images, "num_images_per_prompt", num_images_per_prompt)
    count = 1 if count is None else count
    name = "num_images" if num_images_per_prompt is None else "num_images_per_prompt"
    for key, value in ((name, count), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise UserError("expected a whole number of at least 1", option=key, value=repr(value))
    return int(count)


# Results


def check_output(output_type: str, canvases: Sequence[Canvas], space: Space) -> None:
    """Raise UserError for an unknown output type, for images of different sizes in one array, and for latents of an
    autoencoder."""
    known = get_args(OutputType)
    if output_type not in known:
        raise UserError(choices(str(output_type), known), option="output_type", value=repr(output_type))
    if output_type == "latent" and space.spec.latent:
        raise UserError(
            "latents are decoded, and cannot be returned", remedy="use 'pt'", option="output_type",
            value=repr(output_type),
        )  # fmt: skip
    sizes = sorted({(canvas.image_height, canvas.image_width) for canvas in canvases})
    if output_type != "pil" and len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise UserError(
            f"cannot put images of {shown} px in one array",
            remedy="give conditions of equal size, or use 'pil'",
            option="output_type",
            value=repr(output_type),
        )


def as_output(image: Float[Tensor, "3 h w"], output_type: str) -> Image.Image | Tensor:
    """One image in [-1, 1] as this output type; arrays still as tensors."""
    if output_type == "pil":
        return to_pil(image)
    return image if output_type == "latent" else (image / 2 + 0.5).clamp(0, 1)


def gathered(images: Sequence[Any], output_type: str) -> Images:
    """All images of a call, from those of `as_output`."""
    if output_type == "pil":
        return list(images)
    stacked = torch.stack(list(images))
    return stacked.permute(0, 2, 3, 1).numpy() if output_type == "np" else stacked


def image_of_output(values: Tensor | np.ndarray, source: str) -> Image.Image:
    """A PIL image from "np" or "pt" output: an array [h, w, 3] or a tensor [3, h, w] of floats in [0, 1].

    Raises ImageError, naming `source`, for other shapes, types and ranges.
    """
    planes = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if isinstance(values, np.ndarray) and values.ndim == 3:
        planes = planes.permute(2, 0, 1)
    if planes.ndim != 3 or len(planes) != 3 or not planes.numel() or not planes.is_floating_point():
        raise ImageError(
            f"expected an array [h, w, 3] or a tensor [3, h, w] of floats in [0, 1], got {list(values.shape)} of "
            f"{values.dtype}",
            source=source,
        )
    low, high = planes.min().item(), planes.max().item()
    if not (low >= 0 and high <= 1):
        raise ImageError(f"contains floats from {low:g} to {high:g}; scale them to [0, 1]", source=source)
    return to_pil(2 * planes.float().cpu() - 1)


# Initial noise


def checked_latents(latents: Tensor | None, canvases: Sequence[Canvas], space: Space | None) -> Tensor | None:
    """Check the initial noise x_T [N, C, H, W] of the base. space: the base's; None for a one-pass base. Raises
    UserError."""
    if latents is None:
        return None
    if space is None:
        raise UserError("this model generates images in one pass, without noise", remedy="remove it", option="latents")
    if not isinstance(latents, Tensor):
        raise UserError(f"expected a tensor, got {type(latents).__name__}", option="latents")
    sizes = {canvas.base_size for canvas in canvases}
    if len(sizes) > 1:
        raise UserError(
            "needs images of equal size",
            remedy="give one condition per call, or conditions of equal size",
            option="latents",
        )
    expected = [len(canvases), *space.shape(*sizes.pop())]
    if list(latents.shape) != expected:
        raise UserError(
            f"expected standard normal noise {expected} for the base, got {list(latents.shape)}",
            option="latents",
        )
    return latents


# State of a call

_CALLS: ContextVar[tuple[tuple[object, dict[str, Any]], ...]] = ContextVar("calls", default=())
"""Calls in progress in this thread, innermost first, since a callback may call a pipeline too."""


@contextmanager
def one_call(pipe: object) -> Iterator[None]:
    """A call of a pipeline with its own `PerCall` values, independent of other threads and nested calls."""
    own: dict[str, Any] = {}
    token = _CALLS.set(((pipe, own), *_CALLS.get()))
    try:
        yield
    finally:
        _CALLS.reset(token)
        vars(pipe).update(own)


class PerCall(Generic[T]):
    """An attribute of a pipeline that is separate for each call; outside of calls, that of the last call."""

    def __init__(self, initial: T) -> None:
        self.initial = initial

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, pipe: object, owner: type | None = None) -> T:
        return self.initial if pipe is None else self._values(pipe).get(self.name, self.initial)

    def __set__(self, pipe: object, value: T) -> None:
        self._values(pipe)[self.name] = value

    @staticmethod
    def _values(pipe: object) -> dict[str, Any]:
        return next((own for called, own in _CALLS.get() if called is pipe), vars(pipe))


class CallState:
    """Attributes of a pipeline that describe its current call, or the last one."""

    _guidance_scale = PerCall(1.0)
    _num_timesteps = PerCall(0)
    _interrupt = PerCall(False)

    @property
    def guidance_scale(self) -> float:
        """1 + w of the base's guidance; a callback may change it within a batch."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of a batch over both networks."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the call, by `pipe._interrupt = True`."""
        return self._interrupt


# Callbacks


class StepCallback:
    """`callback_on_step_end` of a call, called with (pipeline, step, timestep, tensors) after every step of a batch.

    Steps count from 0 to `pipe.num_timesteps` - 1 over both networks. Returned "latents" replace the state from which
    the next step starts. A changed `pipe._guidance_scale` takes effect from the base's next step, in this call only.
    After `pipe._interrupt = True` the remaining steps of this call are skipped.
    """

    def __init__(self, pipe: PITIPipeline, callback: StepEnd, names: Sequence[str] | None) -> None:
        """names: of the tensors passed to the callback; None: all. Raises UserError for an unknown name."""
        self.pipe, self.callback, self.step = pipe, callback, 0
        names = getattr(callback, "tensor_inputs", names)  # of diffusers' own callbacks
        self.names = TENSOR_INPUTS if names is None else list(names)
        for name in self.names:
            if name not in TENSOR_INPUTS:
                raise UserError(choices(name, TENSOR_INPUTS), option="callback_on_step_end_tensor_inputs", value=name)

    @classmethod
    def of(cls, pipe: PITIPipeline, callback: StepEnd | None, names: Sequence[str] | None) -> StepCallback | None:
        """The callback of a call; None if none is given."""
        return None if callback is None else cls(pipe, callback, names)

    def control(self, w: float) -> StepControl:
        """The control of a new batch. w: the base's guidance strength, unless the callback changes it."""
        self.step = 0

        def strength() -> float:
            scale = self.pipe.guidance_scale
            return w if scale == 1 + w else strength_of(scale)

        return StepControl(self._after_step, strength, lambda: self.pipe.interrupt)

    def _after_step(self, timestep: int, x_t: Tensor) -> Tensor:
        given = {"latents": x_t} if "latents" in self.names else {}
        changed = self.callback(self.pipe, self.step, timestep, given)
        self.step += 1
        if not isinstance(changed, Mapping | None):
            raise _returned(f"{type(changed).__name__}, not a dictionary", "{'latents': …}, or nothing")
        latents = (changed or {}).get("latents", x_t)
        if not isinstance(latents, Tensor):
            raise _returned(f"'latents' of type {type(latents).__name__}", "a tensor, or leave it out")
        if latents.shape != x_t.shape:
            raise _returned(f"'latents' of shape {list(latents.shape)}, not {list(x_t.shape)}")
        return latents.to(x_t)


def _returned(what: str, instead: str = "") -> UserError:
    remedy = f"return {instead}" if instead else ""
    return UserError(f"returned {what}", remedy=remedy, option="callback_on_step_end")
