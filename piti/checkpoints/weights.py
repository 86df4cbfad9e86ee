"""Weights on disk: read without running any code, written one tensor at a time."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from piti.core.compiled import plain_key
from piti.core.errors import UserError, first_line, option

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
"""diffusers' name of a model's weights file."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "weights", "network", "net")
# keys under which training scripts nest the weights, outer ones first
_PREFIXES = ("module.", "model.", "net.", "network.")  # prefixes that wrappers add to every key
_AVERAGES = frozenset({"ema", "average", "averaged", "avg", "swa", "shadow"})
# words in the keys of averaged weights
_COUNT = "n_averaged"  # what torch's `AveragedModel` stores with its weights
_CHUNK = 2**20  # bytes read at once
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


class WeightsError(UserError):
    """A weights file cannot be used. The message names the file, the key, and what was expected."""


class Checkpoint(NamedTuple):
    """Contents of a weights file."""

    weights: dict[str, Tensor]
    note: str = ""
    """A note on which weights were used if there are averaged ones too."""


def read_weights(path: Path, raw: bool = False) -> dict[str, Tensor]:
    """The tensors of a weights file by name, in the file's order; see `read_checkpoint`."""
    return read_checkpoint(path, raw).weights


def read_checkpoint(path: Path, raw: bool = False) -> Checkpoint:
    """The tensors of a `torch.save` file or a .safetensors file, by name, in the file's order, with a note on averages.

    They are memory-mapped if the format allows it. Only tensors are unpickled (`weights_only`). Dictionaries around the
    state dict, and prefixes that wrappers add to every key, such as "module." and "_orig_mod.", are removed. If there
    are averaged weights, they are used, unless `raw`. Raises WeightsError for a file that is missing, truncated, of
    another format, or contains anything but weights, and for averaged weights that are ambiguous or have no names.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a checkpoint (.pt or .safetensors)")
    values: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    values, note = _state_dict(path, values, raw)
    if not isinstance(values, Mapping) or not values:
        raise WeightsError(f"{path}: expected a state dict (names and tensors), got {_what(values)}")
    values = {name: value for name, value in values.items() if name != _COUNT}
    for name, value in values.items():
        _check_weight(path, name, value)
    return Checkpoint(_unprefixed(values), note)


def _state_dict(path: Path, values: Any, raw: bool) -> tuple[Any, str]:
    """The contents of the dictionaries that training scripts put around weights, and a note on averaged ones."""
    note = ""
    while isinstance(values, Mapping) and not any(map(_is_weight, values.values())):
        plain = next((key for key in _WRAPPERS if isinstance(values.get(key), Mapping)), None)
        averages = [key for key, value in values.items() if _is_average(key) and _holds_tensors(value)]
        if averages and not (raw and plain):
            values, note = values[_only_average(path, values, averages, plain, raw)], _taken(averages[0], plain)
        elif plain is not None:
            note = _raw_taken(plain, averages[0]) if averages else note
            values = values[plain]
        else:
            break
    return values, note


def _only_average(path: Path, values: Mapping[Any, Any], averages: list[str], plain: str | None, raw: bool) -> str:
    """The key of the averaged weights. Raises WeightsError if there are several, or none with names."""
    named = " and ".join(f"'{key}'" for key in averages)
    others = "" if plain is None else f", or use those of '{plain}', by {option('weights')} raw"
    if raw:
        raise WeightsError(
            f"contains only averaged weights ({named})", remedy=f"leave {option('weights')} raw out", source=path
        )
    if len(averages) > 1:
        raise WeightsError(
            f"contains several averages: {named}", remedy=f"save the right one alone{others}", source=path
        )
    if not isinstance(values[averages[0]], Mapping):
        raise WeightsError(
            f"its averaged weights ({named}) are a list without names",
            remedy=f"save them as a state dict{others}",
            source=path,
        )
    return averages[0]


def _taken(average: str, plain: str | None) -> str:
    beside = "" if plain is None else f", not the raw ones, '{plain}' ({option('weights')} raw takes those)"
    return f"the averaged weights were taken, '{average}'{beside}"


def _raw_taken(plain: str, average: str) -> str:
    return f"the raw weights were taken, '{plain}', not the averaged ones, '{average}'"


def _is_average(key: Any) -> bool:
    return isinstance(key, str) and not _AVERAGES.isdisjoint(re.split(r"[^a-z]+", key.lower()))


def _is_weight(value: Any) -> bool:
    """Whether a value is a tensor other than a single number, such as a step or a decay."""
    return isinstance(value, Tensor) and value.ndim > 0


def _holds_tensors(value: Any, depth: int = 2) -> bool:
    """Whether a dictionary or list contains, at any depth, a tensor other than a single number."""
    if isinstance(value, Tensor):
        return _is_weight(value)
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return depth >= 0 and any(_holds_tensors(one, depth - 1) for one in inside)


def _unprefixed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without the prefixes of any number of wrappers."""
    named = {plain_key(name): value for name, value in values.items()}
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in named)), ""):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: is not a complete .safetensors file ({error}); download it again") from None


def _read_pickle(path: Path) -> Any:
    zipped = is_archive(path)
    if zipped and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: is truncated or damaged (its archive has no end); download it again")
    try:
        with warnings.catch_warnings():  # for other pickles than torch.save's, which the error below explains
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: {_unpickling(str(error))}") from None
    except Exception as error:  # noqa: BLE001 - of a damaged file torch raises even AssertionError and struct.error
        raise WeightsError(
            f"{path}: cannot be read as weights, it is damaged or truncated ({first_line(error)}); download it again"
        ) from None


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, which torch.save writes since version 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def check_sums(path: Path) -> None:
    """Raises WeightsError if an archive's records do not match their checksums; reads the file once.

    Older `torch.save` files and .safetensors files have no checksums, and pass; so do records without (sum 0).
    """
    if not is_archive(path):
        return
    name = "its list of records"
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                name = f"'{record.filename}'"
                with archive.open(record) as file:
                    while record.CRC and file.read(_CHUNK):
                        pass
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: is damaged, {name} has changed since it was saved ({error}); download it again"
        ) from None


def _unpickling(message: str) -> str:
    """The message for a pickle that torch refuses."""
    wanted = re.search(r"(?:GLOBAL|class|function)\s+([\w.]+\.\w+)", message)
    if wanted or "weights_only" not in message:
        asks = f" (it refers to {wanted[1]})" if wanted else ""
        return (
            f"contains more than weights{asks}, and no code was run; have its author save only the state dict, "
            "or a .safetensors file"
        )
    return (
        "is not a checkpoint of torch.save, is truncated, or contains code, which was not run; give a .pt or "
        ".safetensors file, or download it again"
    )


def _check_weight(path: Path, name: Any, value: Any) -> None:
    """Raises WeightsError unless name and value belong to a weight."""
    if not isinstance(name, str):
        raise WeightsError(f"{path}: expected names of tensors, got the key {name!r}; give only the state dict")
    if not isinstance(value, Tensor):
        raise WeightsError(f"{path}: '{name}' is {_what(value)}, not a tensor; give only the state dict")
    if value.dtype not in _DTYPES or value.layout != torch.strided:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        got = str(value.dtype).removeprefix("torch.")
        got += "" if value.layout == torch.strided else f" ({value.layout})"
        raise WeightsError(f"{path}: '{name}' is {got}; weights are dense tensors of {kinds}")


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an empty dictionary" if not value else f"a dictionary of {len(value)}"
    return f"a value of type {type(value).__name__}"


def check_finite(path: Path, name: str, value: Tensor) -> None:
    """Raises WeightsError if a tensor contains NaN or infinity."""
    finite = value.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise WeightsError(
            f"{path}: '{name}' has {count} of {value.numel()} values that are NaN or infinite; the file cannot be used"
        )


def write_weights(path: Path, kinds: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> None:
    """Write a .safetensors file, with one tensor in memory at a time.

    kinds: name => a tensor of the shape and dtype to come (on "meta", say), in the order of the file; tensors: those
    tensors themselves, in the same order. Raises OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind in kinds.items():
        start, end = end, end + kind.numel() * kind.element_size()
        header[name] = {"dtype": _DTYPES[kind.dtype], "shape": list(kind.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # data start at a multiple of 8
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for (name, kind), tensor in zip(kinds.items(), tensors, strict=True):
            assert (tensor.shape, tensor.dtype) == (kind.shape, kind.dtype), name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
