"""Reading of PNG metadata (see `piti.generation.metadata`), with validation.

It is untrusted: sizes are bounded before anything is decoded, and unknown keys are refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from pydantic import Field, field_validator
from torch import Tensor

from piti.conditions import Condition, TextCondition
from piti.conditions.base import meaning_hash
from piti.core.errors import UserError, in_few_lines, quoted
from piti.core.images import MAX_PIXELS, PREFIX, Source, own_text
from piti.core.spec import Spec
from piti.diffusion.guidance import Guidance
from piti.generation.metadata import MAX_TEXT, enlarged_to, numbers_of
from piti.generation.options import MAX_ROWS, NoiseOn
from piti.pipelines.cascade import ONE_PASS
from piti.pipelines.options import FLAT_KEYS, SamplingOptions

_LONG = frozenset({"condition", "text", "raw"})  # keys with long values
_MOST = 4096  # largest number of characters of other values
_NAME = 400  # largest number of characters of a model's name
_KEY = 64  # largest number of characters of a key
_STRONGEST = 1e9  # beyond it, guidance and noise exceed the range of float32
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class RemakeError(UserError):
    """A PNG has no or invalid metadata on its generation. The message names the file, the key and the remedy."""


class RawForm(Spec):
    """Format of an embedded raw tensor."""

    dtype: Literal["uint8", "int16", "float16", "int32", "float32", "float64"]
    shape: tuple[int, int, int]
    of: tuple[int, int]
    """Rows and columns of the full condition."""
    reads: str
    """Meaning of its values, see `meaning_hash`."""
    reduced: bool = False
    """Whether it is reduced to what the networks read."""

    @field_validator("shape", "of")
    @classmethod
    def _bounded(cls, sides: tuple[int, ...]) -> tuple[int, ...]:
        if min(sides) < 1 or sides[-2] * sides[-1] > MAX_PIXELS:
            raise ValueError(f"expected sides of at least 1 and at most {MAX_PIXELS} pixels")
        return sides


class Carried(Spec):
    """The condition in a PNG's metadata, under these keys with the prefix "piti:"."""

    condition_sha256: str = ""
    text: str | None = None
    raw_form: RawForm | None = None
    raw: str | None = Field(None, max_length=MAX_TEXT)

    @field_validator("raw_form", mode="before")
    @classmethod
    def _form_from_json(cls, value: Any) -> Any:
        return _from_json(value)

    def unpacked(self, condition: Condition) -> Shaped[Tensor, "K h w"]:
        """The condition in raw form. Raises RemakeError or ConditionError if there is none of that kind."""
        if self.text is not None:
            return _tokens(condition, self.text)
        if self.raw_form is None or self.raw is None:
            raise RemakeError("contains no condition (it was too large, or an earlier version generated the image)")
        raw = _unpacked(condition, self.raw_form, self.raw)
        whole = enlarged_to(condition, condition.checked(raw, "its condition"), self.raw_form.of)
        return condition.checked(whole, "its condition")


class Said(Carried):
    """All metadata of a PNG. The first keys were written by all versions."""

    model: str = Field(min_length=1, max_length=_NAME)
    seed: int = Field(ge=0)
    number: int = Field(ge=0, lt=1_000_000)
    condition: str
    sampler: str
    steps: int | str
    guidance: Guidance
    square: bool = False
    size: int | None = Field(None, ge=1)
    base_only: bool = False
    upsampler_sampler: str | None = None
    upsampler_steps: int | str | None = None
    upsampler_guidance: Guidance | None = None
    upsampler_noise: float | None = Field(None, ge=0, le=_STRONGEST, allow_inf_nan=False)
    upsampler_truncates: bool = False
    name: str | None = None
    batch: tuple[int, int, int, int] | None = None
    weights: str = ""
    noise_on: NoiseOn = "cpu"
    version: str = ""
    made_on: str = ""

    @property
    def engine(self) -> str:
        """The engine of computation, a name of `ENGINES`."""
        return "openvino" if "openvino" in self.made_on else "torch"

    @property
    def dtype(self) -> str:
        """The dtype of computation, a name of `DTYPES`; engines have their own."""
        numbers = numbers_of(self.made_on)
        return numbers if numbers and (self.engine == "torch" or numbers == "fp32") else "auto"

    @field_validator("guidance", "upsampler_guidance", "batch", mode="before")
    @classmethod
    def _values_from_json(cls, value: Any) -> Any:
        return _from_json(value)

    @field_validator("model")
    @classmethod
    def _a_name(cls, model: str) -> str:
        if not model.isprintable():
            raise ValueError("contains unprintable characters")
        return model

    @field_validator("guidance", "upsampler_guidance")
    @classmethod
    def _of_some_strength(cls, rule: Guidance | None) -> Guidance | None:
        if rule is not None and max(rule.w, rule.eta) > _STRONGEST:
            raise ValueError(f"expected a strength of at most {_STRONGEST:g}")
        return rule

    @field_validator("steps", "upsampler_steps")
    @classmethod
    def _counted(cls, steps: int | str | None) -> int | str | None:
        return int(steps) if isinstance(steps, str) and steps.isdecimal() else steps

    @field_validator("batch")
    @classmethod
    def _a_place(cls, batch: tuple[int, int, int, int] | None) -> tuple[int, int, int, int] | None:
        if batch is not None:
            row, rows, order, distinct = batch
            if not (0 <= order <= row < rows <= MAX_ROWS and order < distinct <= rows - (row > order)):
                raise ValueError(f"expected [row, rows, order, distinct conditions] of a batch of at most {MAX_ROWS}")
        return batch

    def sampling(self) -> SamplingOptions:
        """The sampling options, as far as the file states them."""
        values = {key: getattr(self, key) for key in FLAT_KEYS}
        if not (self.upsampler_steps and self.version):  # not written by earlier versions
            values["upsampler_truncates"] = None
        if self.sampler == ONE_PASS.sampler:  # no effect on a model that takes steps
            values |= dict.fromkeys(("guidance", "steps", "sampler"))
        return SamplingOptions.from_flat(values)


def texts_of(path: Source) -> dict[str, str]:
    """An image file's metadata with `PREFIX`, by key without it. Raises RemakeError."""
    said = own_text(path)
    for key, value in said.items():
        if len(key) > _KEY or not key.isprintable():
            raise RemakeError(f"{path}: unknown key {quoted(PREFIX + key)}; its metadata is damaged")
        if len(value) > (MAX_TEXT if key in _LONG else _MOST):
            raise RemakeError(f"{path}: {PREFIX}{key} has {len(value)} characters; its metadata is damaged")
    return said


def own_condition(path: Source, condition: Condition) -> Shaped[Tensor, "K h w"]:
    """The condition stored in a PNG, also an edited one, in raw form. Raises ImageError for files that are not images,
    and RemakeError with the reason if there is no condition of this kind.
    """
    texts = texts_of(path)
    if not texts:
        raise RemakeError(f"{path}: has no record of its condition")
    if "edit" in texts and "condition_sha256" not in texts:
        raise RemakeError(f"{path}: is an edit of a region, and the condition of the rest of the image is unknown")
    try:
        said = {key: value for key, value in texts.items() if key in Carried.model_fields}
        return Carried.parse(said, str(path)).unpacked(condition)
    except UserError as error:
        why = " ".join(str(error).removeprefix(f"{path}:").split())
        raise RemakeError(f"{path}: {in_few_lines(why)}") from None


def carried_condition(path: Source, condition: Condition) -> Shaped[Tensor, "K h w"] | None:
    """The condition stored in a PNG, also an edited one, in raw form; None if there is none of this kind. Raises
    ImageError for files that are not images.
    """
    try:
        return own_condition(path, condition)
    except RemakeError:
        return None


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def is_png(path: Source) -> bool:
    """Whether a file has the signature of PNG."""
    with Path(path).open("rb") if isinstance(path, str | Path) else path.open() as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def _tokens(condition: Condition, text: str) -> Tensor:
    if not isinstance(condition, TextCondition):
        raise RemakeError(f"was generated from a text, but this model reads a {condition.kind}")
    return condition.tokens(text, "its text")


def _unpacked(condition: Condition, form: RawForm, data: str) -> Tensor:
    """The raw tensor, with the condition's dtype and planes, and at most the size of its form."""
    text = isinstance(condition, TextCondition)
    dtype = torch.int32 if text else condition.raw_dtype
    expected = f"[{condition.planes}, h, w] of {dtype}"
    if form.reads != meaning_hash(condition):
        raise RemakeError("contains the condition of another model, such as a mask with other classes")
    if form.shape[0] != condition.planes or f"torch.{form.dtype}" != str(dtype):
        raise RemakeError(f"piti:raw_form: expected {expected}, got {list(form.shape)} of torch.{form.dtype}")
    if form.shape[1] > form.of[0] or form.shape[2] > form.of[1]:
        raise RemakeError(
            f"piti:raw_form: {list(form.shape)} is larger than the condition that it represents, {list(form.of)}"
        )
    kind = np.dtype(form.dtype).newbyteorder("<")
    size = int(np.prod(form.shape)) * kind.itemsize
    try:
        stream = zlib.decompressobj()
        values = stream.decompress(base64.b64decode(data, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RemakeError(f"piti:raw: cannot be decompressed ({error}); its metadata is damaged") from None
    if len(values) != size or not stream.eof:
        raise RemakeError(f"piti:raw: expected {size} bytes of condition; its metadata is damaged")
    array = np.frombuffer(values, kind).reshape(form.shape)
    return torch.from_numpy(array.astype(np.dtype(form.dtype)))
