"""A component's weights in one or several safetensors files, as written by diffusers and transformers, read one at a
time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piti.checkpoints.weights import WeightsError

_VARIANTS = (None, "fp16", "bf16")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


Kind = tuple[str, list[int]]
"""Dtype, as named by safetensors, and shape of a tensor."""


@dataclass(frozen=True)
class WeightFiles:
    """The file of each tensor of a component."""

    folder: Path
    files: dict[str, Path]
    """By the tensors' names."""
    kinds: dict[str, Kind]
    variant: str | None

    @classmethod
    def of(cls, folder: Path, stem: str) -> WeightFiles:
        """The weights in a component's folder, in full precision if available. Raises WeightsError."""
        for variant in _VARIANTS:
            middle = "" if variant is None else f".{variant}"
            whole = folder / f"{stem}{middle}.safetensors"
            if whole.is_file():
                kinds = kinds_of(whole)
                return cls(folder, dict.fromkeys(kinds, whole), kinds, variant)
            index = folder / f"{stem}.safetensors.index{middle}.json"
            if index.is_file():
                return cls(folder, *_sharded(index), variant)
        raise WeightsError(_none_in(folder), remedy=f"give the model with {stem}.safetensors", source=folder)

    def find(self, *names: str) -> str:
        """The first of these names that exists. Raises WeightsError."""
        for name in names:
            if name in self.files:
                return name
        raise WeightsError(f"lacks '{names[0]}', which its config.json requires", source=self.folder)

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.files[name]

    def kind(self, name: str, shape: Sequence[int]) -> Tensor:
        """A meta tensor with the dtype of the one of this name. Raises WeightsError for another shape."""
        dtype, held = self.kinds[name]
        if dtype not in _DTYPES:
            raise WeightsError(
                f"'{name}' has dtype {dtype}: only {', '.join(_DTYPES)} are supported",
                remedy="give the model without quantisation",
                source=self.files[name],
            )
        if held != list(shape):
            raise WeightsError(
                f"'{name}' is {dtype} {held}, but its config.json requires {list(shape)}", source=self.files[name]
            )
        return torch.empty(list(shape), dtype=_DTYPES[dtype], device="meta")

    def read(self, name: str) -> Tensor:
        """A tensor itself."""
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)

    def check_all_used(self, names: Iterable[str]) -> None:
        """Raises WeightsError if there are other tensors."""
        left = sorted(self.files.keys() - set(names))
        if left:
            raise WeightsError(
                f"holds {len(left)} tensors that its config.json does not define, such as '{left[0]}'",
                source=self.folder,
            )


def _none_in(folder: Path) -> str:
    """The message for a component's folder without usable weights."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"contains only weights with other names, such as {others[0]}"
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
    return "contains only pickled weights, which can run code" if pickled else "contains no weights"


def kinds_of(path: Path) -> dict[str, Kind]:
    """Dtypes and shapes of a file's tensors by name; nothing is loaded. Raises WeightsError for an incomplete file."""
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), list(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is not a complete .safetensors file ({error}); download it again") from None


def _sharded(index: Path) -> tuple[dict[str, Path], dict[str, Kind]]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: index.parent / str(file) for name, file in places.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{index}: is not an index of shards ({error}); download it again") from None
    held = {path: kinds_of(path) for path in sorted(set(files.values()))}
    for name, path in files.items():
        if name not in held[path]:
            raise WeightsError(f"{path}: lacks '{name}', which {index.name} lists; download it again")
    return files, {name: held[path][name] for name, path in files.items()}
