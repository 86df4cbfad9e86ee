"""Text-to-image models on the hub, of which only the files needed for an import are downloaded."""

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
    """Whether a name may be a hub id, OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def fetched_configurations(name: str) -> Path:
    """The folder of a hub model with only its configurations and tokenizers. Raises ModelError."""
    if not is_id(name):
        raise ModelError(
            f"there is no folder or file '{name}'",
            remedy="check the path, or give a hub id (OWNER/NAME)",
        )
    return _download(name, _SMALL, [])


def fetched(name: str, wanted: Callable[[Mapping[str, Any], str], list[str]]) -> Path:
    """The folder of a hub model, with its configurations and the weights of the components given by `wanted`.

    Of several precisions, the full one is downloaded. wanted: (model_index.json, its name) => folders. Raises
    ModelError, and the errors of `wanted`.
    """
    folder = fetched_configurations(name)
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{name}' has no {INDEX_FILE} ({error}); give a diffusers pipeline") from None
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
            f"there is no folder '{name}', and no model with this id could be downloaded from the hub "
            f"({first_line(error)})",
            remedy="check the path, or the id and the connection",
        ) from error
