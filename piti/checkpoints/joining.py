"""Combining the parts of several models: adding an upsampler to a base, or a base to an upsampler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from piti.checkpoints.folder import (
    AUTOENCODER,
    CONDITION_FILE,
    INDEX_FILE,
    OF_UPSAMPLER,
    SHARED_SHA256,
    SHARED_UPSAMPLER,
    ModelError,
    find_model,
    read_json,
)
from piti.checkpoints.weights import WEIGHTS_FILE
from piti.conditions.tokenizers import TOKENIZER_FOLDER
from piti.core.files import file_hash, whole_file


def join_base(folder: Path, base: Path) -> None:
    """Complete an upsampler's folder with another model's base, its scheduler and autoencoder, if any, condition and
    defaults."""
    index, other = read_json(folder, INDEX_FILE), read_json(base, INDEX_FILE)
    for part in ("base", "scheduler", AUTOENCODER):
        if part not in other:
            continue
        shutil.copytree(base / part, folder / part)
        index[part] = other[part]
    settings = {key: value for key, value in other.get("defaults", {}).items() if not key.startswith(OF_UPSAMPLER)}
    index["defaults"] = settings | index["defaults"]
    shutil.copy(base / CONDITION_FILE, folder / CONDITION_FILE)
    if (base / TOKENIZER_FOLDER).is_dir():
        shutil.copytree(base / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER, dirs_exist_ok=True)
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def join_upsampler(folder: Path, other: Path, shared: str | None = None) -> None:
    """Complete a base's folder with another model's upsampler, if it has one, and its defaults.

    shared: the other model's name, to refer to its upsampler instead of copying it."""
    index, theirs = read_json(folder, INDEX_FILE), read_json(other, INDEX_FILE)
    if "upsampler" not in theirs:
        index |= {key: theirs[key] for key in (SHARED_UPSAMPLER, SHARED_SHA256) if key in theirs}
    elif shared is not None:
        index[SHARED_UPSAMPLER] = shared
        if (other / "upsampler" / WEIGHTS_FILE).is_file():
            index[SHARED_SHA256] = file_hash(other / "upsampler" / WEIGHTS_FILE)
    else:
        for part in ("upsampler", "upsampler_scheduler"):
            shutil.copytree(other / part, folder / part)
            index[part] = theirs[part]
    settings = {key: value for key, value in theirs.get("defaults", {}).items() if key.startswith(OF_UPSAMPLER)}
    index["defaults"] = settings | index["defaults"]
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def share_upsampler(folder: Path, lender: str) -> None:
    """Let a model without an upsampler share that of another, by name. Raises ModelError if they do not fit."""
    index, other = read_json(folder, INDEX_FILE), find_model(lender)
    if "upsampler" in index or "base" not in index:
        raise ModelError(f"{folder}: is not a base alone, and cannot share an upsampler; remove its own")
    if "upsampler" not in read_json(other, INDEX_FILE):
        raise ModelError(f"{lender}: has no upsampler to share; give a model with one")
    with whole_file(folder / INDEX_FILE, overwrite=True) as partial:
        partial.write_text(json.dumps(index | {SHARED_UPSAMPLER: lender}, indent=1), encoding="utf-8")
