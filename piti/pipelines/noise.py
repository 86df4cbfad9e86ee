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

    device: where noise is drawn if no generator is given. Each of several generators is drawn from once, so that a
    single one and a list with it give the same noise. Raises UserError for other objects, a number that differs from
    that of the images, and duplicates.
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
        raise UserError(f"{len(several)} generators for {count} images; give one, or one per image")
    if any(one is other for k, one in enumerate(several) for other in several[:k]):
        raise UserError("one generator is given twice, so noise would depend on the batch size; give separate ones")
    return [torch.Generator(one.device).manual_seed(_seeds(one, 1)[0]) for one in several]


def _seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """Seeds drawn at once, from torch's own generator where none is given."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(0, 2**62, (count,), generator=generator, device=device).tolist()


def upsampler_generators(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """What decides the upsampler's noise of images, from the present state of what decides the base's."""
    return [_second(generator) for generator in generators]


def _second(generator: torch.Generator) -> torch.Generator:
    """A generator that follows from the state of this one, which stays as it is.

    However many numbers the base's sampler takes, the upsampler's noise is the same.
    """
    peek = torch.Generator(device=generator.device)
    peek.set_state(generator.get_state())
    seed = int(torch.randint(0, 2**62, (1,), generator=peek, device=generator.device))
    return generator_for(seed, "upsampler", device=generator.device)
