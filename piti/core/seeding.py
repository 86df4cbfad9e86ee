"""Seeds derived from their purpose, without global state.

All randomness of a training sample follows from the run's seed and the sample's number, so it does not depend on the
number of processes or backward passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words, the same on every machine and in every process.

    `derive_seed(seed, "noise", rank, step)` does not depend on earlier draws, so a resumed run draws the same numbers
    as an uninterrupted one.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def draws_on(device: torch.device) -> torch.device:
    """The device on which noise for a network is drawn: its own on CUDA, else the CPU. Their numbers differ."""
    return device if device.type == "cuda" else torch.device("cpu")


def noise_for(seed: int, numbers: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise [B, *shape] on a device, drawn there, where the row of sample n has a generator seeded by
    (seed, n)."""
    noise = torch.empty(len(numbers), *shape, device=device)
    for row, n in zip(noise, numbers, strict=True):
        row.normal_(generator=generator_for(seed, "noise", n, device=device))
    return noise


def uniform_for(seed: int, purpose: str, numbers: Sequence[int], count: int = 1) -> Tensor:
    """Numbers in [0, 1), [B, count], on the CPU, where the row of sample n has a generator seeded by (seed, purpose,
    n)."""
    return torch.stack([torch.rand(count, generator=generator_for(seed, purpose, n)) for n in numbers])


@contextlib.contextmanager
def global_generators_kept() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python after the block, and those of CUDA if it was in use or
    is torch's default device."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    in_use = torch.cuda.is_initialized() or torch.get_default_device().type == "cuda"
    of_cuda = torch.cuda.get_rng_state_all() if in_use else []
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)
