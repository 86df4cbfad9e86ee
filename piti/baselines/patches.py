"""Common parts of Pix2PixHD and SPADE: inputs, and patch discriminators at several scales."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from piti.baselines.base import Baseline, BaselineError, BaselineSpec
from piti.baselines.layers import edges_of, labels_of, with_ignored
from piti.baselines.losses import check_sizes, feature_matching, perceptual_difference
from piti.diffusion.losses import AdversarialLoss
from piti.models.perceptual import PerceptualNetwork


class PatchSpec(BaselineSpec):
    """Settings of the discriminators and losses."""

    discriminator_channels: int = Field(default=64, ge=1)
    """Width of a discriminator's first convolution; it doubles up to 8 times that."""
    scales: int = Field(default=2, ge=1)
    """Number of scales of the discriminators."""
    features: float = Field(default=10.0, ge=0)
    """Weight of feature matching."""
    perceptual: float = Field(default=10.0, ge=0)
    """Weight of the perceptual loss."""


class PatchBaseline(Baseline):
    """One image per condition; patch discriminators, feature matching, perceptual loss."""

    def __init__(self, spec: PatchSpec, channels: int, classes: bool, image_size: int) -> None:
        super().__init__(spec, channels, classes, image_size)
        self.judges = spec
        if image_size < 4 * 2 ** (spec.scales - 1):
            raise BaselineError(
                f"images of {image_size} px are too small to be judged at {spec.scales} 'scales': the smallest has "
                "less than 4 px a side; lower 'scales'"
            )

    @property
    @abstractmethod
    def adversarial(self) -> AdversarialLoss:
        """The adversarial loss on the logits of one scale."""

    @abstractmethod
    def over_scales(self, losses: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Combine the adversarial losses of the scales."""

    @property
    @abstractmethod
    def feature_share(self) -> float:
        """Weight of one layer in feature matching, before the total weight."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Empty: the image depends only on the condition."""
        return ()

    @property
    def seen_channels(self) -> int:
        """Number of channels of `seen`."""
        return self.channels + 2 if self.classes else self.channels

    def seen(self, encoded: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b s h w"]:
        """Classes one-hot, ignored pixels, edges [B, C+2, H, W]; for other conditions, their channels unchanged."""
        self.check(encoded)
        if not self.classes:
            return encoded.float()
        layout = with_ignored(encoded)  # [B, C+1, H, W]
        return torch.cat([layout, edges_of(labels_of(layout))], dim=1)

    def generator_losses(
        self,
        discriminator: nn.Module,
        seen: Float[Tensor, "b s h w"],
        fake: Float[Tensor, "b 3 h2 w2"],
        real: Float[Tensor, "b 3 h2 w2"],
        perceptual: PerceptualNetwork | None,
    ) -> dict[str, Tensor]:
        """Adversarial loss, feature matching and perceptual loss."""
        check_sizes(seen, real)
        with torch.no_grad():
            truth = discriminator(seen, real)
        faked = discriminator(seen, fake)
        losses = {"adversarial": self.over_scales([self.adversarial.generator(maps[-1]) for maps in faked])}
        if self.judges.features:
            matched = [feature_matching(ours[:-1], theirs[:-1]) for ours, theirs in zip(faked, truth, strict=True)]
            losses["features"] = self.judges.features * self.feature_share * torch.stack(matched).mean(0)
        if self.judges.perceptual:
            losses["perceptual"] = self.judges.perceptual * perceptual_difference(fake, real, perceptual)
        return losses

    def discriminator_losses(
        self,
        discriminator: nn.Module,
        seen: Float[Tensor, "b s h w"],
        fake: Float[Tensor, "b 3 h2 w2"],
        real: Float[Tensor, "b 3 h2 w2"],
        uniform: Float[Tensor, "b draws"],
    ) -> dict[str, Tensor]:
        """Real and fake in one pass. uniform: unused."""
        check_sizes(seen, real)
        both = discriminator(torch.cat([seen, seen]), torch.cat([real, fake.to(real.dtype)]))
        logits = [maps[-1].chunk(2) for maps in both]
        return {"patches": self.over_scales([self.adversarial.discriminator(r, f) for r, f in logits])}


def patch_widths(channels: int, count: int) -> list[int]:
    """Widths of a discriminator's convolutions before the logits: doubled up to 8 times the first (at 64: up to
    512)."""
    return [channels * min(8, 2**k) for k in range(count)]
