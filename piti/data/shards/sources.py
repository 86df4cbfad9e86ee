"""Addresses of shards: expansion of ranges and patterns, and their form in messages."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, field_validator

from piti.core.spec import Spec
from piti.data.problems import DataError

PIPE = "pipe:"
MANIFEST = "shards.json"
"""File name of a manifest."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 1_000_000
_BUCKETS = {
    "s3": "pipe:aws s3 cp {address} -",
    "gs": "pipe:gcloud storage cat {address}",
    "hdfs": "pipe:hdfs dfs -cat {address}",
}


def expanded(given: str, key: str) -> list[str]:
    """Expand an address of a recipe, in order. key: the recipe's, for errors.

    `{000..012}` is a range with zero padding, `{a,b}` a choice (not in a `pipe:`, where it belongs to the command), and
    a path may contain `*`, `?` and `[…]`. An existing path, or an existing folder at its start, is taken literally. A
    folder stands for its manifest, or for its tars. Raises DataError if nothing is found, or for an unknown kind of
    address.
    """
    if is_remote(given, key):
        return _braces(given, key)
    if _exists(given):
        return _existing(Path(given), key)
    place, found = _literal_folder(given), []
    for rest in _braces(given[len(place) :], key):
        address = place + rest
        if _has_pattern(rest) and not _exists(address):
            matches = sorted(glob.glob(glob.escape(place) + rest, recursive=True))
            if not matches:
                raise DataError(f"{key}: no file matches {address}; check the path")
            found += matches
        else:
            found += _existing(Path(address), key)
    return found


def is_remote(address: str, key: str = "data.shards") -> bool:
    """Whether it must be downloaded: `pipe:` or HTTP. Raises DataError for other schemes."""
    if address.startswith(PIPE):
        return True
    scheme, separator, _ = address.partition("://")
    if not separator:
        return False
    if scheme in ("http", "https"):
        return True
    example = _BUCKETS.get(scheme, "pipe:COMMAND that writes {address} to its output").format(address=address)
    raise DataError(f"{key}: {address}: addresses are paths, http(s):// and pipe:COMMAND; for this one '{example}'")


def shown(address: str) -> str:
    """The address without secrets: user name, password, signature."""
    if address.startswith(PIPE) or "://" not in address:
        return address
    scheme, place, path, _, _ = urlsplit(address)
    return urlunsplit((scheme, place.rpartition("@")[2], path, "", ""))


def name_of(address: str) -> str:
    """The shard's name, without folders and suffix; for a command, the last word that looks like a file name."""
    if address.startswith(PIPE):
        words = [word.strip("'\"") for word in address.removeprefix(PIPE).split()]
        tars = [word for word in words if ".tar" in word] or words or [address]
        address = tars[-1]
    path = urlsplit(address).path if "://" in address else address
    return PurePath(path).name.partition(".")[0] or "shard"


def is_manifest(address: str) -> bool:
    """Whether it refers to a manifest rather than a shard."""
    if address.startswith(PIPE):
        return MANIFEST in address
    return shown(address).endswith(".json")


def beside(manifest: str, name: str) -> str:
    """The address of a file next to a manifest."""
    own = MANIFEST if manifest.startswith(PIPE) else PurePath(shown(manifest)).name
    before, _, after = manifest.rpartition(own)
    return before + name + after


def _braces(given: str, key: str) -> list[str]:
    """Expand ranges and choices, the first ones changing slowest."""
    kinds = [_RANGE] if given.startswith(PIPE) else [_RANGE, _CHOICE]
    match = min(filter(None, (kind.search(given) for kind in kinds)), key=lambda one: one.start(), default=None)
    if match is None:
        return [given]
    if match.re is _RANGE:
        first, last = match[1], match[2]
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        low, high = int(first), int(last)
        if high < low or high - low >= _MOST:
            raise DataError(f"{key}: {match[0]} in {given}: expected an ascending range of at most {_MOST:,} numbers")
        parts = [f"{n:0{width}d}" for n in range(low, high + 1)]
    else:
        parts = match[1].split(",")
    before, after = given[: match.start()], given[match.end() :]
    return [one for part in parts for one in _braces(before + part + after, key)]


def _exists(address: str) -> bool:
    try:
        return Path(address).exists()
    except OSError:  # such as a name that is too long
        return False


def _literal_folder(given: str) -> str:
    """The longest existing folder at the start of an address, with its slash; the rest may contain patterns."""
    slashes = [place for place, letter in enumerate(given) if letter in {"/", os.sep}]
    return next((given[: place + 1] for place in reversed(slashes) if _exists(given[: place + 1])), "")


def _has_pattern(address: str) -> bool:
    return any(letter in address for letter in "*?[")


def _existing(path: Path, key: str) -> list[str]:
    """The file itself, or a folder's manifest or tars."""
    if not _exists(str(path)):
        raise DataError(f"{key}: {path}: no such file; check the path")
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise DataError(f"{key}: {path}: no such file; check the path")
    if (path / MANIFEST).is_file():
        return [str(path / MANIFEST)]
    tars = sorted(map(str, path.glob("*.tar")))
    if not tars:
        raise DataError(f"{key}: {path}: contains neither {MANIFEST} nor .tar files; give the shards")
    return tars


class ShardSpec(Spec):
    """WebDataset tars. A sample consists of all files with one key: `KEY.jpg` and others."""

    shards: tuple[str, ...] = ()
    """Paths, patterns (`scenes-*.tar`), ranges (`scenes-{000..007}.tar`), `http(s)://` addresses, `pipe:COMMAND`, or
    the manifest (`shards.json`) of `piti prepare shards` in the same forms. They replace folders."""
    val_shards: tuple[str, ...] = ()
    """Shards for validation; by default the manifest's "val", or else 5% of the samples of each shard."""
    shard_image: str | None = None
    """Extension of the photographs, `jpg` for `KEY.jpg`; null: the image that is not the condition."""
    shard_condition: str | dict[str, str] | None = None
    """Extension of the conditions, such as `edge.jpg`, or without suffix, `edge`; for several parts, one for each.
    Null: as in the manifest, or else `conditions`; for texts `txt`."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Number of shards whose samples are shuffled together."""
    shard_cache: Path | None = None
    """Cache folder for downloaded shards; null: one in the system's temporary folder."""
    shard_cache_gib: float = Field(default=20.0, gt=0)
    """Largest size of the cache; the least recently used shards are removed first."""
    shard_timeout: float = Field(default=60.0, gt=0)
    """Seconds without data after which downloading a shard fails and is retried."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Largest share of unusable samples in shards, which are skipped and listed; the run stops above it."""

    @field_validator("shards", "val_shards", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        """A single address is a list of one."""
        return (given,) if isinstance(given, str) else given
