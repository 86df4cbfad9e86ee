"""One network on its way with an image: up to noise under its own condition, down again under another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piti.diffusion.guidance import Guidance
from piti.diffusion.inversion import Trajectory, invert, resample
from piti.diffusion.samplers import OnStep, initial_noise
from piti.models import Tokens
from piti.pipelines.cascade import Network, NetworkSampling

UNGUIDED = Guidance(w=0.0)


class Progress:
    """Counts the steps of several runs as one."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self.on_step, self.total, self.count = on_step, total, 0

    def __call__(self, done: int, of: int, x0: Tensor) -> None:
        self.count += 1
        if self.on_step is not None:
            self.on_step(self.count, self.total, x0)


@dataclass(frozen=True)
class Walk:
    """A network, how it is sampled, and the image that it is to change."""

    network: Network
    settings: NetworkSampling
    refinements: int
    variety: float
    """The share of fresh noise inside the region."""
    image: Tensor
    """[1, 3, H, W] in [-1, 1], the whole canvas."""
    region: Tensor | None
    """[1, 1, H, W]; None: all of it."""
    own: tuple[Tokens, Tokens | None]
    """Of the image's own condition, or of the null condition, encoded."""
    changed: tuple[Tokens, Tokens | None]
    """Of the condition that it is to show, and the same with the null condition."""

    @property
    def steps(self) -> int:
        return self.network.steps(self.settings)

    def _known(self) -> Tensor | None:
        """What an inpainting network is told: the image, and that all outside the region is known."""
        if not self.network.translator.inpaint or self.region is None:
            return None
        return torch.cat([self.image, (self.region == 0).float()], dim=1)

    def invert(self, progress: Progress, low_res: Tensor | None = None) -> Trajectory:
        """low_res: the small image [1, 3, h, w] that the image is an enlargement of."""
        denoise = self.network.denoiser(*self.own, UNGUIDED, low_res, self._known())
        return invert(denoise, self.image, self.network.schedule, self.settings.steps, self.refinements, progress)

    def back(self, trajectory: Trajectory, progress: Progress, low_res: Tensor | None = None) -> Tensor:
        """The image sampled back under its own condition, [1, 3, H, W]."""
        denoise = self.network.denoiser(*self.own, UNGUIDED, low_res, self._known())
        return resample(denoise, trajectory, trajectory.noise, on_step=progress)

    def walk(
        self,
        trajectory: Trajectory,
        generators: list[torch.Generator],
        progress: Progress,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """Images of the changed condition, one for each generator, [B, 3, H, W]; low_res: their small images."""
        count, (tokens, both) = len(generators), self.changed
        both = None if both is None else both.picked([0] * count + [1] * count)
        denoise = self.network.denoiser(
            tokens.picked([0] * count), both, self.settings.guidance, low_res, self._known()
        )
        return resample(denoise, trajectory, self._noise(trajectory, generators), self.region, progress)

    def _noise(self, trajectory: Trajectory, generators: list[torch.Generator]) -> Tensor:
        """Where sampling begins, [B, 3, H, W]: the inverted noise, inside the region mixed with fresh noise."""
        inverted = trajectory.noise
        shape = (len(generators), *inverted.shape[1:])
        if self.variety == 0:
            return inverted.expand(shape)
        fresh = initial_noise(shape, generators, device=self.network.device)
        whole = torch.ones(1, 1, 1, 1, device=inverted.device)
        share = self.variety * (whole if self.region is None else self.region)  # [1, 1, H|1, W|1]
        # √(1−v²) x_T + v s ε: what is inverted is noise of a deviation s that need not be 1, and a network that sees
        # two deviations side by side draws neither well
        return (1 - share**2).sqrt() * inverted + share * inverted.std() * fresh
