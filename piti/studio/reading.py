"""Conditions as people hand them in: what the painter shows, files, nearly right colours, pictures made here before."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.conditions import Condition, ConditionError, MaskCondition, SketchCondition
from piti.studio.snapping import snapped

_INKED = 128  # what is darker than this was drawn, on a page that is known to be white


def read_picture(condition: Condition, picture: Image.Image, source: str) -> Tensor:
    """A condition in raw form, of a decoded picture. Raises ConditionError in words.

    A mask's colours that are not exact are brought to the nearest class, see `snapped`; ids have no nearest.
    """
    if not isinstance(condition, MaskCondition):
        return condition.read(picture, source)
    try:
        return condition.read(picture, source)
    except ConditionError:
        if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I"):
            raise
    return _read_colours(condition, picture, source)


def read_painted(condition: Condition, picture: Image.Image, source: str) -> Tensor:
    """The same of a picture that the painter shows: a sketch is dark on light there, however dense."""
    if not isinstance(condition, SketchCondition):
        return read_picture(condition, picture, source)
    return torch.from_numpy((np.asarray(picture.convert("L")) < _INKED).astype(np.uint8))[None]


def shown(condition: Condition, raw: Tensor) -> Image.Image:
    """A condition as the painter shows it: RGB in class colours, or black on white."""
    if not isinstance(condition, SketchCondition):
        return condition.preview(raw)
    return Image.fromarray(np.where(raw[0].numpy() != 0, 0, 255).astype(np.uint8)).convert("RGB")


def _read_colours(condition: MaskCondition, picture: Image.Image, source: str) -> Tensor:
    """A mask of nearly right colours; what is mostly transparent is unlabelled."""
    table, unlabelled = condition.classes, condition.ignore_index
    colours, indices = list(table.colours), list(range(table.count))
    if table.ignore_colour is not None:
        colours.append(table.ignore_colour)
        indices.append(unlabelled)
    pixels = picture.convert("RGBA") if picture.has_transparency_data else picture.convert("RGB")
    values = np.asarray(pixels)
    hidden = values[..., 3] < 128 if values.shape[-1] == 4 else None
    opaque = values[..., :3] if hidden is None else np.where(hidden[..., None], np.uint8(0), values[..., :3])
    if hidden is not None and table.ignore_colour is None:
        opaque = np.where(hidden[..., None], np.array(colours[0], np.uint8), opaque)
    found = np.array(indices)[snapped(np.ascontiguousarray(opaque), colours, source)]
    if hidden is not None:
        found = np.where(hidden, unlabelled, found)
    raw = torch.from_numpy(found.astype(np.uint8 if unlabelled == 255 else np.int16))[None]
    return condition.checked(raw, source)
