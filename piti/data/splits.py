"""Which pairs train and which are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from piti.data.problems import DataError

SPLITS_FILE = "splits.json"
HELD_OUT = 0.05
"""The share of keys, or of samples of shards, that goes to "val" where nobody chose."""


def read_splits(path: Path) -> dict[str, list[str]] | None:
    """`{"train": [keys], "val": [keys]}`; None where there is no file by the usual name. Raises DataError."""
    if not path.exists() and path.name == SPLITS_FILE:
        return None
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the splits ({error}); correct data.splits or the file") from error
    lists = splits.values() if isinstance(splits, dict) else [None]
    if not all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in lists):
        raise DataError(f'{path}: expected {{"train": [keys], "val": [keys]}}, lists of strings by name')
    return splits


def split_by_hash(keys: Sequence[str]) -> dict[str, list[str]]:
    """ "train" and "val" where nobody chose: a key is held out if its hash falls into the lowest 5%.

    A key's place does not change when others come or go, except that "val" gets the key of the lowest
    hash where none fell into it, and "train" never loses its last one.
    """
    order = sorted(keys, key=key_hash)
    count = sum(key_hash(key) < HELD_OUT for key in order)
    held_out = min(max(1, count), len(order) - 1)
    return {"train": sorted(order[held_out:]), "val": sorted(order[:held_out])}


def key_hash(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
