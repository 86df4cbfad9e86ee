"""Training timesteps: evenly spread, or importance-sampled by loss.

Papers: DDPM (Ho et al. 2020, arXiv 2006.11239), improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672), sequences of
low discrepancy (Niederreiter 1992, doi 10.1137/1.9781611970081).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from piti.core.errors import UserError
from piti.core.seeding import derive_seed
from piti.core.spec import choices

_INVERSE_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / φ, odd
HISTORY = 10
"""Number of past losses kept per timestep (improved DDPM, section 3.3)."""
EVEN_SHARE = 0.001
"""Share of uniform draws, as in the released code, so that every timestep keeps being sampled."""


def evenly(steps: int, count: int) -> list[int]:
    """`count` of the steps 0 … `steps` − 1, ascending, each in the middle of an equal share; all if there are fewer."""
    return list(range(steps)) if steps <= count else [int((k + 0.5) * steps / count) for k in range(count)]


class EvenTimesteps:
    """Uniform timesteps (DDPM, eq. 14), drawn on the CPU."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def drawn(self, numbers: Sequence[int], seed: int) -> tuple[Int[Tensor, " b"], None]:
        """Timesteps for samples with these numbers, and None for the loss weights, which are equal."""
        return timesteps_for(numbers, self.steps, seed), None


class SecondMomentTimesteps:
    """Timesteps in proportion to the root of their losses' second moment (improved DDPM, eq. 18).

    p_t ∝ √E[L_t²], over the last `HISTORY` losses of each t, and each loss is divided by T p_t: the expected loss
    equals that of uniform draws, with less variance. Uniform until every timestep has that many losses. The history is
    part of a run's state.
    """

    def __init__(self, steps: int) -> None:
        self.losses = torch.zeros(steps, HISTORY, dtype=torch.float64)  # newest last
        self.counts = torch.zeros(steps, dtype=torch.long)

    @property
    def probabilities(self) -> Float[Tensor, " t"]:
        """The probability of every timestep, float64."""
        steps = len(self.counts)
        even = torch.full((steps,), 1 / steps, dtype=torch.float64)
        size = self.losses.square().mean(dim=1).sqrt()
        if (self.counts < HISTORY).any() or not size.sum():
            return even
        return (1 - EVEN_SHARE) * size / size.sum() + EVEN_SHARE * even

    def drawn(self, numbers: Sequence[int], seed: int) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """Timesteps for samples with these numbers, and their loss weights: the low-discrepancy sequence of
        `timesteps_for`, mapped through the cumulative probabilities."""
        chances = self.probabilities
        places = torch.tensor([place / 2**64 for place in _places(numbers, seed)], dtype=torch.float64)
        t = torch.searchsorted(chances.cumsum(0), places, right=True).clamp(max=len(chances) - 1)
        return t, (1 / (len(chances) * chances[t])).float()

    def remember(self, t: Int[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        """Record unweighted losses [B] at timesteps [B]: those of all processes, in the same order on each."""
        for step, loss in zip(t.long().tolist(), losses.double().tolist(), strict=True):
            self.losses[step] = self.losses[step].roll(-1)
            self.losses[step, -1] = loss
            self.counts[step] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()


TIMESTEPS: dict[str, type[EvenTimesteps] | type[SecondMomentTimesteps]] = {
    "even": EvenTimesteps,
    "second_moment": SecondMomentTimesteps,
}


def timesteps_named(name: str) -> type[EvenTimesteps] | type[SecondMomentTimesteps]:
    """The timestep sampling of that name. Raises UserError that names the nearest one."""
    if name not in TIMESTEPS:
        raise UserError(f"unknown sampling of timesteps '{name}'; {choices(name, TIMESTEPS)}")
    return TIMESTEPS[name]


def timesteps_for(numbers: Sequence[int], steps: int, seed: int) -> Int[Tensor, " b"]:
    """Training timesteps: uniform over 0 … steps − 1, evenly spread over any consecutive samples.

    t_n = ⌊T · frac(u + n/φ)⌋, with u from the seed and φ the golden ratio: an additive recurrence of low discrepancy
    (Niederreiter 1992, section 3.1). A sample's t depends only on the seed and its number; a batch's mean loss has less
    variance than with independent draws. numbers: of the samples, n ≥ 0. Returned on the CPU.
    """
    return torch.tensor([place * steps >> 64 for place in _places(numbers, seed)], dtype=torch.long)


def partly_last(numbers: Sequence[int], steps: int, share: float, seed: int) -> Int[Tensor, " b"]:
    """As `timesteps_for`, but a share of the samples, 0 … 1, gets the last timestep."""
    spread = round((1 - share) * 2**64)
    places = _places(numbers, seed)
    return torch.tensor([place * steps // spread if place < spread else steps - 1 for place in places])


def _places(numbers: Sequence[int], seed: int) -> list[int]:
    """frac(u + n/φ) of every sample in units of 2^−64, exact for any n."""
    offset = derive_seed(seed, "timesteps") * 2
    return [(offset + n * _INVERSE_GOLDEN_RATIO) % 2**64 for n in numbers]
