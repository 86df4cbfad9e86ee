"""Conditioning augmentation: noised small images for an upsampler (Ho et al. 2021, arXiv 2106.15282)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from piti.core.spec import Spec
from piti.diffusion.samplers import initial_noise
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec


class NoisedSpec(Spec):
    """Conditioning augmentation: noise is added to the enlarged small image, and the UNet is conditioned on its
    level."""

    level: int = Field(default=250, ge=0)
    """The timestep of `schedule` whose noise it has."""
    schedule: ScheduleSpec = ScheduleSpec()


class NoisedSmallImage:
    """Makes of small images what such an upsampler sees."""

    def __init__(self, spec: NoisedSpec) -> None:
        self.spec, self.schedule = spec, NoiseSchedule(spec.schedule)

    def __call__(
        self,
        low_res: Float[Tensor, "b 3 hl wl"],
        size: tuple[int, int],
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, "b 3 h w"]:
        """low_res: in [-1, 1]; size: (height, width) to which they are enlarged, corner on corner as DeepFloyd IF
        does; generators: one a row, of the noise."""
        large = F.interpolate(low_res, size, mode="bilinear", align_corners=True)
        noise = initial_noise(large.shape, generators, device=large.device)
        t = torch.full((len(large),), self.spec.level, device=large.device)
        return self.schedule.q_sample(large, t, noise)
