"""The manifest beside packed shards: what there is, how much, and its checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from piti.data.addresses import MANIFEST, is_remote, shown
from piti.data.fetching import read_small
from piti.data.problems import DataError
from piti.spec import Spec, SpecError


class ShardEntry(Spec):
    """One shard."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/]+\.tar$")]
    """Its file, beside the manifest."""
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Spec):
    """All shards of a data set."""

    version: Literal[1] = 1
    conditions: dict[str, str] = Field(default_factory=dict)
    """Extension of each kind of condition, without its suffix, by the name of the folder that was packed."""
    classes: dict[str, Any] | None = None
    """The class table, where there is one, as the recipe's `condition.classes`."""
    splits: dict[str, tuple[ShardEntry, ...]]
    """Shards by split."""

    @model_validator(mode="after")
    def _distinct(self) -> Manifest:
        names = [entry.name for entries in self.splits.values() for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"names {twice[0]} more than once")
        return self

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [entry for entries in self.splits.values() for entry in entries]

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def read_manifest(address: str, timeout: float = 60.0) -> Manifest:
    """Read a manifest from a path, by HTTP or from a `pipe:`. Raises DataError."""
    try:
        data = read_small(address, timeout) if is_remote(address) else Path(address).read_bytes()
        values = json.loads(data)
    except OSError as error:
        raise DataError(f"{address}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise DataError(f"{shown(address)}: no valid JSON ({error}); pack the shards again") from None
    if not isinstance(values, dict) or "splits" not in values:
        raise DataError(f"{shown(address)}: is no manifest of shards; name the {MANIFEST} of `piti prepare shards`")
    try:
        return Manifest.parse(values, shown(address))
    except SpecError as error:
        raise DataError(f"{error}\n  pack the shards again, or correct the file") from None
