"""Images made again: the metadata of a PNG (see `piti.generation.metadata`), read with care and acted on."""

from __future__ import annotations

import base64
import binascii
import copy
import json
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from pydantic import Field, field_validator
from torch import Tensor

from piti import __version__
from piti.checkpoints.folder import OF_UPSAMPLER
from piti.conditions import Condition, ConditionError, SeveralCondition, TextCondition
from piti.conditions.base import meaning_hash
from piti.core.errors import UserError, in_few_lines, option, quoted, text_of
from piti.core.images import MAX_PIXELS, PREFIX, ImageError, Source, own_text
from piti.core.spec import Spec
from piti.diffusion.guidance import Guidance
from piti.generation.metadata import (
    MAX_TEXT,
    enlarged_to,
    made_on,
    model_name,
    named_model,
    raw_hash,
    weights_mark,
)
from piti.generation.options import MAX_ROWS, SHEET, GenerationOptions, Place
from piti.pipelines.cascade import ONE_PASS
from piti.pipelines.options import FLAT_KEYS, SamplingOptions
from piti.pipelines.pipeline import PITIPipeline

_LONG = frozenset({"condition", "text", "raw"})  # keys whose values may be long
_MOST = 4096  # characters of any other
_STEM = 200  # bytes of a name
_NAME = 400  # characters of a model's name
_KEY = 64  # characters of a key
_STRONGEST = 1e9  # guidance and noise beyond it leave the range of float32
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EDITED = "edit"  # what the keys of edited images begin with


class RemakeError(UserError):
    """A PNG does not say, or not credibly, how it was made. The message names the file, the key and the remedy."""


class RawForm(Spec):
    """What an embedded raw tensor is."""

    dtype: Literal["uint8", "int16", "float16", "int32", "float32", "float64"]
    shape: tuple[int, int, int]
    of: tuple[int, int]
    """Rows and columns of the condition that it stands for."""
    reads: str
    """What its values mean, see `meaning_hash`."""
    reduced: bool = False
    """Whether it is only as much as the networks read."""

    @field_validator("shape", "of")
    @classmethod
    def _bounded(cls, sides: tuple[int, ...]) -> tuple[int, ...]:
        if min(sides) < 1 or sides[-2] * sides[-1] > MAX_PIXELS:
            raise ValueError(f"expected sides of at least 1 and at most {MAX_PIXELS} pixels")
        return sides


class Carried(Spec):
    """The condition inside a PNG of piti's, under these keys with "piti:" in front."""

    condition_sha256: str = ""
    text: str | None = None
    raw_form: RawForm | None = None
    raw: str | None = Field(None, max_length=MAX_TEXT)

    @field_validator("raw_form", mode="before")
    @classmethod
    def _form_from_json(cls, value: Any) -> Any:
        return _from_json(value)

    def unpacked(self, condition: Condition) -> Shaped[Tensor, "K h w"]:
        """It in raw form. Raises RemakeError or ConditionError where there is none, or none of that kind."""
        if self.text is not None:
            return _tokens(condition, self.text)
        if self.raw_form is None or self.raw is None:
            raise RemakeError("holds no condition (it was too large, or an earlier version made the image)")
        raw = _unpacked(condition, self.raw_form, self.raw)
        whole = enlarged_to(condition, condition.checked(raw, "its condition"), self.raw_form.of)
        return condition.checked(whole, "its condition")


class Said(Carried):
    """All that a PNG of piti's says. The first keys every version wrote."""

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
    version: str = ""
    made_on: str = ""

    @property
    def engine(self) -> str:
        """What computes the networks as they were computed, where it can be had."""
        return "auto" if "openvino" in self.made_on else "torch"

    @field_validator("guidance", "upsampler_guidance", "batch", mode="before")
    @classmethod
    def _values_from_json(cls, value: Any) -> Any:
        return _from_json(value)

    @field_validator("model")
    @classmethod
    def _a_name(cls, model: str) -> str:
        if not model.isprintable():
            raise ValueError("holds characters that cannot be shown")
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
        """How the networks were sampled, as far as the file says it."""
        values = {key: getattr(self, key) for key in FLAT_KEYS}
        if not (self.upsampler_steps and self.version):  # earlier versions did not say
            values["upsampler_truncates"] = None
        if self.sampler == ONE_PASS.sampler:  # says nothing to a model that takes steps
            values |= dict.fromkeys(("guidance", "steps", "sampler"))
        return SamplingOptions.from_flat(values)


@dataclass(frozen=True)
class Record:
    """An image that is to be made again."""

    file: str
    said: Said

    @property
    def stem(self) -> str:
        """What its files are named after."""
        told = self.said
        stem = PurePath(told.condition).stem if told.name is None else PurePath(told.name.replace("\\", "/")).name
        printable = "".join(letter for letter in stem if letter.isprintable())
        return printable.encode("utf-8", "ignore")[:_STEM].decode("utf-8", "ignore") or "image"

    @property
    def model(self) -> str:
        """The model that made it, as it was named then."""
        return named_model(self.said.model)[0]

    @property
    def upsampler(self) -> str | None:
        """The other model whose upsampler was taken, if one was."""
        return named_model(self.said.model)[1]

    @property
    def place(self) -> Place | None:
        """Where in its batch it was made; None: an earlier version did not say."""
        return None if self.said.batch is None else Place(*self.said.batch)

    def options(self, given: GenerationOptions, flags: Collection[str] = ()) -> GenerationOptions:
        """The options that make this image; of `given` those that are named in `flags` win.

        The networks' options are no part of this unless given: they are the defaults of `applied`.
        """
        told = self.said
        own = {"square": told.square, "size": told.size, "base_only": told.base_only and "upsampler" not in flags}
        own = {key: value for key, value in own.items() if key not in flags}
        kept: dict[str, Any] = {"sampling": given.sampling.model_copy(update=own)}
        if "seed" not in flags:
            kept["seed"] = told.seed
        if "num" not in flags:
            kept |= {"num": 1, "numbers": (told.number,)}
            kept |= {} if "batch" in flags else {"place": self.place}
        return replace(given, **kept)

    def networks(
        self, model: str, upsampler: str | None, base_only: bool, flags: Collection[str] = ()
    ) -> tuple[str, str | None]:
        """The model and the upsampler's model to load; what is named in `flags` wins, and a model brings its own."""
        own = not base_only and not {"model", "upsampler"} & set(flags)
        return model if "model" in flags else self.model, self.upsampler if own else upsampler

    def loaded(self, model: str, upsampler: str | None, base_only: bool, flags: Collection[str] = ()) -> PITIPipeline:
        """The model, sampled as the image was; what only the file names is not downloaded.

        Raises RemakeError if that is not here, ModelError if what is named in `flags` is not.
        """
        if "model" in flags:
            return self.applied(PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only))
        try:
            found = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only, local_files_only=True)
        except (OSError, ValueError) as error:  # a ModelError, or what no file can be called
            raise RemakeError(
                in_few_lines(text_of(error)),
                remedy=(
                    f"{self.file} was made with {self.said.model}: go to the folder where that name holds, or say "
                    f"with {option('model')} where the model is now, or what to download"
                ),
            ) from None
        return self.applied(found)

    def applied(self, pipeline: PITIPipeline) -> PITIPipeline:
        """The same pipeline with the image's sampling options as its defaults; the one that is given keeps its own."""
        again = copy.copy(pipeline)
        again.defaults = self.said.sampling().networks_over(pipeline.defaults)
        return again

    @contextmanager
    def blamed(self, given: GenerationOptions, *keys: str) -> Iterator[None]:
        """What is impossible within the block is the file's fault where it says one of these keys, and `given` does
        not say another: a RemakeError that names the file and the keys.
        """
        try:
            yield
        except (ConditionError, ImageError):
            raise
        except UserError as error:
            of_upsampler = (error.option or "").startswith(OF_UPSAMPLER)
            said = {key: getattr(self.said, key) for key in keys if key.startswith(OF_UPSAMPLER) == of_upsampler}
            own = {key: value for key, value in said.items() if value is not None and value == _said(given, key, value)}
            if not own:
                raise
            values = ", ".join(f"{PREFIX}{key} = {quoted(str(value))}" for key, value in own.items())
            why = in_few_lines(text_of(error))
            raise RemakeError(f"{values}: {why} (a flag beside {option('like')} wins)", source=self.file) from None

    # The condition

    def raw(self, pipeline: PITIPipeline) -> Shaped[Tensor, "K h w"]:
        """The condition that the file holds, in raw form. Raises RemakeError if it holds none of this model's."""
        try:
            return self.said.unpacked(pipeline.condition)
        except (RemakeError, ConditionError) as error:
            raise RemakeError(
                in_few_lines(text_of(error)),
                remedy=f"give {_wanted(pipeline.condition)} beside {option('like')}",
                source=self.file,
            ) from None

    @property
    def reduced(self) -> bool:
        """Whether it holds its condition only as small as the networks read it."""
        return self.said.raw_form is not None and self.said.raw_form.reduced

    # Notes

    def differences(self, pipeline: PITIPipeline) -> list[str]:
        """What may keep the image from being the same to the bit: weights, versions, device."""
        told, notes = self.said, []
        marks = zip(told.weights.split(), weights_mark(pipeline).split(), strict=False)  # both have a base
        if any(then != now for then, now in marks):
            notes.append(f"{self.file} was made with other weights than this model has now; the image will differ")
        here = f"piti {__version__}, {made_on(pipeline)}"
        then = f"piti {quoted(told.version)}, {quoted(told.made_on)}"
        if told.version and then != here:
            notes.append(
                f"{self.file} was made by {then}; here it is {here}: the image may differ in its last bits, or more"
            )
        if told.version and told.batch is None:
            notes.append(
                f"{self.file} was made in a batch of more than {MAX_ROWS}; the image may differ in its last bits"
            )
        if not told.version:
            notes.append(f"{self.file} was made by an earlier version of piti; the image may differ in its last bits")
        return notes

    def is_other(self, raw: Shaped[Tensor, "K h w"]) -> bool:
        """Whether a condition is known to be another than the image's."""
        return self.said.condition_sha256 not in ("", raw_hash(raw))


def read_record(path: Source) -> Record:
    """What a PNG says of how it was made.

    Nothing in it is believed: sizes are bounded before anything is decoded, unknown keys are refused.
    Raises ImageError for what is no picture, and RemakeError for one that does not say, or says nonsense.
    """
    said = _texts(path)
    if any(key.startswith(_EDITED) for key in said):
        raise RemakeError(
            "is an edit of another image (piti edit), which its condition alone does not make",
            remedy=f"edit that image again, or give {option('like')} an image that piti translate made",
            source=path,
        )
    if not _is_png(path):
        raise RemakeError(f"{path}: is no PNG, and only piti's own PNGs say how they were made; give one of those")
    if not said and isinstance(path, str | Path) and Path(path).name == SHEET:
        raise RemakeError(f"{path}: is a contact sheet, and no single image; give one of the images that it shows")
    if not said:
        raise RemakeError(
            f"{path}: was not made by piti, or its metadata was stripped (by an editor, or on its way); give a PNG as "
            "piti wrote it"
        )
    try:
        return Record(str(path), Said.parse(said, f"{path}: its metadata is damaged, or of a later version of piti"))
    except UserError as error:
        raise RemakeError(in_few_lines(text_of(error))) from None


class Opened(NamedTuple):
    """A model that is ready to translate."""

    name: str
    """For an image's metadata, see `model_name`."""
    pipeline: PITIPipeline
    options: GenerationOptions


def opened(
    model: str,
    upsampler: str | None,
    options: GenerationOptions,
    like: Record | None = None,
    flags: Collection[str] = (),
) -> Opened:
    """A model by name, with another's upsampler if that is named, and the options to use it with.

    like: the image to make again, whose model and options are taken except for those named in `flags`.
    Raises ModelError and RemakeError if a model is not there.
    """
    if like is None:
        pipeline = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=options.sampling.base_only)
        return Opened(model_name(model, upsampler), pipeline, options)
    options = like.options(options, flags)
    model, upsampler = like.networks(model, upsampler, options.sampling.base_only, flags)
    pipeline = like.loaded(model, upsampler, options.sampling.base_only, flags)
    return Opened(model_name(model, upsampler), pipeline, options)


def own_condition(path: Source, condition: Condition) -> Shaped[Tensor, "K h w"]:
    """What a PNG of piti's shows, an edited one too, in raw form.

    Raises ImageError for what is no picture, RemakeError, with the reason, where it does not say, or not in this kind.
    """
    texts = _texts(path)
    if not texts:
        raise RemakeError(f"{path}: does not say what it shows")
    try:
        said = {key: value for key, value in texts.items() if key in Carried.model_fields}
        return Carried.parse(said, str(path)).unpacked(condition)
    except UserError as error:
        why = " ".join(str(error).removeprefix(f"{path}:").split())
        raise RemakeError(f"{path}: {in_few_lines(why)}") from None


def carried_condition(path: Source, condition: Condition) -> Shaped[Tensor, "K h w"] | None:
    """What a PNG of piti's shows, an edited one too, in raw form; None where it does not say, or not in this kind.

    Raises ImageError for what is no picture.
    """
    try:
        return own_condition(path, condition)
    except RemakeError:
        return None


# Small parts


def _texts(path: Source) -> dict[str, str]:
    """What a picture's file says under keys that begin with `PREFIX`, without that. Raises RemakeError."""
    said = own_text(path)
    for key, value in said.items():
        if len(key) > _KEY or not key.isprintable():
            raise RemakeError(f"{path}: unknown key {quoted(PREFIX + key)}; its metadata is damaged")
        if len(value) > (MAX_TEXT if key in _LONG else _MOST):
            raise RemakeError(f"{path}: {PREFIX}{key} holds {len(value)} characters; its metadata is damaged")
    return said


def _said(given: GenerationOptions, key: str, value: object) -> object:
    """The value of an option: the file's where nothing else is given."""
    now = given.sampling.to_flat()[key]
    return value if now is None else now


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None


def _is_png(path: Source) -> bool:
    with Path(path).open("rb") if isinstance(path, str | Path) else path.open() as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def _wanted(condition: Condition) -> str:
    """What a person gives a model of this condition."""
    if isinstance(condition, SeveralCondition):
        return f"{option('given')} {next(iter(condition.parts))}=FILE"
    return option("text") if isinstance(condition, TextCondition) else f"the {condition.kind}'s file"


def _tokens(condition: Condition, text: str) -> Tensor:
    if not isinstance(condition, TextCondition):
        raise RemakeError(f"was made of a text, and this model reads a {condition.kind}")
    return condition.tokens(text, "its text")


def _unpacked(condition: Condition, form: RawForm, data: str) -> Tensor:
    """The raw tensor, of the type and planes that the condition has; never larger than its form says."""
    text = isinstance(condition, TextCondition)
    dtype = torch.int32 if text else condition.raw_dtype
    expected = f"[{condition.planes}, h, w] of {dtype}"
    if form.reads != meaning_hash(condition):
        raise RemakeError("holds the condition of another model, such as a mask with other classes")
    if form.shape[0] != condition.planes or f"torch.{form.dtype}" != str(dtype):
        raise RemakeError(f"piti:raw_form: expected {expected}, got {list(form.shape)} of torch.{form.dtype}")
    if form.shape[1] > form.of[0] or form.shape[2] > form.of[1]:
        raise RemakeError(f"piti:raw_form: {list(form.shape)} stands for fewer pixels, {list(form.of)}")
    kind = np.dtype(form.dtype).newbyteorder("<")
    size = int(np.prod(form.shape)) * kind.itemsize
    try:
        stream = zlib.decompressobj()
        values = stream.decompress(base64.b64decode(data, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RemakeError(f"piti:raw: cannot be unpacked ({error}); its metadata is damaged") from None
    if len(values) != size or not stream.eof:
        raise RemakeError(f"piti:raw: expected {size} bytes of condition; its metadata is damaged")
    array = np.frombuffer(values, kind).reshape(form.shape)
    return torch.from_numpy(array.astype(np.dtype(form.dtype)))
