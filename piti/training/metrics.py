"""Metrics of steps: means that are correct over backward passes and processes of different sizes, and that stay on the
device until they are fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor


class Mean(NamedTuple):
    """A sum, a scalar that may be on the device, and its count."""

    total: Tensor | float
    over: float = 1.0

    @classmethod
    def of(cls, value: Tensor, over: float = 1.0) -> Mean:
        """A mean from a sum on any device. over: its count."""
        return cls(value.detach(), over)


def sum_of(rows: Sequence[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means over a step's backward passes; a metric that only some measured is averaged over those."""
    if len(rows) == 1:
        return dict(rows[0])
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: Mean(_total(ones), sum(one.over for one in ones)) for name, ones in found.items()}


def _total(means: Sequence[Mean]) -> Tensor:
    """The sum over several passes, in float64 if the device supports it."""
    return torch.stack([_exact(mean.total) for mean in means]).sum()


def _exact(total: Tensor | float, device: torch.device | None = None) -> Tensor:
    value = torch.as_tensor(total, device=device)
    return value if value.device.type == "mps" else value.double()


@dataclass(frozen=True)
class Measured:
    """Metrics of a step, as numbers; empty means are omitted."""

    step: int
    keys: list[str]
    """Keys of its samples."""
    here: dict[str, float]
    """Means of this process."""
    everywhere: dict[str, float]
    """Means over all processes."""


@dataclass
class Ledger:
    """Metrics of steps, kept on the device until those of all steps are fetched together."""

    accelerator: Accelerator
    _steps: list[tuple[int, list[str], dict[str, Mean]]] = field(default_factory=list)

    def add(self, step: int, keys: list[str], metrics: Mapping[str, Mean]) -> None:
        """Add a step's metrics; the names must be the same in all processes."""
        self._steps.append((step, keys, dict(metrics)))

    def fetched(self) -> list[Measured]:
        """The steps since the last call, which all processes must make at the same steps."""
        steps, self._steps = self._steps, []
        means = [mean for _, _, metrics in steps for mean in metrics.values()]
        if not means:
            return []
        device = self.accelerator.device
        totals = torch.stack([_exact(mean.total, device) for mean in means])  # [K]
        overs = [mean.over for mean in means]
        own = list(zip(totals.tolist(), overs, strict=True))
        pairs = own
        if self.accelerator.num_processes > 1:
            both = torch.stack([totals, torch.tensor(overs, dtype=totals.dtype, device=device)], dim=1)  # [K, 2]
            pairs = [tuple(row) for row in cast(Tensor, self.accelerator.reduce(both, "sum")).tolist()]
        found, start = list[Measured](), 0
        for step, keys, metrics in steps:
            part = slice(start, start := start + len(metrics))
            found.append(Measured(step, keys, _values(metrics, own[part]), _values(metrics, pairs[part])))
        return found


def _values(names: Mapping[str, Mean], means: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {name: total / over for name, (total, over) in zip(names, means, strict=True) if over}
