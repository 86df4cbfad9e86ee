"""SPADE (Park et al. 2019, arXiv 1903.07291): a generator with norms modulated by the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from piti.baselines.base import BaselineSpec, register
from piti.baselines.discriminators import MultiScaleDiscriminator
from piti.baselines.modulated import ModulatedGenerator, level_widths, upsamplings_to
from piti.baselines.patches import PatchBaseline, PatchSpec, patch_widths
from piti.diffusion.losses import AdversarialLoss, adversarial_named


class SpadeSpec(PatchSpec):
    """The paper's widths and weights; see its section 4 and appendix A."""

    channels: int = Field(default=64, ge=1)
    """Width at full resolution; it doubles with every halving, up to 16 times."""
    start: int = Field(default=8, ge=1)
    """Size in pixels of the smallest maps, where the generator starts."""
    hidden: int = Field(default=128, ge=1)
    """Width of the modulation's hidden layer."""
    layers: int = Field(default=4, ge=2)
    """Convolutions of a discriminator before its logits; all but the last halve the resolution."""


@register
class Spade(PatchBaseline):
    """Modulated blocks, without noise (the paper's version without an image encoder); hinge, feature matching,
    perceptual loss."""

    kind: ClassVar[str] = "spade"
    spec_type: ClassVar[type[BaselineSpec]] = SpadeSpec
    spec: SpadeSpec

    def __init__(self, spec: SpadeSpec, channels: int, classes: bool, image_size: int) -> None:
        super().__init__(spec, channels, classes, image_size)
        self.upsamplings = upsamplings_to(image_size, spec.start)

    @property
    def granularity(self) -> int:
        """See `Baseline.granularity`."""
        return 2**self.upsamplings

    def generator(self) -> nn.Module:
        """See `Baseline.generator`. Two blocks at the second resolution, one at the others."""
        widths = level_widths(self.spec.channels, self.upsamplings)
        repeated = [2 if k == 1 else 1 for k in range(len(widths))]
        return ModulatedGenerator(self.seen_channels, widths, repeated, self.spec.hidden)

    def discriminator(self) -> nn.Module:
        """Discriminators of the image and of the image at half size."""
        widths = patch_widths(self.spec.discriminator_channels, self.spec.layers)
        return MultiScaleDiscriminator(self.seen_channels + 3, widths, self.spec.scales, spectral=True)

    @property
    def adversarial(self) -> AdversarialLoss:
        """The hinge (section 3)."""
        return adversarial_named("hinge")

    def over_scales(self, losses: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Their mean, as in the release."""
        return torch.stack(list(losses)).mean(0)

    @property
    def feature_share(self) -> float:
        """1, as in the release."""
        return 1.0
