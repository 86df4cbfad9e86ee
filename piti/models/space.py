"""The space that a network works in: pixels, or an autoencoder's latents.

Latent diffusion: Rombach et al. 2022, arXiv 2112.10752.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import Spec

Images = Float[Tensor, "b 3 h w"]
Points = Float[Tensor, "b c h2 w2"]
Autoencoder = AutoencoderKL | AutoencoderDC
"""Autoencoder classes: Stable Diffusion's, or Sana's, whose latents are deterministic (Chen et al. 2024, arXiv
2410.10733)."""
AUTOENCODERS: dict[str, type[AutoencoderKL] | type[AutoencoderDC]] = {
    kind.__name__: kind for kind in (AutoencoderKL, AutoencoderDC)
}
"""Autoencoders by the class name in a configuration."""


class SpaceSpec(Spec):
    """Dimensions of the space. The defaults are those of pixels."""

    channels: int = Field(default=3, ge=1)
    """Channels C of a point: 3 for pixels, 4 for Stable Diffusion's latents."""
    factor: int = Field(default=1, ge=1)
    """Downsampling factor: 1 for pixels, 8 for Stable Diffusion's latents."""

    @model_validator(mode="after")
    def _consistent(self) -> SpaceSpec:
        if self.factor == 1 and self.channels != 3:
            raise UserError(f"'channels' {self.channels} with 'factor' 1: pixels have 3 channels; latents a factor")
        return self

    @property
    def latent(self) -> bool:
        """Whether points are latents, which an autoencoder makes and reads."""
        return self.factor > 1

    @classmethod
    def of(cls, autoencoder: Mapping[str, Any]) -> SpaceSpec:
        """The space of an autoencoder, by its configuration. Raises UserError for latents that are not understood."""
        for key in ("latents_mean", "latents_std"):
            if autoencoder.get(key) is not None:
                raise UserError(f"the autoencoder's '{key}' is set; only latents with one 'scaling_factor' are read")
        levels = len(autoencoder[widths_key(autoencoder)])
        return cls(channels=autoencoder["latent_channels"], factor=2 ** (levels - 1))


_PIXELS = SpaceSpec()


@dataclass(frozen=True)
class Space:
    """A space, and what takes images into it and back; for pixels nothing does.

    Raises UserError where an autoencoder is missing, of no use, or of other latents.
    """

    spec: SpaceSpec = _PIXELS
    autoencoder: Autoencoder | None = None

    def __post_init__(self) -> None:
        if self.spec.latent != (self.autoencoder is not None):
            have, want = ("none", "one") if self.spec.latent else ("one", "none")
            raise UserError(f"{want} autoencoder belongs to this space, {have} was given; load the model anew")
        if self.autoencoder is not None and SpaceSpec.of(self.autoencoder.config) != self.spec:
            own = SpaceSpec.of(self.autoencoder.config)
            raise UserError(
                f"the autoencoder makes latents of {own.channels} channels, {own.factor} px to one; the network works "
                f"on {self.spec.channels} channels, {self.spec.factor} px to one: give the one it was trained with"
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width) of the point of an image of this size in pixels, multiples of the factor."""
        return self.spec.channels, height // self.spec.factor, width // self.spec.factor

    @torch.no_grad()
    def moments(self, images: Images) -> Points:
        """What `drawn` makes points of: the images themselves, or mean and log-variance of latents [B, 2 C, h, w], or
        latents [B, C, h, w] where the autoencoder draws none.

        images: in [-1, 1], sides multiples of the factor; encoded one by one, which bounds memory. The autoencoder may
        be on another device.
        """
        if self.autoencoder is None:
            return images
        rows = _at(self.autoencoder, images).split(1)
        return torch.cat([_moments(self.autoencoder, one) for one in rows]).to(images.device)

    def drawn(self, moments: Tensor, noise: Points | None = None) -> Points:
        """Points of moments; noise: of latents, N(0, I), none: their mean. Pixels have none."""
        if self.autoencoder is None:
            return moments
        drawn = moments.shape[1] == 2 * self.spec.channels
        mean, log_variance = moments.chunk(2, dim=1) if drawn else (moments, moments)
        if drawn and noise is not None:
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(mean)  # clipped as in AutoencoderKL
        config = self.autoencoder.config
        return (mean - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]

    def points(self, images: Images) -> Points:
        """Images in [-1, 1] as points of the space; of latents the mean."""
        return self.drawn(self.moments(images))

    @torch.no_grad()
    def images(self, points: Points) -> Images:
        """Points of the space as images in [-1, 1]; latents are decoded one by one, which bounds memory.

        As in `moments` the autoencoder may be elsewhere.
        """
        if self.autoencoder is None:
            return points.clamp(-1, 1)
        config = self.autoencoder.config
        latents = points / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        rows: Any = _at(self.autoencoder, latents).split(1)
        images = torch.cat([self.autoencoder.decode(one, return_dict=False)[0] for one in rows])
        return images.to(points.device).float().clamp(-1, 1)


def autoencoder_class(autoencoder: Mapping[str, Any]) -> type[AutoencoderKL] | type[AutoencoderDC] | None:
    """The class of an autoencoder's configuration, Stable Diffusion's where it names none; None for an unknown one."""
    return AUTOENCODERS.get(str(autoencoder.get("_class_name", AutoencoderKL.__name__)))


def widths_key(autoencoder: Mapping[str, Any]) -> str:
    """The key of an autoencoder's configuration that lists its levels' widths."""
    return "block_out_channels" if "block_out_channels" in autoencoder else "encoder_block_out_channels"


def autoencoder_dtype(autoencoder: Mapping[str, Any], asked: torch.dtype) -> torch.dtype:
    """The type of an autoencoder's weights, by its configuration: float32 where the one asked for breaks it, as half
    precision does one that says so ("force_upcast") and float16, in which it overflows, Sana's."""
    sana = widths_key(autoencoder) != "block_out_channels"
    breaks = asked is torch.float16 if sana else bool(autoencoder.get("force_upcast"))
    return torch.float32 if breaks else asked


def _at(autoencoder: Autoencoder, values: Tensor) -> Tensor:
    """Values where an autoencoder computes, in its type. Offloading brings its weights to where the values are."""
    device = values.device if hasattr(autoencoder, "_hf_hook") else autoencoder.device
    return values.to(device, autoencoder.dtype)


def _moments(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    (found,) = autoencoder.encode(image, return_dict=False)
    return (found.parameters if isinstance(found, DiagonalGaussianDistribution) else found).float()


PIXELS = Space()
