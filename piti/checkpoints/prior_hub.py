"""Text-to-image models of the hub: only the files that an import reads are fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from piti.checkpoints.folder import INDEX_FILE, ModelError
from piti.core.errors import first_line

_SMALL = [INDEX_FILE, "*/*.json", "*/merges.txt", "*/spiece.model", "*/*.vocab"]
_HALVES = ("fp16", "bf16")


def is_id(name: str) -> bool:
    """Whether a name may be an id of the hub, OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def fetched_configurations(name: str) -> Path:
    """The folder of a model of the hub with its configurations and tokenizers alone. Raises ModelError."""
    if not is_id(name):
        raise ModelError(
            f"there is no folder or file '{name}'",
            remedy="check the path, or give an id of the hub (OWNER/NAME)",
        )
    return _download(name, _SMALL, [])


def fetched(name: str, wanted: Callable[[Mapping[str, Any], str], list[str]]) -> Path:
    """The folder of a model of the hub: its configurations, then the weights of the parts that `wanted` names.

    Of weights in several precisions the full ones are fetched. wanted: (model_index.json, its name) => folders.
    Raises ModelError, and what `wanted` raises.
    """
    folder = fetched_configurations(name)
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{name}' holds no {INDEX_FILE} ({error}); give a pipeline of diffusers") from None
    for part in wanted(index, name):
        found = _download(name, [f"{part}/*.safetensors"], ["*.non_ema*", *(f"*.{half}*" for half in _HALVES)])
        for half in _HALVES:
            if not any((found / part).glob("*.safetensors")):
                found = _download(name, [f"{part}/*.{half}*.safetensors"], [])
    return folder


def _download(name: str, patterns: list[str], without: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=without))
    except Exception as error:  # the hub raises errors of many libraries
        raise ModelError(
            f"there is no folder '{name}' here, and the hub did not give a model of this id ({first_line(error)})",
            remedy="check the path, or the id and the connection",
        ) from error
