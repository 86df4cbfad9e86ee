"""Where shards lie and how they are read: the part of a recipe's `data` that is about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from piti.spec import Spec


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
