"""DIODE (Vasiljevic et al. 2019): `{train,val}/{indoors,outdoor}/scene_*/scan_*/` with `X.png`, `X_depth.npy`,
`X_depth_mask.npy` and, if downloaded too, `X_normal.npy`.

Depth is in metres along the optical axis, [h, w, 1] or [h, w]; the mask is 1 where depth was measured. Normals are unit
vectors [h, w, 3] with x to the right, y up and z towards the viewer, zero where there is none.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from piti.conditions import ConditionError
from piti.conditions.depth_files import read_depth
from piti.core.images import ImageError
from piti.data.problems import UNREADABLE, DataError
from piti.data.shown import Seen, turn_of
from piti.prepare.layouts.base import (
    Entry,
    Examined,
    Fault,
    Layout,
    Listing,
    files_below,
    matched,
    photograph,
    unequal,
)

_SPLITS, _KINDS = ("train", "val"), ("indoors", "outdoor")
_DEPTH, _MASK, _NORMAL = "_depth.npy", "_depth_mask.npy", "_normal.npy"
_NO_MASK = "depth files without a mask (X_depth_mask.npy)"
_NO_DEPTH = "depth files without any valid pixel"
CAMERA = (886.81, 927.06, 512.0, 384.0)
"""Focal lengths and centre, in pixels at 1024 x 768: f_x, f_y, c_x, c_y, as published."""


class Diode(Layout):
    """Depth, its validity, and normals if available, as one `.npz` per photograph.

    Arrays: depth [h, w] float32 in metres; mask [h, w] uint8, nonzero where depth is valid; normal [h, w, 3] float16, x
    to the right, y down, z away from the camera, turned to face it, zero where there is none.
    """

    name = "diode"
    recipe = "geometry"
    folder = "depth"
    suffix = ".npz"

    def __init__(self, root: Path) -> None:
        for place in (root, *sorted(root.glob("*"))):
            if any((place / split / kind).is_dir() for split in _SPLITS for kind in _KINDS):
                super().__init__(place)
                return
        raise DataError(
            f"{root}: unexpected layout, expected train/ or val/ with {{indoors,outdoor}}/scene_*/scan_*/X.png, "
            "X_depth.npy, X_depth_mask.npy; give the folder that holds these"
        )

    def listing(self) -> Listing:
        """See `Layout`."""
        listing = Listing()
        for split in _SPLITS:
            folder = self.root / split
            found = {ending: _keyed(split, files_below(folder, ending)) for ending in (".png", _DEPTH, _MASK, _NORMAL)}
            half = matched(found[".png"], found[_DEPTH], lambda key: key.partition("/")[0])
            listing.faults += half.faults
            listing.splits |= half.splits
            for entry in half.entries:
                if entry.key not in found[_MASK]:
                    listing.faults.append(Fault(entry.key, _NO_MASK, str(entry.condition)))
                    continue
                further = [found[ending][entry.key] for ending in (_MASK, _NORMAL) if entry.key in found[ending]]
                listing.entries.append(Entry(entry.key, split, entry.image, entry.condition, tuple(further)))
        return listing

    def examine(self, entry: Entry) -> Examined:
        """See `Layout`: every file is read."""
        faults: list[Fault] = []
        image = photograph(entry, faults)
        try:
            arrays = self._arrays(entry)
        except (ImageError, ConditionError) as error:
            return Examined((*faults, Fault(entry.key, UNREADABLE, str(error))))
        height, width = arrays["depth"].shape
        seen = Seen() if image is None else Seen({}, *turn_of(entry.image, np.asarray(image), None))
        if image is not None and image.size != (width, height):
            faults.append(unequal(entry, image.size, (width, height), seen))
        if not arrays["mask"].any():
            faults.append(Fault(entry.key, _NO_DEPTH, str(entry.condition)))
        return Examined(tuple(faults), seen=seen)

    def _arrays(self, entry: Entry) -> dict[str, np.ndarray]:
        """The arrays of a pair. Raises ImageError or ConditionError for damaged or mismatched files."""
        found = read_depth(entry.condition, unit=1.0)
        arrays = {"depth": found.depth, "mask": (found.depth > 0).astype(np.uint8)}
        if found.normal is not None:
            arrays["normal"] = facing_normals(found.normal).astype(np.float16)
        return arrays

    def classes(self) -> None:
        """None: geometry has no classes."""

    def as_it_is(self, entry: Entry) -> bool:
        """See `Layout`: several files become one."""
        return False

    def write(self, entry: Entry, target: Path, mark: str) -> None:
        """See `Layout`; the mark is the archive's comment."""
        with zipfile.ZipFile(target, "w") as file:
            for name, array in self._arrays(entry).items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            file.comment = mark.encode()

    def marked(self, target: Path) -> str | None:
        """See `Layout`."""
        try:
            with zipfile.ZipFile(target) as file:
                return file.comment.decode()
        except (OSError, ValueError, zipfile.BadZipFile):
            return None


def facing_normals(normal: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Normals with x to the right, y down, z away from DIODE's camera, as unit vectors that are turned to face it.

    Visible surfaces face the camera, so normals that point away along their pixel's ray are negated. Zero and
    non-finite normals become zero.
    """
    normal = np.nan_to_num(normal, nan=0, posinf=0, neginf=0)
    height, width = normal.shape[:2]
    f_x, f_y, c_x, c_y = np.array(CAMERA, np.float32) * np.array([width / 1024, height / 768] * 2, np.float32)
    x, y = (np.arange(width) - c_x) / f_x, (np.arange(height) - c_y) / f_y
    away = normal[..., 0] * x + normal[..., 1] * y[:, None] + normal[..., 2] > 0
    normal = np.where(away[..., None], -normal, normal)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return (normal / np.maximum(length, 1e-6) * (length > 1e-3)).astype(np.float32)


def _keyed(split: str, files: dict[str, Path]) -> dict[str, Path]:
    return {f"{split}/{key}": path for key, path in files.items()}
