"""From a network that predicts to the callable that guidance and samplers see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from piti.diffusion.guidance import DenoisePair
from piti.diffusion.schedule import Estimate, NoiseSchedule


def conditioned(
    predict: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor | None]],
    tokens: Any,
    both: Any | None,
    schedule: NoiseSchedule,
) -> DenoisePair:
    """`denoise(x_t, t, with_null)` of a network whose condition is already encoded.

    predict: `(x_t, t, tokens) -> (output, variance)`, the output as the schedule's prediction says.
    tokens: of the conditions of B images; both: the same followed by B null conditions, or None where
    no guidance is wanted. A guided pair runs as one batch of 2 B.
    """

    def denoise(x_t: Tensor, t: Tensor, with_null: bool) -> tuple[Estimate, Estimate | None]:
        if not with_null:
            return estimate(x_t, t, tokens), None
        pair = estimate(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        (eps, eps_null), variance = pair.eps.chunk(2), pair.variance
        if variance is None:
            return Estimate(eps, None), Estimate(eps_null, None)
        return Estimate(eps, variance.chunk(2)[0]), Estimate(eps_null, variance.chunk(2)[1])

    def estimate(x_t: Tensor, t: Tensor, given: Any) -> Estimate:
        output, variance = predict(x_t, t, given)
        eps = schedule.to_epsilon(output.float(), x_t, t)
        return Estimate(eps, None if variance is None else variance.float())

    return denoise
