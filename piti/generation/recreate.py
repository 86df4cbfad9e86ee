"""Images made again: what a PNG says of how it was made, acted on (`--like`)."""

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

_STEM = 200  # bytes of a name
_EDITED = "edit"  # what the keys of edited images begin with


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
            kept |= {"seed": told.seed, "noise_on": told.noise_on}
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

    def computed(self, given: Computing, flags: Collection[str] = ()) -> Computing:
        """By what the networks are computed as they were then; what is named in `flags` is as `given`.

        An engine or a type of numbers that cannot be had here is left to `auto`, and `differences` says so.
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
    said = texts_of(path)
    if any(key.startswith(_EDITED) for key in said):
        raise RemakeError(
            "is an edit of another image (piti edit), which its condition alone does not make",
            remedy=f"edit that image again, or give {option('like')} an image that piti translate made",
            source=path,
        )
    if not is_png(path):
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


def _said(given: GenerationOptions, key: str, value: object) -> object:
    """The value of an option: the file's where nothing else is given."""
    now = given.sampling.to_flat()[key]
    return value if now is None else now


def _wanted(condition: Condition) -> str:
    """What a person gives a model of this condition."""
    if isinstance(condition, SeveralCondition):
        return f"{option('given')} {next(iter(condition.parts))}=FILE"
    return option("text") if isinstance(condition, TextCondition) else f"the {condition.kind}'s file"
