"""PNG metadata that suffices to recreate an image; `piti.generation.metadata_schema` reads it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import re
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from piti import __version__
from piti.conditions import Condition, TextCondition
from piti.conditions.base import meaning_hash
from piti.core.images import PREFIX, Box
from piti.generation.options import MAX_ROWS, Place
from piti.models.compiling import is_compiled
from piti.pipelines.canvas import Canvas, canvas_of, fitted, part_of
from piti.pipelines.cascade import NetworkSampling, Prepared, ResolvedSampling
from piti.pipelines.marks import weights_mark
from piti.pipelines.pipeline import PITIPipeline

MAX_TEXT = 256 * 1024
"""Largest number of characters of an embedded condition; larger ones are omitted."""

_MOST_BYTES = 32_000_000  # of a raw tensor that is compressed to test its size
_PIECE = 1 << 20  # bytes that are compressed before testing the size
_NAMED = re.compile(r"(?P<model>.*?)( with the upsampler of (?P<upsampler>.*?))?( \(weights [0-9a-f]+\))?", re.DOTALL)


# Names


def model_name(model: str, upsampler: str | None = None, digest: str = "") -> str:
    """The model's name in metadata. upsampler: the other model whose upsampler is used; digest: of its weights."""
    lender = "" if upsampler is None else f" with the upsampler of {upsampler}"
    return f"{model}{lender}{f' (weights {digest})' if digest else ''}"


def named_model(name: str) -> tuple[str, str | None]:
    """The model and the upsampler's model from a name of `model_name`."""
    found = _NAMED.fullmatch(name)
    return (found["model"], found["upsampler"]) if found else (name, None)


# All images of a translation


MADE_ON = f"{PREFIX}made_on"
"""The key of `made_on`."""
NOISE_ON = f"{PREFIX}noise_on"
"""The key for the kind of device on which noise was drawn; without it, the CPU."""
EDIT = f"{PREFIX}edit"
"""The key of an edit's settings, as JSON."""


def made_with(sampling: ResolvedSampling, seed: int, name: str, noise_on: torch.device) -> dict[str, str]:
    """Metadata of all images of a translation: the model's name and sampling. noise_on: the device of the noise."""
    values: dict[str, object] = {
        "model": name,
        "seed": seed,
        **_options_of(sampling.base),
        **({"square": True} if sampling.square else {}),
        **({} if sampling.size is None else {"size": sampling.size}),
    }
    if sampling.upsampler is None:
        values["base_only"] = sampling.base_only
    else:
        upsampler = _options_of(sampling.upsampler) | {"noise": sampling.upsampler.noise}
        upsampler |= {"truncates": True} if sampling.upsampler.truncates else {}
        values |= {f"upsampler_{key}": value for key, value in upsampler.items()}
    said = {} if noise_on.type == "cpu" else {NOISE_ON: noise_on.type}
    return _text(values) | said


def surroundings(pipeline: PITIPipeline) -> dict[str, str]:
    """Metadata that affects an image's last bits: weights, versions and the device. The same for a whole
    translation."""
    return _text({"weights": weights_mark(pipeline), "version": __version__, "made_on": made_on(pipeline)})


def made_on(pipeline: PITIPipeline) -> str:
    """Libraries, precision, device, and whether blocks are compiled. If these are equal, images are bit-identical."""
    device = pipeline.device
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        where = f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    else:
        where = device.type
    dtype = str(pipeline.base.dtype).removeprefix("torch.")
    if device.type == "cuda" and pipeline.base.dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        where += " in TF32"
    if is_compiled(pipeline.base):
        where += ", compiled"
    libraries = [f"torch {torch.__version__}", f"diffusers {importlib.metadata.version('diffusers')}"]
    engine = pipeline.engine.described()
    return f"{', '.join(libraries + ([engine] if engine else []))}, {dtype} on {where}"


def numbers_of(made_on: str) -> str:
    """The dtype of computation, a name of `DTYPES`, from a text of `made_on`; empty if it is not stated."""
    kinds = {"bf16, ": "bf16", "f32, ": "fp32"} if "openvino" in made_on else _NUMBERS
    return next((name for kind, name in kinds.items() if f" {kind}" in made_on), "")


_NUMBERS = {"float32 on ": "fp32", "bfloat16 on ": "bf16", "float16 on ": "fp16"}


# One image


def image_text(
    common: Mapping[str, str], of_condition: Mapping[str, str], number: int, source: str, stem: str, place: Place
) -> dict[str, str]:
    """All metadata of an image.

    common: `made_with` and `surroundings`; of_condition: `condition_text`; number: of the image among those of its
    condition; source: name of the condition, a file name or the text itself; stem: of the image's file name; place: its
    row in the batch, omitted if that has more than `MAX_ROWS`.
    """
    batch = json.dumps([place.row, place.rows, place.order, place.distinct])
    told = {"batch": batch} if place.rows <= MAX_ROWS else {}
    return {**common, **_text({"condition": source, "number": number, "name": stem, **told}), **of_condition}


def condition_text(pipeline: PITIPipeline, prepared: Prepared, source: str) -> dict[str, str]:
    """A condition's hash, and the condition itself if it fits: a text verbatim, else its raw tensor.

    The tensor is compressed (zlib, base64). If it is too large, it is reduced to what the networks read, if that gives
    the same image. source: as in `image_text`.
    """
    condition, raw = pipeline.condition, prepared.raw
    values = {"condition_sha256": raw_hash(raw)}
    if isinstance(condition, TextCondition):
        text = next((text for text in (source, condition.text(raw)) if _says(condition, text, raw)), None)
        if text is not None and len(text) <= MAX_TEXT:
            return _text(values | {"text": text})
    whole, data = raw, packed(raw)
    kept = whole
    if data is None and condition.spatial:
        kept, whole = _as_read(pipeline, raw, prepared.canvas)
        data = packed(kept) if kept.shape != raw.shape else None
    if data is None:
        return _text(values)
    form = {
        "dtype": str(kept.dtype).removeprefix("torch."),
        "shape": list(kept.shape),
        "of": list(whole.shape[-2:]),
        "reads": meaning_hash(condition),
        **({} if kept is raw else {"reduced": True}),
    }
    return _text(values | {"raw_form": json.dumps(form), "raw": data})


def packed(raw: Shaped[Tensor, "K h w"]) -> str | None:
    """Values in memory order, little-endian, zlib, base64; None above `MAX_TEXT` characters."""
    if raw.nbytes > _MOST_BYTES:
        return None
    values = raw.cpu().numpy()
    plain = values.astype(values.dtype.newbyteorder("<")).tobytes()
    stream, data = zlib.compressobj(9), b""
    for start in range(0, len(plain), _PIECE):
        data += stream.compress(plain[start : start + _PIECE])
        if len(data) > MAX_TEXT // 4 * 3:
            return None
    data += stream.flush()
    return base64.b64encode(data).decode("ascii") if len(data) <= MAX_TEXT // 4 * 3 else None


def enlarged_to(condition: Condition, raw: Shaped[Tensor, "K h w"], size: tuple[int, int]) -> Tensor:
    """A reduced condition, enlarged to its original size (height, width)."""
    return raw if raw.shape[-2:] == size else condition.crop_resize(raw, Box(0, 0, raw.shape[-1], raw.shape[-2]), size)


def raw_hash(raw: Shaped[Tensor, "K h w"]) -> str:
    """The hash of a condition's shape and values."""
    values = np.ascontiguousarray(raw.cpu().numpy())
    return hashlib.sha256(f"{values.dtype}{list(values.shape)}".encode() + values.tobytes()).hexdigest()


# Helpers


def _says(condition: TextCondition, text: str, raw: Tensor) -> bool:
    """Whether a text is encoded as exactly these tokens."""
    return bool(text.strip()) and torch.equal(condition.tokens(text), raw)


def _as_read(pipeline: PITIPipeline, raw: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """A condition at the largest size that a network reads, and its substitute when recreated: the small one, enlarged
    to full size or unchanged. The full condition, twice, if neither gives the same image.
    """
    condition = pipeline.condition
    upsampler = pipeline.upsampler if canvas.scale > 1 else None
    networks = [network for network in (pipeline.base, upsampler) if network is not None]
    reading = [one for one in networks if one.one_pass or one.encoder is not None]
    size, whole = max(part_of(canvas, network) for network in reading), (raw.shape[-2], raw.shape[-1])
    if size[0] > whole[0] or size[1] > whole[1]:
        return raw, raw
    small = condition.crop_resize(raw, Box(0, 0, whole[1], whole[0]), size)
    seen = [raw_hash(fitted(condition, raw, canvas, network)) for network in reading]
    for again in (enlarged_to(condition, small, whole), small):
        then = canvas_of(condition, again, pipeline.base, upsampler, min(canvas.image_height, canvas.image_width))
        if then == canvas and seen == [raw_hash(fitted(condition, again, canvas, network)) for network in reading]:
            return small, again
    return raw, raw


def _options_of(network: NetworkSampling) -> dict[str, object]:
    return {"sampler": network.sampler, "steps": network.steps, "guidance": network.guidance.model_dump_json()}


def _text(values: Mapping[str, object]) -> dict[str, str]:
    return {f"{PREFIX}{key}": str(value) for key, value in values.items()}
