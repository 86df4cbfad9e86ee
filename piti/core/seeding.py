"""Randomness is an argument: seeds derived from what they are for, never from a global state."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words, the same on every machine and in every process.

    `derive_seed(seed, "noise", rank, step)` depends on nothing that happened before, so a resumed
    run draws what an uninterrupted one would have drawn.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
