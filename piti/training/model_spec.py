"""The translator that a recipe trains."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from piti.core.spec import Spec
from piti.models import AlignedEncoderSpec, EncoderSpec, PixelHeadSpec, SpaceSpec, TextEncoderSpec, UNetSpec


class ModelSpec(Spec):
    """The translator to train. The encoder's channels follow from the condition."""

    image_size: int = Field(default=64, ge=8)
    """Side of its images in pixels."""
    patch_size: int = Field(default=1, ge=1)
    """Squares of pixels with this side are folded into channels: 2 makes the UNet's maps half as wide and high."""
    low_res: int | None = Field(default=None, ge=1)
    """Side of the small image that an upsampler enlarges; none: a base."""
    learned_variance: bool = True
    """The network predicts the variance of a step too."""
    inpaint: bool = False
    """The UNet also sees what is known of the image and where, as GLIDE's inpainting networks do; the recipe's `known`
    says what that is in training."""
    detail: float | None = Field(default=None, gt=0)
    """For an upsampler that predicts the image: preconditioned for what its small image lacks, of this deviation."""
    encoder: EncoderSpec | None = EncoderSpec()
    """None where the UNet takes no condition (`token_width` null), or text."""
    text: TextEncoderSpec | None = None
    """The encoder of a prior. Its vocabulary and context follow from the condition."""
    aligned: AlignedEncoderSpec | None = None
    """Instead of an encoder of tokens, for a UNet without them: the condition's own maps, at the image's size."""
    unet: UNetSpec = UNetSpec()
    unet_config: dict[str, Any] | None = None
    """Instead of `unet`, the network of a prior of another family by its own configuration in diffusers: a UNet, or a
    transformer of PixArt, Sana or Stable Diffusion 3."""
    space: SpaceSpec = SpaceSpec()
    """Where the UNet works; latents are those of the prior's autoencoder, and `image_size` stays in pixels."""
    head: PixelHeadSpec | None = None
    """How pixels are made of the UNet's features; none: by one pixel shuffle of `patch_size`."""

    @model_validator(mode="before")
    @classmethod
    def _one_encoder(cls, values: Any) -> Any:
        other = isinstance(values, dict) and (values.get("text") is not None or values.get("aligned") is not None)
        return {**values, "encoder": None} if other and "encoder" not in values else values

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.encoder is not None and self.text is not None:
            raise ValueError("'encoder' and 'text' are both given; a translator has one encoder: remove one")
        if self.aligned is not None and (self.encoder is not None or self.text is not None):
            raise ValueError("'aligned' takes the place of 'encoder' and 'text'; give one of them")
        if self.aligned is not None and self.aligned.size != self.image_size:
            raise ValueError(
                f"'aligned.size' {self.aligned.size} is not 'image_size' {self.image_size}; make them equal"
            )
        if self.head is not None and 2 ** len(self.head.channels) != self.patch_size:
            raise ValueError(
                f"'head.channels' are {len(self.head.channels)} and 'patch_size' is {self.patch_size}; each of them "
                "doubles the sides, so give log2(patch_size) of them"
            )
        if self.unet_config is not None and self.unet != UNetSpec():
            raise ValueError("'unet' and 'unet_config' are both given; remove one")
        if self.space.latent and (self.unet_config is None or self.patch_size != 1 or self.low_res is not None):
            raise ValueError("'space' of latents goes with 'unet_config', without 'patch_size' and 'low_res'")
        if (self.encoder is None and self.text is None) == self.takes_tokens:
            raise ValueError("'encoder' and 'unet.token_width' go together: give both, or make both null")
        if self.low_res is not None and (self.image_size % self.low_res or self.image_size == self.low_res):
            raise ValueError(
                f"'low_res' {self.low_res} does not chain with 'image_size' {self.image_size}; "
                "the large side is a multiple of the small one"
            )
        if self.inpaint and (self.detail is not None or self.unet_config is not None):
            raise ValueError("'inpaint' does not go together with 'detail' and 'unet_config'; leave one of them out")
        if self.detail is not None and self.low_res is None:
            raise ValueError("'detail' is for upsamplers; set 'low_res', or leave it out")
        return self

    @property
    def takes_tokens(self) -> bool:
        """Whether its UNet attends to a condition's tokens."""
        return self.unet_config is not None or self.unet.token_width is not None

    @property
    def scale(self) -> int | None:
        """By how much an upsampler enlarges; none for a base."""
        return None if self.low_res is None else self.image_size // self.low_res

    @property
    def places(self) -> int:
        """Of the finest map over which its UNet attends, for images of its own size; of another family's UNet those
        of the whole image."""
        side = self.image_size // self.patch_size
        if self.unet_config is not None:
            return side**2
        attention = self.unet.attention
        return (side >> attention.index(True)) ** 2 if any(attention) else 0
