"""The condition of a released file's encoder: inferred from its channels, or given by the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from piti.checkpoints.release import ExchangeError
from piti.conditions import (
    ClassTable,
    Condition,
    GeometryCondition,
    MaskCondition,
    PaletteCondition,
    PictureCondition,
    SeveralCondition,
    SketchCondition,
    TextCondition,
    coco_stuff,
)
from piti.conditions.tokenizers import BytePairTokenizer
from piti.core.errors import flag, option
from piti.models import EncoderSpec, TextEncoderSpec

Masks = Literal["colours", "one-hot"]
"""Encoding of masks: three channels of class colours, as in the release, or one channel per class."""

RELEASED_THRESHOLD = 0.6
"""Threshold that turned PITI's edge maps into lines."""
RELEASED_GEOMETRY = SeveralCondition({"normal": PictureCondition(), "depth": PictureCondition()}, together=True)
"""The condition of PITI's depth and normals models: an RGB image of each, normals first; ones are null."""

_KNOWN = "a mask in colours (3 channels), a sketch (1), or images of normals and depth (6)"


@dataclass(frozen=True)
class Reading:
    """Settings of a base's condition that its file does not contain."""

    classes: Path | None = None
    """A classes.json instead of COCO-Stuff's, or for one-hot masks."""
    tokenizer: Path | None = None
    """A folder with GPT-2's tokenizer, for GLIDE."""
    masks: Masks | None = None
    """Encoding of masks; None: inferred from the number of channels."""


def condition_of(encoder: EncoderSpec | TextEncoderSpec, path: Path, reading: Reading) -> tuple[Condition, str]:
    """The condition of the base in `path`, and what was assumed (options marked). Raises ExchangeError, ConditionError.

    One channel is a sketch, three are a mask in colours, five depth and normals as in GeometryCondition, six the
    release's images of both; as many channels as `classes` are a one-hot mask.
    """
    if isinstance(encoder, TextEncoderSpec):
        _check_unused("text", path, classes=reading.classes, masks=reading.masks)
        return TextCondition(encoder.context, BytePairTokenizer(reading.tokenizer, encoder.vocabulary)), ""
    if reading.classes is None and reading.masks is None:
        condition, assumed = _by_channels(encoder.in_channels, path)
    else:
        condition, assumed = _mask(encoder.in_channels, path, reading)
    _check_unused(condition.kind, path, tokenizer=reading.tokenizer)
    return condition, assumed


def _check_unused(kind: str, path: Path, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ExchangeError(
                f"does not apply, {path} reads '{kind}'", remedy="leave it out", option=name, value=value
            )


def _by_channels(channels: int, path: Path) -> tuple[Condition, str]:
    one_hot = f"if it reads one-hot masks of {channels} classes, import it again with {option('classes')} FILE"
    match channels:
        case 1:
            return SketchCondition(threshold=RELEASED_THRESHOLD), ""
        case 3:
            return PaletteCondition(coco_stuff()), (
                "is assumed to read masks in COCO-Stuff's colours, as in the release; if it reads other classes or "
                f"one-hot masks, import it again with {option('classes')} FILE"
            )
        case 5:
            return GeometryCondition(), (
                "is assumed to read depth and normals, depth scaled to each image's own range (geometry's defaults; "
                f"near and far are set in condition.json); {one_hot}"
            )
        case 6:
            return RELEASED_GEOMETRY, (
                "is assumed to read an image of normals and one of depth, in the colours of its training: "
                f"{option('given')} normal=FILE {option('given')} depth=FILE; {one_hot}"
            )
    raise ExchangeError(
        f"its encoder reads {channels} channels, and PITI's read {_KNOWN}",
        remedy=f"if it reads one-hot masks, give their classes: {option('classes')} FILE",
        source=path,
    )


def _mask(channels: int, path: Path, reading: Reading) -> tuple[Condition, str]:
    """A mask in colours or one-hot; at least one of `classes` and `masks` is given."""
    table = coco_stuff() if reading.classes is None else ClassTable.read(reading.classes)
    if reading.classes is None and reading.masks == "one-hot":
        raise ExchangeError(
            "the file does not contain the classes of its channels",
            remedy=f"give them: {option('classes')} FILE",
            option="masks",
            value="one-hot",
        )
    fitting = [masks for masks, count in (("colours", 3), ("one-hot", table.count)) if count == channels]
    wanted = fitting if reading.masks is None else [masks for masks in fitting if masks == reading.masks]
    if len(wanted) > 1:
        raise ExchangeError(
            f"{path}: its encoder reads 3 channels: a mask in colours, or one-hot masks of the 3 classes of "
            f"{reading.classes}",
            remedy=f"choose one: {option('masks')} colours or {option('masks')} one-hot",
        )
    if not wanted:
        named = reading.classes or "COCO-Stuff"
        raise ExchangeError(
            f"its encoder reads {channels} channels, but {named} has {table.count} classes: masks in colours have 3 "
            "channels, one-hot masks one per class",
            remedy=f"give the classes of its training, or none ({option('classes')}, {option('masks')})",
            source=path,
        )
    if wanted == ["colours"]:
        return PaletteCondition(table), ""
    return MaskCondition(table), (
        f"is assumed to read one-hot masks, with channels in the order of {reading.classes}, with zeros as null"
    )


# Export


def lost_in_release(condition: Condition) -> list[str]:
    """What the released layout cannot store of a model's condition, and why the release's code cannot use it, if so.

    A sentence each, options marked; empty if an import restores the condition.
    """
    has_classes = f"piti import reads it with {flag('classes')} FILE, the classes.json of its training"
    match condition:
        case TextCondition() | SeveralCondition():
            return []
        case PaletteCondition():
            lost = _settings_lost(condition, PaletteCondition(condition.classes))
            no_place = f"the file cannot store its classes: {has_classes}"
            return lost if condition.classes == coco_stuff() else [no_place, *lost]
        case MaskCondition():
            this = f"one-hot masks, a channel for each of {condition.channels} classes"
            return [_unread(this, has_classes), *_settings_lost(condition, MaskCondition(condition.classes))]
        case GeometryCondition():
            this = "depth, normals and holes in 5 channels"
            return [_unread(this, "piti import reads it"), *_settings_lost(condition, GeometryCondition())]
        case SketchCondition():
            return _settings_lost(condition, SketchCondition(threshold=RELEASED_THRESHOLD))
    return [_unread(f"'{condition.kind}'", f"piti import takes {condition.channels} channels for another kind")]


def _unread(what: str, but: str) -> str:
    return f"the release's code has no {what}: it reads {_KNOWN}; {but}"


def _settings_lost(condition: Condition, imported: Condition) -> list[str]:
    """imported: the condition as imported."""
    own, theirs = condition.to_config(), imported.to_config()
    odd = [f"{key} = {value} (an import has {theirs[key]})" for key, value in own.items() if value != theirs[key]]
    return [f"the file cannot store {', '.join(odd)}; set it in condition.json after an import"] if odd else []
