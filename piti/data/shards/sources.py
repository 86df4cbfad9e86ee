"""Addresses of shards: ranges and patterns to single ones, and what a person is shown of them."""

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
"""How the manifest of a folder of shards is named."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 1_000_000
_BUCKETS = {
    "s3": "pipe:aws s3 cp {address} -",
    "gs": "pipe:gcloud storage cat {address}",
    "hdfs": "pipe:hdfs dfs -cat {address}",
}


def expanded(given: str, key: str) -> list[str]:
    """The single addresses that one of a recipe stands for, in order. key: the recipe's, for errors.

    `{000..012}` is a range, as wide as its numbers are written, `{a,b}` a choice (not in a `pipe:`, whose command may
    mean something else by it), and a path may hold `*`, `?` and `[…]`. A path that exists, or a folder at its beginning
    that does, is taken as it is. A folder stands for its manifest, or for its tars. Raises DataError where nothing is
    there, or the address is of an unknown kind.
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
    """Whether it is fetched: a `pipe:` or HTTP. Raises DataError for other schemes."""
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
    """The address without what is secret in it: a user's name and password, a signature."""
    if address.startswith(PIPE) or "://" not in address:
        return address
    scheme, place, path, _, _ = urlsplit(address)
    return urlunsplit((scheme, place.rpartition("@")[2], path, "", ""))


def name_of(address: str) -> str:
    """The shard's own name, without folders and suffix; of a command the last word that looks like a file's."""
    if address.startswith(PIPE):
        words = [word.strip("'\"") for word in address.removeprefix(PIPE).split()]
        tars = [word for word in words if ".tar" in word] or words or [address]
        address = tars[-1]
    path = urlsplit(address).path if "://" in address else address
    return PurePath(path).name.partition(".")[0] or "shard"


def is_manifest(address: str) -> bool:
    """Whether it names a manifest and not a shard."""
    if address.startswith(PIPE):
        return MANIFEST in address
    return shown(address).endswith(".json")


def beside(manifest: str, name: str) -> str:
    """The address of a file that lies beside a manifest."""
    own = MANIFEST if manifest.startswith(PIPE) else PurePath(shown(manifest)).name
    before, _, after = manifest.rpartition(own)
    return before + name + after


def _braces(given: str, key: str) -> list[str]:
    """Ranges and choices written out, the first ones changing slowest."""
    kinds = [_RANGE] if given.startswith(PIPE) else [_RANGE, _CHOICE]
    match = min(filter(None, (kind.search(given) for kind in kinds)), key=lambda one: one.start(), default=None)
    if match is None:
        return [given]
    if match.re is _RANGE:
        first, last = match[1], match[2]
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        low, high = int(first), int(last)
        if high < low or high - low >= _MOST:
            raise DataError(f"{key}: {match[0]} in {given}: expected a rising range of at most {_MOST:,} numbers")
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
    """The longest beginning of an address that is a folder there is, with its slash; what follows may be patterns."""
    slashes = [place for place, letter in enumerate(given) if letter in {"/", os.sep}]
    return next((given[: place + 1] for place in reversed(slashes) if _exists(given[: place + 1])), "")


def _has_pattern(address: str) -> bool:
    return any(letter in address for letter in "*?[")


def _existing(path: Path, key: str) -> list[str]:
    """A file itself, a folder's manifest or tars."""
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
        raise DataError(f"{key}: {path}: holds neither {MANIFEST} nor .tar files; name the shards")
    return tars


class ShardSpec(Spec):
    """WebDataset tars. A sample is all files of one key: `KEY.jpg` and what lies beside it."""

    shards: tuple[str, ...] = ()
    """Paths, patterns (`scenes-*.tar`), ranges (`scenes-{000..007}.tar`), `http(s)://` addresses, `pipe:COMMAND`, or
    the manifest (`shards.json`) that `piti prepare shards` wrote, likewise. They take the place of folders."""
    val_shards: tuple[str, ...] = ()
    """Those to validate on; without them those of the manifest's "val", or else 5% of the samples of each shard."""
    shard_image: str | None = None
    """Extension of the photographs, `jpg` of `KEY.jpg`; none: whatever picture is not the condition."""
    shard_condition: str | dict[str, str] | None = None
    """Extension of the conditions, such as `edge.jpg`, or without its suffix, `edge`; for a condition of several parts
    one for each. None: what the manifest says, or else `conditions`; for texts `txt`."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Samples of this many shards at a time are shuffled together."""
    shard_cache: Path | None = None
    """Folder for shards that are fetched; none: one in the system's place for temporary files."""
    shard_cache_gib: float = Field(default=20.0, gt=0)
    """The most that it may hold; the shards used longest ago go first."""
    shard_timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte after which fetching a shard counts as failed, and is tried again."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Samples of shards that cannot be used are left out and named; the run stops when more than this share is."""

    @field_validator("shards", "val_shards", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        """A single address stands for a list of it."""
        return (given,) if isinstance(given, str) else given
