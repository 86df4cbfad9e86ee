"""Segmentation masks: class-id maps and palette images, with a class table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped, UInt8
from PIL import Image
from torch import Tensor

from piti.conditions.base import (
    Condition,
    ConditionError,
    Files,
    LossyCondition,
    Size,
    is_source,
    register,
    sides_of,
)
from piti.conditions.class_table import ClassTable, Reading, table_beside
from piti.conditions.drawings import drawing_remedy
from piti.conditions.mask_files import MaskReader
from piti.conditions.mask_readings import reading_of
from piti.conditions.mirroring import mirrored_indices
from piti.core.formats import lossy
from piti.core.images import Box, lossy_error, open_image
from piti.core.spec import Spec, SpecError

_MEANING = ("names", "ids", "colours", "ignore", "ignore_colour")  # class table of its files


class _MaskConfig(Spec):
    """Saved configuration of a mask condition or a subclass."""

    kind: str
    classes: ClassTable
    null_value: float | None = None


@register
@dataclass(frozen=True)
class MaskCondition(Condition):
    """A segmentation mask, one channel per class.

    Raw form: class *indices* [1, h, w], uint8 with 255 for unlabelled (int16 with 32767 for more than 255 classes).
    Encoded: one-hot, unlabelled pixels zero in every channel. null_value fills the null condition (1.0 for weights
    imported from the released GLIDE-size models).

    Files hold class ids or class colours, matched exactly, in lossless formats; fully transparent pixels are
    unlabelled. `reading`, or else the table, determines which; otherwise it is inferred from the file: grey images
    usually contain ids and RGB images colours, palettes and grey images may be either. A file that fits both with
    different results is refused; for a set of files see `settled`.

    table: the ids and colours of the files, if they differ from `classes`; both are matched by name.
    """

    kind: ClassVar[str] = "mask"
    usual_folder: ClassVar[str | None] = "labels"
    exact: ClassVar[bool] = True

    classes: ClassTable
    null_value: float = 0.0
    reading: Reading | None = None
    table: ClassTable | None = None

    @property
    def channels(self) -> int:
        """Number of classes."""
        return self.classes.count

    @property
    def ignore_index(self) -> int:
        """The raw value of unlabelled pixels."""
        return 255 if self.classes.count <= 255 else 32767

    @property
    def raw_dtype(self) -> torch.dtype:
        """uint8, or int16 for more than 255 classes."""
        return torch.uint8 if self.ignore_index == 255 else torch.int16

    def load(self, path: Files) -> Integer[Tensor, "1 h w"]:
        """See `Condition`."""
        try:
            return super().load(path)
        except LossyCondition as error:
            raise (_perhaps_drawn(error, open_image(path)) if is_source(path) else error) from None

    def read(self, image: Image.Image, source: str) -> Integer[Tensor, "1 h w"]:
        """Indices of a decoded mask; see the class for supported images.

        Raises ConditionError for ids or colours that are not in the table, naming them with their counts, and for
        ambiguous files.
        """
        try:
            if kind := lossy(image):
                raise LossyCondition.like(lossy_error(kind, source))
            indices = self.reader.read(image, source, self.reading or self.reader.table.reading)
        except ConditionError as error:
            raise _perhaps_drawn(error, image) from None
        return torch.from_numpy(indices.astype(self._dtype))[None]

    def settled(self, files: Sequence[Files]) -> tuple[Condition, list[str]]:
        """With the `reading` that fits all of these files, if one of them is ambiguous."""
        if self.reading or self.reader.table.reading:
            return self, []
        reading, notes = reading_of(self.reader, [file for file in files if is_source(file)])
        return (self if reading is None else replace(self, reading=reading)), notes

    def beside(self, path: object) -> Condition:
        """With the class table in a file's folder or above, if its ids or colours differ."""
        found = table_beside(path) if isinstance(path, str | Path) else None
        if found is None or found == self.classes:
            return self
        same = all(getattr(found, key) == getattr(self.classes, key) for key in _MEANING)
        return replace(self, reading=found.reading) if same else replace(self, table=found)

    @cached_property
    def reader(self) -> MaskReader:
        """The reader of its files."""
        return MaskReader(self.table or self.classes, self.classes.names, self.ignore_index)

    def checked(self, raw: Tensor, source: str) -> Integer[Tensor, "1 h w"]:
        """Return class indices [1, h, w]. Raises ConditionError for another shape, dtype, or index."""
        if raw.ndim != 3 or len(raw) != 1 or raw.is_floating_point() or raw.is_complex():
            shape = f"{list(raw.shape)} of {raw.dtype}"
            raise ConditionError(
                f"expected class indices [1, h, w] of an integer type, got {shape}",
                remedy="give ids as an array [h, w], as in a file, or colours as a uint8 array [h, w, 3]",
                source=source,
            )
        odd = raw[(raw != self.ignore_index) & ((raw < 0) | (raw >= self.classes.count))]
        if len(odd):
            raise ConditionError(
                f"{source}: {len(odd)} pixels hold indices such as {int(odd[0])}; "
                f"classes are 0..{self.classes.count - 1}, unlabelled is {self.ignore_index}"
            )
        return raw

    def crop_resize(self, raw: Integer[Tensor, "1 h w"], box: Box, size: Size) -> Integer[Tensor, "1 h2 w2"]:
        """Cut `box` out and resize it, nearest neighbour, equal to PIL's NEAREST."""
        return nearest(raw, box, size)

    def flip(self, raw: Integer[Tensor, "*any w"]) -> Integer[Tensor, "*any w"]:
        """Mirror left to right, swapping classes named left and right, such as `l_eye`."""
        mirrored = raw.flip(-1)
        if not self._exchanged:
            return mirrored
        exchanged = mirrored.clone()
        for one, other in self._exchanged:
            exchanged[mirrored == one], exchanged[mirrored == other] = other, one
        return exchanged

    @cached_property
    def _exchanged(self) -> list[tuple[int, int]]:
        return mirrored_indices(self.classes.names)

    def encode(self, raw: Integer[Tensor, "*batch 1 h w"]) -> Float[Tensor, "*batch C h w"]:
        """One-hot float32; unlabelled pixels are zero in every channel."""
        classes = torch.arange(self.classes.count, dtype=raw.dtype, device=raw.device)  # [C]
        return (raw == classes[:, None, None]).float()  # [..., C, h, w]

    def preview(self, raw: Integer[Tensor, "1 h w"]) -> Image.Image:
        """The mask in its classes' colours; `read` of the result gives `raw` again.

        Unlabelled pixels without a colour in the table are black; if a class is black too, they are read as that class.
        """
        return Image.fromarray(self._colour_of_index[raw[0].cpu().numpy()])

    def to_config(self) -> dict[str, Any]:
        """Kind, table and null value as plain data."""
        return _MaskConfig(kind=self.kind, classes=self.classes, null_value=self.null_value).to_dict()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> MaskCondition:
        """Build from `to_config`'s data. Raises ConditionError, naming source and key."""
        try:
            parsed = _MaskConfig.parse(config, source)
        except SpecError as error:
            raise ConditionError.like(error) from None
        return cls(parsed.classes) if parsed.null_value is None else cls(parsed.classes, parsed.null_value)

    def reads_like(self, other: Condition) -> bool:
        """Whether the other has the same classes; their files may differ."""
        return isinstance(other, MaskCondition) and _plain(self).to_config() == _plain(other).to_config()

    @property
    def _dtype(self) -> type[np.generic]:
        return np.uint8 if self.ignore_index == 255 else np.int16

    @cached_property
    def _colour_of_index(self) -> UInt8[np.ndarray, "indices 3"]:
        """The RGB of every raw value; unlabelled pixels without a colour in the table are black."""
        colours = np.zeros((self.ignore_index + 1, 3), np.uint8)
        colours[: self.classes.count] = self.classes.colours
        colours[self.ignore_index] = self.classes.ignore_colour or (0, 0, 0)
        return colours


def _plain(condition: MaskCondition) -> MaskCondition:
    """The condition without settings of files."""
    return replace(condition, classes=condition.classes.model_copy(update={"reading": None}))


def _perhaps_drawn(error: ConditionError, image: Image.Image) -> ConditionError:
    """The error, with a remedy if the image looks like a drawing."""
    error.remedy = ", or ".join(filter(None, [error.remedy, drawing_remedy(image)]))
    return error


def nearest(values: Shaped[Tensor, "*rest h w"], box: Box, size: Size) -> Shaped[Tensor, "*rest h2 w2"]:
    """Crop `box` and resize to `size` by nearest neighbour, equal to PIL's NEAREST."""
    height, width = sides_of(size)
    rows = nearest_positions(box.top, box.height, height)
    columns = nearest_positions(box.left, box.width, width)
    return values[..., rows[:, None], columns]


def nearest_positions(start: int, length: int, size: int) -> Integer[Tensor, "*positions"]:
    """Source positions of `size` samples over [start, start + length), rounded as PIL does.

    PIL accumulates the step in float64 instead of multiplying; the rounding of the sum affects the result.
    """
    step = length / size
    steps = np.full(size, step)
    steps[0] = step * 0.5
    return torch.from_numpy(np.cumsum(steps).astype(np.int64).clip(max=length - 1) + start)
