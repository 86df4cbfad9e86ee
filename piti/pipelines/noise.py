"""Noise generators: one per image, and those derived from them for the upsampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from piti.core.errors import UserError
from piti.core.seeding import generator_for


def one_each(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator per image, on the device of the given one, seeded from it in the order of the images.

    device: where noise is drawn if no generator is given. One seed is drawn from each of several generators, so that a
    single generator and a list of only that one give the same noise. Raises UserError for other objects, a number that
    differs from that of the images, and duplicates.
    """
    several = list(generator) if isinstance(generator, Sequence) and not isinstance(generator, str) else None
    for one in [generator] if several is None else several:
        if not (isinstance(one, torch.Generator) or (one is None and several is None)):
            raise UserError(
                f"expected a torch.Generator, or a list with one per image, got {one!r}",
                remedy="give torch.Generator().manual_seed(SEED)",
                source="generator",
            )
    if several is None:
        one = generator if isinstance(generator, torch.Generator) else None
        where = device if one is None else one.device
        return [torch.Generator(where).manual_seed(seed) for seed in _seeds(one, count)]
    if len(several) != count:
        raise UserError(f"{len(several)} generators for {count} images; give a single one, or one per image")
    if any(one is other for k, one in enumerate(several) for other in several[:k]):
        raise UserError("one generator is given twice, so noise would depend on the batch size; give separate ones")
    return [torch.Generator(one.device).manual_seed(_seeds(one, 1)[0]) for one in several]


def _seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """Seeds drawn at once; without a generator, from torch's global one."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(0, 2**62, (count,), generator=generator, device=device).tolist()


def upsampler_generators(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """The upsampler's noise generators, derived from the current states of the base's, which do not change."""
    return [_second(generator) for generator in generators]


def _second(generator: torch.Generator) -> torch.Generator:
    """A generator derived from the state of this one, which does not change.

    So the upsampler's noise does not depend on how many numbers the base's sampler draws.
    """
    peek = torch.Generator(device=generator.device)
    peek.set_state(generator.get_state())
    seed = int(torch.randint(0, 2**62, (1,), generator=peek, device=generator.device))
    return generator_for(seed, "upsampler", device=generator.device)
