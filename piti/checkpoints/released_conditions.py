"""What the encoder of a file in the released layout reads: its channels tell the kind, or the user does."""

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
"""How an encoder sees masks: three channels of class colours, as the release's do, or a channel for each class."""

RELEASED_THRESHOLD = 0.6
"""Where PITI's edge maps were cut into lines."""
RELEASED_GEOMETRY = SeveralCondition({"normal": PictureCondition(), "depth": PictureCondition()}, together=True)
"""What PITI's models of depth and normals read: a picture of either, RGB, the normals first; ones are null."""

_KNOWN = "a mask in colours (3 channels), a sketch (1), or pictures of normals and of depth (6)"


@dataclass(frozen=True)
class Reading:
    """What a file does not tell of the condition that its base reads."""

    classes: Path | None = None
    """A classes.json instead of COCO-Stuff's, or for one-hot masks."""
    tokenizer: Path | None = None
    """A folder with GPT-2's tokenizer, for GLIDE."""
    masks: Masks | None = None
    """How masks are seen; none: as the number of channels says."""


def condition_of(encoder: EncoderSpec | TextEncoderSpec, path: Path, reading: Reading) -> tuple[Condition, str]:
    """What the base in `path` reads, and what was assumed (options marked). Raises ExchangeError, ConditionError.

    One channel is a sketch, three are a mask in colours, five depth and normals as GeometryCondition has them, six the
    release's pictures of both; with `classes` whose number is that of the channels they are a one-hot mask.
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
                f"has no meaning here, {path} reads '{kind}'", remedy="leave it out", option=name, value=value
            )


def _by_channels(channels: int, path: Path) -> tuple[Condition, str]:
    one_hot = f"if it reads one-hot masks of {channels} classes, import it again with {option('classes')} FILE"
    match channels:
        case 1:
            return SketchCondition(threshold=RELEASED_THRESHOLD), ""
        case 3:
            return PaletteCondition(coco_stuff()), (
                "is taken to read masks in COCO-Stuff's colours, as the release's do; if it reads other classes or "
                f"one-hot masks, import it again with {option('classes')} FILE"
            )
        case 5:
            return GeometryCondition(), (
                "is taken to read depth and normals, depth scaled to each picture's own range (geometry's defaults; "
                f"near and far are set in condition.json); {one_hot}"
            )
        case 6:
            return RELEASED_GEOMETRY, (
                "is taken to read a picture of normals and one of depth, both in the colours of its training: "
                f"{option('given')} normal=FILE {option('given')} depth=FILE; {one_hot}"
            )
    raise ExchangeError(
        f"its encoder reads {channels} channels, and PITI's read {_KNOWN}",
        remedy=f"if it reads one-hot masks, name their classes: {option('classes')} FILE",
        source=path,
    )


def _mask(channels: int, path: Path, reading: Reading) -> tuple[Condition, str]:
    """A mask in colours or one-hot; at least one of `classes` and `masks` says so."""
    table = coco_stuff() if reading.classes is None else ClassTable.read(reading.classes)
    if reading.classes is None and reading.masks == "one-hot":
        raise ExchangeError(
            "the file does not tell the classes of its channels",
            remedy=f"name them: {option('classes')} FILE",
            option="masks",
            value="one-hot",
        )
    fitting = [masks for masks, count in (("colours", 3), ("one-hot", table.count)) if count == channels]
    wanted = fitting if reading.masks is None else [masks for masks in fitting if masks == reading.masks]
    if len(wanted) > 1:
        raise ExchangeError(
            f"{path}: its encoder reads 3 channels: a mask in colours, or one-hot masks of the 3 classes of "
            f"{reading.classes}",
            remedy=f"say which: {option('masks')} colours or {option('masks')} one-hot",
        )
    if not wanted:
        named = reading.classes or "COCO-Stuff"
        raise ExchangeError(
            f"its encoder reads {channels} channels, and {named} has {table.count} classes: a mask in colours has 3 "
            "channels, a one-hot mask one for each class",
            remedy=f"give the classes of its training, or none ({option('classes')}, {option('masks')})",
            source=path,
        )
    if wanted == ["colours"]:
        return PaletteCondition(table), ""
    return MaskCondition(table), (
        f"is taken to read one-hot masks, channels in the order of {reading.classes}, with zeros as null"
    )


# Export


def lost_in_release(condition: Condition) -> list[str]:
    """What the released layout does not hold of a model's condition, and why the release's code cannot use it if so.

    A sentence each, options marked; none where an import reads the file as the model did.
    """
    has_classes = f"piti import reads it with {flag('classes')} FILE, the classes.json of its training"
    match condition:
        case TextCondition() | SeveralCondition():
            return []
        case PaletteCondition():
            lost = _settings_lost(condition, PaletteCondition(condition.classes))
            no_place = f"the file has no place for its classes: {has_classes}"
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
    """imported: what an import makes of it."""
    own, theirs = condition.to_config(), imported.to_config()
    odd = [f"{key} = {value} (an import has {theirs[key]})" for key, value in own.items() if value != theirs[key]]
    return [f"the file has no place for {', '.join(odd)}; set it in condition.json after an import"] if odd else []
