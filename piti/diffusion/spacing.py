"""Selection of timesteps for a shorter sampling run, by count or by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from piti.core.errors import UserError

FAST27 = "10,10,3,2,2"  # section counts of the released upsampler's 27 steps


def space_timesteps(steps: int, spec: int | str | Sequence[int]) -> list[int]:
    """The timesteps of 0 … `steps` − 1 that a shorter run visits, ascending, as in the released GLIDE and PITI.

    spec: a count (250 or "250": evenly from first to last); counts per section ("10,10,3,2,2" or a list: the steps are
    divided into that many equal sections); "ddim50": a fixed stride, as in the DDIM paper; "fast27": the released
    upsampler's sections, whose last step is 2 before the end (ᾱ there is not yet 0); "leading50": a stride of steps //
    50 from 1, as for Stable Diffusion; "trailing50": evenly, including the last step. Raises UserError that names the
    spec and the possible values.
    """
    if isinstance(spec, str) and spec.startswith("ddim"):
        return _strided(steps, spec)
    for name, spaced in _SPACINGS.items():
        if isinstance(spec, str) and spec.startswith(name):
            return spaced(steps, _count_of(spec, name, steps))
    if spec == "fast27":
        return [*space_timesteps(steps, FAST27)[:-1], steps - 3]
    counts = _section_counts(spec)
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise UserError(
                f"respacing {spec!r}: {count} steps in a section of {size} "
                f"({steps} timesteps in {len(counts)} sections); ask for at most {size} there"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride  # as the release sums; k · stride would be rounded to another step where it is a half
        start += size
    return kept


def reshifted(timesteps: Sequence[int], steps: int, ratio: float) -> list[int]:
    """The timesteps of a flow of T = `steps` that have the noise of `timesteps` under a shift `ratio` times its own.

    timesteps: distinct, ascending; the result is too, each at most half a step of T off, or more where several would
    be the same one.
    """
    # Esser et al. 2024 (arXiv 2403.03206), eq. 23, s = a u/(1 + (a − 1) u), for a, then b, is the same for a b
    u = (np.asarray(timesteps) + 1) / steps
    wanted = np.round(steps * ratio * u / (1 + (ratio - 1) * u)).astype(int) - 1
    order = np.arange(len(wanted))
    return (np.maximum.accumulate((wanted - order).clip(0, steps - len(wanted))) + order).tolist()


def _section_counts(spec: int | str | Sequence[int]) -> list[int]:
    parts = [spec] if isinstance(spec, int) else spec.split(",") if isinstance(spec, str) else list(spec)
    try:
        counts = [int(part) for part in parts]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise UserError(
            f"respacing {spec!r}: expected a count (250), counts per section ('10,10,3,2,2'), "
            "'ddim', 'leading' or 'trailing' and a count ('ddim50'), or 'fast27'"
        )
    return counts


def _count_of(spec: str, name: str, steps: int) -> int:
    """The count in a spacing's name. Raises UserError."""
    count = spec.removeprefix(name)
    if not count.isdecimal() or not 1 <= int(count) < steps:
        raise UserError(f"respacing {spec!r}: give a count from 1 to {steps - 1}, such as '{name}50'")
    return int(count)


def _leading(steps: int, count: int) -> list[int]:
    return [1 + k * (steps // count) for k in range(count)]


def _trailing(steps: int, count: int) -> list[int]:
    return sorted({max(0, round(steps - k * steps / count) - 1) for k in range(count)})


_SPACINGS: dict[str, Callable[[int, int], list[int]]] = {"leading": _leading, "trailing": _trailing}


def _strided(steps: int, spec: str) -> list[int]:
    """Every n-th step from 0, for the stride n that gives exactly the requested count."""
    count = spec.removeprefix("ddim")
    possible = {len(range(0, steps, stride)): stride for stride in range(steps - 1, 0, -1)}
    if not count.isdecimal() or int(count) not in possible:
        near = sorted(possible, key=lambda n: abs(n - int(count)))[:2] if count.isdecimal() else [10, 50]
        raise UserError(
            f"respacing {spec!r}: no whole stride over {steps} timesteps makes {count or 'no'} steps; "
            f"nearest possible: {', '.join(f'ddim{n}' for n in sorted(near))}"
        )
    return list(range(0, steps, possible[int(count)]))
