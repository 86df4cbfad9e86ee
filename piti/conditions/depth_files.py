"""Depth and normals in files: 16-bit images with a unit, EXR, NumPy arrays with a mask, DIODE's three files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image

from piti.conditions.base import ConditionError
from piti.core.errors import UserError, quoted
from piti.core.images import MAX_PIXELS, ImageError, Source, open_image

PICTURES = frozenset({".png", ".tif", ".tiff"})
DEPTH_SUFFIXES = PICTURES | {".exr", ".npy", ".npz"}

Sign = Literal[-1, 1]
Axes = tuple[Sign, Sign, Sign]

CAMERA_AXES: Axes = (1, 1, 1)
"""x right, y down, z forward."""
DIODE_AXES: Axes = (1, -1, -1)
"""DIODE's normals have y up and z backward: the signs that bring them to x right, y down, z forward."""

_FORMATS = "a 16-bit grey PNG, an EXR, or a .npy or .npz of floats in metres"


@dataclass(frozen=True)
class DepthFile:
    """A file's depth in metres along the optical axis, 0 in holes, and its normals, if any.

    normal: x right, y down, z forward, of any length, as in the file.
    """

    depth: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "h w 3"] | None = None


def read_depth(path: Source, unit: float, normal_axes: Axes = CAMERA_AXES) -> DepthFile:
    """Read depth by the file's suffix; beside DIODE's `X_depth.npy` also `X_depth_mask.npy` and `X_normal.npy`.

    unit: metres per count where values are integers; floats are metres. `.npz`: arrays `depth` [h, w], and perhaps
    `mask` [h, w] (0: hole) and `normal` [h, w, 3] or [3, h, w]. Holes are values that are not above 0, not finite, or
    masked out. normal_axes: the signs that bring the normals of an `.npz` to x right, y down, z forward; DIODE's are
    known. Raises ImageError for a missing, damaged or too large file, ConditionError for other contents. Nothing is
    unpickled.
    """
    reader = _READERS.get(Path(str(path)).suffix.lower())
    if reader is None:
        return DepthFile(depth_of_image(open_image(path, exact=True), unit, str(path)))
    return reader(path, unit, normal_axes)


def depth_of_image(image: Image.Image, unit: float, source: str) -> Float[np.ndarray, "h w"]:
    """Depth in metres of a decoded image: integers of 16 or 32 bits times `unit`, or floats (mode F) in metres.

    Raises ConditionError for other images: 8 bits show depth, but do not measure it.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        raise ConditionError(
            f"{source}: an 8-bit picture ({image.mode}) cannot hold metric depth, only 256 steps of an unknown range; "
            f"give {_FORMATS}"
        )
    return _metres(np.asarray(image), unit, source)


# NumPy


def _read_npy(path: Source, unit: float, _: Axes) -> DepthFile:
    name = Path(str(path)).name
    for end, what in (("_depth_mask.npy", "mask"), ("_normal.npy", "normals")):
        if name.endswith(end):
            depth = name.removesuffix(end) + "_depth.npy"
            raise ConditionError(f"{path}: is the {what} of {depth} by its name; give {depth}, it is read along")
    depth = _metres(_read_array(path), unit, str(path))
    if not isinstance(path, str | Path) or not name.endswith("_depth.npy"):
        return DepthFile(depth)
    mask, normal = (Path(path).with_name(name.removesuffix("_depth.npy") + end) for end in _BESIDE)
    if mask.exists():
        depth = np.where(_mask(_read_array(mask), depth, str(mask)), depth, np.float32(0))
    if not normal.exists():
        return DepthFile(depth)
    return DepthFile(depth, _normal(_read_array(normal), depth, str(normal), DIODE_AXES))


_BESIDE = ("_depth_mask.npy", "_normal.npy")


def _read_npz(path: Source, unit: float, normal_axes: Axes) -> DepthFile:
    arrays: dict[str, np.ndarray] = {}
    with _opened(path) as file, _damage_named(path), zipfile.ZipFile(file) as archive:
        for name in ("depth", "mask", "normal"):
            if f"{name}.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _array(member, f"{path}: {name}")
        held = [name.removesuffix(".npy") for name in archive.namelist()]
    if "depth" not in arrays:
        raise ConditionError(f"{path}: has no array 'depth', it holds {', '.join(held) or 'nothing'}; rename one")
    depth = _metres(arrays["depth"], unit, f"{path}: depth")
    if "mask" in arrays:
        depth = np.where(_mask(arrays["mask"], depth, f"{path}: mask"), depth, np.float32(0))
    if "normal" not in arrays:
        return DepthFile(depth)
    return DepthFile(depth, _normal(arrays["normal"], depth, f"{path}: normal", normal_axes))


def _read_array(path: Source) -> Shaped[np.ndarray, "*any"]:
    with _opened(path) as file, _damage_named(path):
        return _array(file, str(path))


def _array(file: Any, source: str) -> Shaped[np.ndarray, "*any"]:
    """Read an array in NumPy's format, checking its header before allocating memory."""
    version = np.lib.format.read_magic(file)
    headers: dict[Any, Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        raise ValueError(f"NumPy format {version}")
    shape, _, dtype = headers[version](file)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ConditionError(
            f"{source}: values of type {dtype} cannot be depth, a mask or normals; save them as float32"
        )
    if 0 in shape:
        raise ConditionError(f"{source}: is empty, {list(shape)}; save the whole image")
    if int(np.prod(shape, dtype=object)) > 3 * MAX_PIXELS:
        raise ImageError(f"{source}: {list(shape)} values, at most {MAX_PIXELS} pixels are read; make it smaller")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


# EXR


def _read_exr(path: Source, unit: float, _: Axes) -> DepthFile:
    """The one channel, or Z, Y or R, of an EXR file."""
    try:
        import OpenEXR
    except ImportError:
        raise ConditionError(f"{path}: reading EXR needs another package; pip install 'piti[exr]'") from None
    with _opened(path) as file, _damage_named(path):
        # num_threads=0: a thread pool would not survive the fork of data loading workers.
        for part in OpenEXR.File(file, header_only=True, num_threads=0).parts:
            first, last = (np.asarray(corner, np.int64) for corner in part.header["dataWindow"])
            width, height = (last - first + 1).tolist()
            if width * height > MAX_PIXELS:
                raise ImageError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS} are read; make it smaller")
        file.seek(0)
        parts = OpenEXR.File(file, separate_channels=True, num_threads=0).parts
        channels = {name: np.array(found.pixels) for part in parts for name, found in part.channels.items()}
        if not channels:
            raise ValueError("no pixels")
    return DepthFile(_metres(_depth_channel(channels, str(path)), unit, str(path)))


def _depth_channel(channels: dict[str, np.ndarray], source: str) -> Shaped[np.ndarray, "*any"]:
    """Layer names before the last dot are ignored; R of a colour image is not depth."""
    if len(channels) == 1:
        return next(iter(channels.values()))
    for wanted in ("Z", "Y", "R"):
        found = [name for name in channels if name.rpartition(".")[2] == wanted]
        if len(found) == 1:
            layer = found[0].removesuffix(wanted)
            others = [channels[layer + name] for name in "GB" if wanted == "R" and layer + name in channels]
            if all(np.array_equal(channels[found[0]], other, equal_nan=True) for other in others):
                return channels[found[0]]
    named = ", ".join(sorted(channels))
    raise ConditionError(f"{source}: none of the channels {named} is plainly depth; save one channel, or name it Z")


# Small parts


def _metres(values: Shaped[np.ndarray, "*any"], unit: float, source: str) -> Float[np.ndarray, "h w"]:
    """Values [h, w] or [h, w, 1] in metres, 0 in holes."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise ConditionError(f"{source}: expected depth [h, w] or [h, w, 1], got {list(values.shape)}; save one plane")
    if values.dtype.itemsize == 1:
        raise ConditionError(f"{source}: {values.dtype} cannot hold metric depth, only 256 steps of an unknown range")
    with np.errstate(over="ignore"):
        metres = values.astype(np.float32) if values.dtype.kind == "f" else values * np.float32(unit)
    return np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float32)


def _mask(values: np.ndarray, depth: np.ndarray, source: str) -> Bool[np.ndarray, "h w"]:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.shape != depth.shape:
        raise ConditionError(f"{source}: expected a mask {list(depth.shape)} as the depth, got {list(values.shape)}")
    return np.nan_to_num(values) != 0


def _normal(values: np.ndarray, depth: np.ndarray, source: str, axes: Axes) -> Float[np.ndarray, "h w 3"]:
    if values.shape == (3, *depth.shape) and values.shape[2:] != (3,):
        values = np.moveaxis(values, 0, -1)
    if values.shape != (*depth.shape, 3) or values.dtype.kind != "f":
        wanted = f"float normals {[*depth.shape, 3]} or {[3, *depth.shape]}"
        raise ConditionError(f"{source}: expected {wanted}, got {list(values.shape)} of {values.dtype}")
    return values.astype(np.float32) * np.array(axes, np.float32)


def _opened(path: Source) -> Any:
    """The file, open for reading, as a context."""
    try:
        return Path(path).open("rb") if isinstance(path, str | Path) else path.open()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from None


@contextmanager
def _damage_named(path: Source) -> Iterator[None]:
    """Convert decoders' errors for damaged files to errors with the file's name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # for a damaged header NumPy even raises tokenize.TokenError
        what = quoted(str(error) or type(error).__name__, 200)
        raise ImageError(f"{path}: damaged or incomplete ({what}); copy or export the file again") from error


_READERS: dict[str, Callable[[Source, float, Axes], DepthFile]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".exr": _read_exr,
}
