"""The trajectory of one network in an edit: inversion under the current condition, then sampling under the new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piti.core.seeding import generator_for
from piti.diffusion.guidance import Guidance
from piti.diffusion.inversion import Trajectory, invert, resample
from piti.diffusion.samplers import OnStep, initial_noise
from piti.models import Tokens
from piti.pipelines.cascade import Batch, Network, NetworkSampling, Prepared

UNGUIDED = Guidance(w=0.0)


class Progress:
    """Counts the steps of several runs together."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self.on_step, self.total, self.count = on_step, total, 0

    def __call__(self, done: int, of: int, x0: Tensor) -> None:
        self.count += 1
        if self.on_step is not None:
            self.on_step(self.count, self.total, x0)


@dataclass(frozen=True)
class Walk:
    """A network, its sampling settings, and the image to edit."""

    network: Network
    settings: NetworkSampling
    refinements: int
    variety: float
    """Share of fresh noise inside the region."""
    image: Tensor
    """The whole canvas in the network's space; for pixels [1, 3, H, W] in [-1, 1]."""
    region: Tensor | None
    """[1, 1, H, W] in that space; None: everything."""
    own: tuple[Tokens, Tokens | None]
    """The encoded current condition; the null condition if that is unknown. The second element is None."""
    changed: tuple[Tokens, Tokens | None]
    """The encoded new condition, and with guidance the same followed by the null condition."""

    def steps(self, batches: int, measured: bool) -> int:
        """Steps of the inversion, of every batch, and of the reconstruction if it is measured."""
        return self.network.steps(self.settings) * (1 + batches + measured)

    def pixels(self) -> Tensor:
        """The whole canvas as an image [1, 3, H, W]; latents are decoded."""
        return self.network.space.images(self.image)

    def known(self) -> Tensor | None:
        """The extra input of an inpainting network: the image, with everything outside the region known."""
        if not self.network.translator.inpaint or self.region is None:
            return None
        return torch.cat([self.image, (self.region == 0).float()], dim=1)

    def invert(self, progress: Progress, low_res: Tensor | None = None) -> Inverted:
        """Invert the image under its own condition. low_res: for an upsampler, the small image [1, 3, h, w]."""
        denoise = self.network.denoiser(*self.own, UNGUIDED, low_res, self.known())
        steps = self.network.visited(self.settings, self.image)
        return Inverted(self, invert(denoise, self.image, self.network.schedule, steps, self.refinements, progress))


@dataclass(frozen=True)
class Inverted:
    """A walk after inversion."""

    walk: Walk
    trajectory: Trajectory

    def back(self, progress: Progress, low_res: Tensor | None = None) -> Tensor:
        """The image reconstructed under its own condition, [1, 3, H, W]."""
        denoise = self.walk.network.denoiser(*self.walk.own, UNGUIDED, low_res, self.walk.known())
        back = resample(denoise, self.trajectory, self.trajectory.noise, on_step=progress)
        return self.walk.network.space.images(back)

    def sample(
        self, generators: Sequence[torch.Generator], progress: Progress, low_res: Tensor | None = None
    ) -> Tensor:
        """Sample images of the new condition, one per generator, [B, 3, H, W]. low_res: their small images."""
        walk, count = self.walk, len(generators)
        tokens, both = walk.changed
        both = None if both is None else both.picked([0] * count + [1] * count)
        denoise = walk.network.denoiser(tokens.picked([0] * count), both, walk.settings.guidance, low_res, walk.known())
        made = resample(denoise, self.trajectory, self._noise(generators), walk.region, progress)
        return walk.network.space.images(made)

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """The initial noise [B, 3, H, W]: the inverted noise, mixed with fresh noise inside the region."""
        inverted, region = self.trajectory.noise, self.walk.region
        shape = (len(generators), *inverted.shape[1:])
        if self.walk.variety == 0:
            return inverted.expand(shape)
        fresh = initial_noise(shape, generators, device=self.walk.network.device)
        whole = torch.ones(1, 1, 1, 1, device=inverted.device)
        share = self.walk.variety * (whole if region is None else region)  # [1, 1, H|1, W|1]
        # √(1−v²) x_T + v s ε: the standard deviation s of inverted noise need not be 1, and networks fail on noise
        # whose deviation differs between the region and the rest
        return (1 - share**2).sqrt() * inverted + share * inverted.std() * fresh


@dataclass(frozen=True)
class Redraw:
    """A one-step upsampler, which is not inverted: it enlarges the edited small image under the new condition, and the
    image is blended over the result outside the region."""

    network: Network
    settings: NetworkSampling
    varied: bool
    """Whether each image has its own noise, instead of one noise for all."""
    image: Tensor
    """[1, 3, H, W] in [-1, 1], the whole canvas."""
    region: Tensor | None
    """[1, 1, H, W]; None: everything."""
    to: Prepared
    """The new condition."""

    def steps(self, batches: int, measured: bool) -> int:
        """Steps of every batch; nothing is reconstructed."""
        return self.network.steps(self.settings) * batches

    def invert(self, progress: Progress, low_res: Tensor | None = None) -> Redraw:
        """Returns itself: nothing is inverted."""
        return self

    def sample(
        self, generators: Sequence[torch.Generator], progress: Progress, low_res: Tensor | None = None
    ) -> Tensor:
        """Enlargements of `low_res`, one for each generator, [B, 3, H, W]."""
        own = list(generators) if self.varied else [generator_for(0, "upsampler") for _ in generators]
        total = self.network.steps(self.settings)
        batch = Batch([self.to], [0] * len(own), own)
        made = self.network.sample(batch, self.settings, lambda done, x0: progress(done, total, x0), low_res)
        return made if self.region is None else torch.lerp(self.image, made, self.region)
