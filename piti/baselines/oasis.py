"""OASIS (Schönfeld et al. 2021, arXiv 2012.04781): several images per mask, with a segmenter as discriminator."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from piti.baselines.base import Baseline, BaselineError, BaselineSpec, register
from piti.baselines.discriminators import SegmentationDiscriminator
from piti.baselines.layers import labels_of, with_ignored
from piti.baselines.losses import (
    check_sizes,
    class_loss,
    class_weights,
    fake_loss,
    label_mix,
    label_mix_consistency,
    mix,
    perceptual_difference,
)
from piti.baselines.modulated import ModulatedGenerator, level_widths, upsamplings_to
from piti.models.perceptual import PerceptualNetwork


class OasisSpec(BaselineSpec):
    """The paper's widths and weights; see its section 4 and appendix."""

    channels: int = Field(default=64, ge=1)
    """Width at full resolution; it doubles with every halving, up to 16 times."""
    start: int = Field(default=8, ge=2)
    """Size in pixels of the smallest maps, where the generator starts; the discriminator ends at half of it."""
    hidden: int = Field(default=128, ge=1)
    """Width of the modulation's hidden layer."""
    noise: int = Field(default=64, ge=1)
    """Channels of the noise that is concatenated to the layout."""
    discriminator_channels: int = Field(default=128, ge=2)
    """Width of the discriminator's first level; it doubles every second level, up to 4 times."""
    labelmix: float = Field(default=10.0, ge=0)
    """Weight of the consistency on mixed images; 0: no mixing."""
    balanced: bool = True
    """Whether rare classes have larger weights."""


@register
class Oasis(Baseline):
    """Modulated blocks with noise; a discriminator of N+1 classes. It supports only masks."""

    kind: ClassVar[str] = "oasis"
    spec_type: ClassVar[type[BaselineSpec]] = OasisSpec
    spec: OasisSpec

    def __init__(self, spec: OasisSpec, channels: int, classes: bool, image_size: int) -> None:
        super().__init__(spec, channels, classes, image_size)
        if not classes:
            raise BaselineError(
                "oasis judges images by their classes, and this condition has none; use a mask, or pix2pixhd or spade"
            )
        self.upsamplings = upsamplings_to(image_size, spec.start)
        if image_size % 2 ** (self.upsamplings + 1):
            raise BaselineError(
                f"the discriminator cannot halve 'start' = {spec.start} px once more; choose an even 'start'"
            )

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One vector per image, the same at every pixel; the generator also accepts one per pixel."""
        return (self.spec.noise, 1, 1)

    @property
    def draws(self) -> int:
        """A random number per class, and one for ignored pixels."""
        return self.channels + 1

    @property
    def granularity(self) -> int:
        """See `Baseline.granularity`; images of `image_size` also satisfy the discriminator, which needs twice that."""
        return 2**self.upsamplings

    def seen(self, encoded: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b s h w"]:
        """Classes one-hot, and ignored pixels [B, C+1, H, W]."""
        self.check(encoded)
        return with_ignored(encoded)

    def generator(self) -> nn.Module:
        """See `Baseline.generator`."""
        widths = level_widths(self.spec.channels, self.upsamplings)
        return NoisyGenerator(self.channels + 1, self.spec.noise, widths, self.spec.hidden)

    def discriminator(self) -> nn.Module:
        """As many levels as the generator."""
        return SegmentationDiscriminator(self.channels, self.spec.discriminator_channels, self.upsamplings + 1)

    def generator_losses(
        self,
        discriminator: nn.Module,
        seen: Tensor,
        fake: Tensor,
        real: Tensor,
        perceptual: PerceptualNetwork | None,
    ) -> dict[str, Tensor]:
        """Every pixel should be classified as its class (L_G)."""
        check_sizes(seen, real)
        labels = labels_of(seen)
        losses = {"adversarial": class_loss(discriminator(fake), labels, self._weights(labels))}
        if self.spec.perceptual:
            losses["perceptual"] = self.spec.perceptual * perceptual_difference(fake, real, perceptual)
        return losses

    def discriminator_losses(
        self, discriminator: nn.Module, seen: Tensor, fake: Tensor, real: Tensor, uniform: Tensor
    ) -> dict[str, Tensor]:
        """Real pixels have their class, fake ones the last (L_D); mixed images should get mixed logits (L_LM)."""
        check_sizes(seen, real)
        labels, fake = labels_of(seen), fake.to(real.dtype)
        mask = label_mix(labels, uniform)
        images = [real, fake, mix(mask, real, fake)] if self.spec.labelmix else [real, fake]
        logits = discriminator(torch.cat(images)).chunk(len(images))
        losses = {"classes": class_loss(logits[0], labels, self._weights(labels)) + fake_loss(logits[1])}
        if self.spec.labelmix:
            losses["labelmix"] = self.spec.labelmix * label_mix_consistency(logits[2], logits[0], logits[1], mask)
        return losses

    def _weights(self, labels: Tensor) -> Tensor:
        if self.spec.balanced:
            return class_weights(labels, self.channels)
        return torch.ones(self.channels, device=labels.device)


class NoisyGenerator(ModulatedGenerator):
    """A modulated generator with noise concatenated to the layout (Schönfeld et al., section 3, 'OASIS generator')."""

    def __init__(self, seen: int, noise: int, widths: list[int], hidden: int) -> None:
        super().__init__(seen + noise, widths, [1] * len(widths), hidden)
        self.noise = noise

    def forward(self, seen: Float[Tensor, "b s h w"], noise: Tensor | None = None) -> Float[Tensor, "b 3 h w"]:
        """noise: standard normal, [B, Z, 1, 1] for all pixels, or [B, Z, H, W].

        Different noise at some pixels changes the image there, and little elsewhere. Raises BaselineError for missing
        noise, or another shape.
        """
        batch, _, height, width = seen.shape
        if noise is None or tuple(noise.shape) not in {(batch, self.noise, *s) for s in ((1, 1), (height, width))}:
            raise BaselineError(
                f"expected noise [{batch}, {self.noise}, 1, 1] or [{batch}, {self.noise}, {height}, {width}], got "
                + ("none" if noise is None else str(list(noise.shape)))
            )
        return super().forward(torch.cat([noise.to(seen).expand(-1, -1, height, width), seen], dim=1))
