"""Recreating an image from its PNG metadata (`--like`)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from jaxtyping import Shaped
from torch import Tensor

from piti import __version__
from piti.checkpoints.folder import OF_UPSAMPLER
from piti.conditions import Condition, ConditionError, SeveralCondition, TextCondition
from piti.core.devices import usable_device, usable_dtype
from piti.core.errors import UserError, in_few_lines, option, quoted, text_of
from piti.core.images import PREFIX, ImageError, Source
from piti.engine import EngineError, engine_named
from piti.generation.metadata import (
    made_on,
    model_name,
    named_model,
    raw_hash,
)
from piti.generation.metadata_schema import RemakeError, Said, is_png, texts_of
from piti.generation.options import MAX_ROWS, SHEET, GenerationOptions, Place
from piti.pipelines.computing import Computing
from piti.pipelines.marks import weights_mark
from piti.pipelines.pipeline import PITIPipeline

_STEM = 200  # largest number of bytes of a name
_EDITED = "edit"  # prefix of the keys of edited images


@dataclass(frozen=True)
class Record:
    """The image to recreate."""

    file: str
    said: Said

    @property
    def stem(self) -> str:
        """Stem of its results' file names."""
        told = self.said
        stem = PurePath(told.condition).stem if told.name is None else PurePath(told.name.replace("\\", "/")).name
        printable = "".join(letter for letter in stem if letter.isprintable())
        return printable.encode("utf-8", "ignore")[:_STEM].decode("utf-8", "ignore") or "image"

    @property
    def model(self) -> str:
        """The model that generated it, as named then."""
        return named_model(self.said.model)[0]

    @property
    def upsampler(self) -> str | None:
        """The other model whose upsampler was used, if any."""
        return named_model(self.said.model)[1]

    @property
    def place(self) -> Place | None:
        """Its place in its batch; None if an earlier version did not record it."""
        return None if self.said.batch is None else Place(*self.said.batch)

    def options(self, given: GenerationOptions, flags: Collection[str] = ()) -> GenerationOptions:
        """The options that recreate this image, overridden by those of `given` that `flags` names.

        The networks' options are not included unless given: they are the defaults of `applied`.
        """
        told = self.said
        own = {"square": told.square, "size": told.size, "base_only": told.base_only and "upsampler" not in flags}
        own = {key: value for key, value in own.items() if key not in flags}
        kept: dict[str, Any] = {"sampling": given.sampling.model_copy(update=own)}
        if "seed" not in flags:
            kept |= {"seed": told.seed, "noise_on": told.noise_on}
        if "num" not in flags:
            kept |= {"num": 1, "numbers": (told.number,)}
            kept |= {} if "batch" in flags else {"place": self.place}
        return replace(given, **kept)

    def networks(
        self, model: str, upsampler: str | None, base_only: bool, flags: Collection[str] = ()
    ) -> tuple[str, str | None]:
        """The model and the upsampler's model to load; those named in `flags` override, and a model implies its own
        upsampler."""
        own = not base_only and not {"model", "upsampler"} & set(flags)
        return model if "model" in flags else self.model, self.upsampler if own else upsampler

    def loaded(self, model: str, upsampler: str | None, base_only: bool, flags: Collection[str] = ()) -> PITIPipeline:
        """The model, with the image's sampling. Models named only in the file are not downloaded. Raises RemakeError if
        these are missing, ModelError if those named in `flags` are.
        """
        if "model" in flags:
            return self.applied(PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only))
        try:
            found = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only, local_files_only=True)
        except (OSError, ValueError) as error:  # a ModelError, or an invalid file name
            raise RemakeError(
                in_few_lines(text_of(error)),
                remedy=(
                    f"{self.file} was generated with {self.said.model}: run in the folder where that path exists, or "
                    f"give {option('model')}, the model's current path or a model to download"
                ),
            ) from None
        return self.applied(found)

    def applied(self, pipeline: PITIPipeline) -> PITIPipeline:
        """A copy of the pipeline with the image's sampling options as its defaults."""
        again = copy.copy(pipeline)
        again.defaults = self.said.sampling().networks_over(pipeline.defaults)
        return again

    @contextmanager
    def blamed(self, given: GenerationOptions, *keys: str) -> Iterator[None]:
        """Turn errors within the block into RemakeErrors that name the file and its keys, for those of `keys` that the
        file states and `given` does not override.
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
            raise RemakeError(
                f"{values}: {why} (an explicit flag overrides {option('like')})", source=self.file
            ) from None

    def computed(self, given: Computing, flags: Collection[str] = ()) -> Computing:
        """The computing options as recorded, overridden by those of `given` that `flags` names. An unavailable engine
        or dtype becomes `auto`, which `differences` reports.
        """
        device = usable_device(given.device)
        own = {"engine": "auto" if given.compile else self.said.engine, "dtype": self.said.dtype}
        own = {key: value for key, value in own.items() if key not in flags}
        try:
            engine_named(own.get("engine", "auto"), device)
        except EngineError:
            own["engine"] = "auto"
        try:
            usable_dtype(own.get("dtype", "auto"), device)
        except UserError:
            own["dtype"] = "auto"
        return replace(given, **own)

    # The condition

    def raw(self, pipeline: PITIPipeline) -> Shaped[Tensor, "K h w"]:
        """The condition stored in the file, in raw form. Raises RemakeError if there is none of this model's kind."""
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
        """Whether its condition is reduced to what the networks read."""
        return self.said.raw_form is not None and self.said.raw_form.reduced

    # Notes

    def differences(self, pipeline: PITIPipeline) -> list[str]:
        """Notes on what may prevent a bit-identical image: weights, versions, device."""
        told, notes = self.said, []
        marks = zip(told.weights.split(), weights_mark(pipeline).split(), strict=False)  # both have a base
        if any(then != now for then, now in marks):
            notes.append(f"{self.file} was generated with other weights than this model has; the image will differ")
        here = f"piti {__version__}, {made_on(pipeline)}"
        then = f"piti {quoted(told.version)}, {quoted(told.made_on)}"
        if told.version and then != here:
            notes.append(
                f"{self.file} was generated by {then}, now it is {here}: the image may differ in its last bits, or more"
            )
        if told.version and told.batch is None:
            notes.append(
                f"{self.file} was generated in a batch of more than {MAX_ROWS}; the image may differ in its last bits"
            )
        if not told.version:
            notes.append(
                f"{self.file} was generated by an earlier version of piti; the image may differ in its last bits"
            )
        return notes

    def is_other(self, raw: Shaped[Tensor, "K h w"]) -> bool:
        """Whether a condition is known to differ from the image's."""
        return self.said.condition_sha256 not in ("", raw_hash(raw))


def read_record(path: Source) -> Record:
    """Read a PNG's metadata on its generation.

    It is untrusted: sizes are bounded before anything is decoded, and unknown keys are refused. Raises ImageError for
    files that are not images, and RemakeError for missing or invalid metadata.
    """
    said = texts_of(path)
    if any(key.startswith(_EDITED) for key in said):
        raise RemakeError(
            "is an edit of another image (piti edit), which cannot be recreated from its condition alone",
            remedy=f"edit that image again, or give {option('like')} an image from piti translate",
            source=path,
        )
    if not is_png(path):
        raise RemakeError(
            f"{path}: is not a PNG; only PNGs from piti record how they were generated; give one of those"
        )
    if not said and isinstance(path, str | Path) and Path(path).name == SHEET:
        raise RemakeError(f"{path}: is a contact sheet; give one of its images")
    if not said:
        raise RemakeError(
            f"{path}: was not generated by piti, or its metadata was stripped (by an editor or in transfer); give a "
            "PNG as piti wrote it"
        )
    try:
        return Record(str(path), Said.parse(said, f"{path}: its metadata is damaged, or from a later version of piti"))
    except UserError as error:
        raise RemakeError(in_few_lines(text_of(error))) from None


class Opened(NamedTuple):
    """A model ready for translation."""

    name: str
    """Name in an image's metadata, see `model_name`."""
    pipeline: PITIPipeline
    options: GenerationOptions


def opened(
    model: str,
    upsampler: str | None,
    options: GenerationOptions,
    like: Record | None = None,
    flags: Collection[str] = (),
) -> Opened:
    """Load a model, optionally with another model's upsampler, and its options. like: the image to recreate, whose
    model and options are used except for those named in `flags`. Raises ModelError and RemakeError for a missing model.
    """
    if like is None:
        pipeline = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=options.sampling.base_only)
        return Opened(model_name(model, upsampler), pipeline, options)
    options = like.options(options, flags)
    model, upsampler = like.networks(model, upsampler, options.sampling.base_only, flags)
    pipeline = like.loaded(model, upsampler, options.sampling.base_only, flags)
    return Opened(model_name(model, upsampler), pipeline, options)


def _said(given: GenerationOptions, key: str, value: object) -> object:
    """The value of an option: the given one, or else the file's."""
    now = given.sampling.to_flat()[key]
    return value if now is None else now


def _wanted(condition: Condition) -> str:
    """The input that a model of this condition needs, as text."""
    if isinstance(condition, SeveralCondition):
        return f"{option('given')} {next(iter(condition.parts))}=FILE"
    return option("text") if isinstance(condition, TextCondition) else f"the {condition.kind}'s file"
