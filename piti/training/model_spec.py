"""The translator that a recipe trains."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from piti.core.spec import Spec
from piti.models import AlignedEncoderSpec, EncoderSpec, PixelHeadSpec, SpaceSpec, TextEncoderSpec, UNetSpec
from piti.models.foreign import transformer_kind


class ModelSpec(Spec):
    """The translator to train. The encoder's channels follow from the condition."""

    image_size: int = Field(default=64, ge=8)
    """Image size in pixels."""
    patch_size: int = Field(default=1, ge=1)
    """Patch size: pixels (latents for FLUX.1) are unshuffled into channels, so that 2 halves the sides of the UNet's
    maps."""
    low_res: int | None = Field(default=None, ge=1)
    """Size of an upsampler's small image; null: a base."""
    learned_variance: bool = True
    """The network also predicts the variance of a step."""
    inpaint: bool = False
    """The UNet also takes the known part of the image and its mask, as in GLIDE's inpainting networks; the recipe's
    `known` defines that part in training."""
    detail: float | None = Field(default=None, gt=0)
    """For an upsampler that predicts the image: preconditioning for the difference from its small image, whose standard
    deviation this is."""
    encoder: EncoderSpec | None = EncoderSpec()
    """Null if the UNet takes no condition (`token_width` null), or text."""
    text: TextEncoderSpec | None = None
    """The encoder of a prior. Its vocabulary and context follow from the condition."""
    aligned: AlignedEncoderSpec | None = None
    """Instead of a token encoder, for a UNet without tokens: feature maps of the condition at the image's size."""
    unet: UNetSpec = UNetSpec()
    unet_config: dict[str, Any] | None = None
    """Instead of `unet`, the network of a prior of another family, by its diffusers configuration: a UNet, or a
    transformer of PixArt, Sana, Stable Diffusion 3 or FLUX.1 (with `patch_size` 2)."""
    embedded_guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """For a guidance-distilled prior (FLUX.1-dev): the guidance scale that its network takes as an input, in training
    and in sampling. 1 is none, on which the recipe's own guidance acts; null: the network takes none."""
    shift_growth: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """For a flow: how much the logarithm of the schedule's `shift`, which is for `image_size`, grows with each token of
    a larger image in sampling; 0: the same noise levels for all sizes."""
    space: SpaceSpec = SpaceSpec()
    """The space of the UNet: pixels, or latents of the prior's autoencoder; `image_size` is always in pixels."""
    head: PixelHeadSpec | None = None
    """The head that turns the UNet's features into pixels; null: one pixel shuffle by `patch_size`."""

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
            raise ValueError("'aligned' replaces 'encoder' and 'text'; give only one of them")
        if self.aligned is not None and self.aligned.size != self.image_size:
            raise ValueError(
                f"'aligned.size' {self.aligned.size} is not 'image_size' {self.image_size}; make them equal"
            )
        if self.head is not None and 2 ** len(self.head.channels) != self.patch_size:
            raise ValueError(
                f"'head.channels' has {len(self.head.channels)} entries and 'patch_size' is {self.patch_size}; each "
                "entry doubles the sides, so give log2(patch_size) of them"
            )
        if self.unet_config is not None and self.unet != UNetSpec():
            raise ValueError("'unet' and 'unet_config' are both given; remove one")
        folds = transformer_kind(self.unet_config or {}) == "flux"
        patched = self.patch_size != 1 and not folds
        if self.space.latent and (self.unet_config is None or patched or self.low_res is not None):
            raise ValueError("a latent 'space' needs 'unet_config', without 'patch_size' and 'low_res'")
        if (self.encoder is None and self.text is None) == self.takes_tokens:
            raise ValueError("'encoder' and 'unet.token_width' go together: give both, or make both null")
        if self.low_res is not None and (self.image_size % self.low_res or self.image_size == self.low_res):
            raise ValueError(
                f"'low_res' {self.low_res} does not fit 'image_size' {self.image_size}; "
                "the large side must be a multiple of the small one"
            )
        if self.inpaint and (self.detail is not None or self.unet_config is not None):
            raise ValueError("'inpaint' cannot be combined with 'detail' or 'unet_config'; remove one of them")
        if self.detail is not None and self.low_res is None:
            raise ValueError("'detail' is for upsamplers; set 'low_res', or remove it")
        return self

    @property
    def takes_tokens(self) -> bool:
        """Whether its UNet attends to a condition's tokens."""
        return self.unet_config is not None or self.unet.token_width is not None

    @property
    def scale(self) -> int | None:
        """Enlargement factor of an upsampler; None for a base."""
        return None if self.low_res is None else self.image_size // self.low_res

    @property
    def places(self) -> int:
        """Positions of the finest map with attention, for images of its own size; for another family's UNet those of
        the whole image."""
        side = self.image_size // self.patch_size
        if self.unet_config is not None:
            return side**2
        attention = self.unet.attention
        return (side >> attention.index(True)) ** 2 if any(attention) else 0
