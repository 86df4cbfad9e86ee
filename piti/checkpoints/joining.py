"""Models put together of the parts of others: an upsampler behind a base, a base before an upsampler."""

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
    """Make of an upsampler's folder a whole model: add another model's base, its scheduler and its autoencoder where
    it has them, condition and defaults."""
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
    """Make of a base's folder a whole model: add another model's upsampler, where it has one, with its defaults.

    shared: the other model's name, where its upsampler is only to be named and stays where it is."""
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
    """Make a model without an upsampler use that of another, by name. Raises ModelError where either does not fit."""
    index, other = read_json(folder, INDEX_FILE), find_model(lender)
    if "upsampler" in index or "base" not in index:
        raise ModelError(f"{folder}: is to share an upsampler, but is no base alone; leave its own out")
    if "upsampler" not in read_json(other, INDEX_FILE):
        raise ModelError(f"{lender}: has no upsampler to share; name a model that has")
    with whole_file(folder / INDEX_FILE, overwrite=True) as partial:
        partial.write_text(json.dumps(index | {SHARED_UPSAMPLER: lender}, indent=1), encoding="utf-8")
