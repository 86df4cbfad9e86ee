"""What a step measures: means that stay right over backward passes and processes of unlike sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor


class Mean(NamedTuple):
    """A sum, and over how many it is."""

    total: float
    over: float = 1.0

    @classmethod
    def of(cls, value: Tensor) -> Mean:
        """One scalar."""
        return cls(value.item())


def sum_of(rows: Sequence[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means over a step's backward passes; one that not all of them measured is over those that did."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: Mean(sum(one.total for one in ones), sum(one.over for one in ones)) for name, ones in found.items()}


def values_of(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """The means as numbers, without those over nothing."""
    return {name: mean.total / mean.over for name, mean in metrics.items() if mean.over}


def mean_over_processes(accelerator: Accelerator, metrics: Mapping[str, Mean]) -> dict[str, float]:
    """Means over all processes, which have the same names, as numbers."""
    if accelerator.num_processes == 1:
        return values_of(metrics)
    rows = [list(mean) for mean in metrics.values()]
    values = torch.tensor(rows, dtype=torch.float64, device=accelerator.device)  # [K, 2]
    sums = cast(Tensor, accelerator.reduce(values, "sum"))
    return values_of({name: Mean(*row) for name, row in zip(metrics, sums.tolist(), strict=True)})
