"""The translator: an encoder and a UNet that predict the noise in an image from a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from piti.errors import UserError
from piti.models.encoders import ConditionEncoder, EncoderSpec, Tokens
from piti.models.unet import UNetSpec, build_unet


class Prediction(NamedTuple):
    """What a translator says of a noisy image."""

    output: Float[Tensor, "b 3 h w"]
    """Noise or velocity, as the noise schedule that it was trained with says."""
    variance: Float[Tensor, "b 3 h w"] | None
    """Where the variance lies between its bounds, as v in [-1, 1] of Nichol & Dhariwal 2021, eq. 15."""


class Translator(ModelMixin, ConfigMixin):
    """Predicts noise (or velocity) and variance from x_t, t and a condition (PITI, section 3.1).

    encoder_spec, unet_spec: fields of `EncoderSpec` and `UNetSpec`; `config.json` holds them.
    image_size: side of the images in pixels.
    patch_size: pixels are folded into channels before the UNet and unfolded after it; 1 for GLIDE.
    low_res: side of the small image that an upsampler also sees; none for a base translator.
    learned_variance: whether the UNet also predicts the variance.

    Saved and loaded by `save_pretrained` and `from_pretrained`.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        encoder_spec: Mapping[str, Any] | None = None,
        unet_spec: Mapping[str, Any] | None = None,
        image_size: int = 64,
        patch_size: int = 1,
        low_res: int | None = None,
        learned_variance: bool = True,
    ) -> None:
        super().__init__()
        encoder = EncoderSpec.parse(encoder_spec or {}, "encoder_spec")
        unet = UNetSpec.parse(unet_spec or {}, "unet_spec")
        if encoder.width != unet.token_width:
            raise UserError(
                f"the encoder's 'width' {encoder.width} is not the UNet's 'token_width' "
                f"{unet.token_width}; make them equal"
            )
        if patch_size < 1 or image_size % patch_size:
            raise UserError(f"'image_size' {image_size} is not a multiple of 'patch_size' {patch_size}")
        self.patch_size, self.image_size, self.low_res = patch_size, image_size, low_res
        self.learned_variance = learned_variance
        sample_size, pixels = image_size // patch_size, patch_size**2
        self.unet = build_unet(
            unet,
            sample_size,
            in_channels=(3 if low_res is None else 6) * pixels,
            out_channels=(6 if learned_variance else 3) * pixels,
        )
        self.encoder = ConditionEncoder(encoder, unet.skip_shapes(), sample_size)

    def encode(self, condition: Float[Tensor, "b c h w"]) -> Tokens:
        """The condition's tokens; once an image is enough, they do not depend on t."""
        return self.encoder(condition)

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        t: Tensor,
        condition: Tokens | Float[Tensor, "b c hc wc"],
        low_res: Float[Tensor, "b 3 hl wl"] | None = None,
    ) -> Prediction:
        """x_t: noisy images in [-1, 1] plus noise; t: timesteps [B] or a scalar; condition: its tokens, or
        the condition itself, which is then encoded; low_res: small images in [-1, 1], for an upsampler.
        """
        tokens = condition if isinstance(condition, Tokens) else self.encode(condition)
        x = self.join_low_res(x_t, low_res)  # [B, 3|6, H, W]
        x = F.pixel_unshuffle(x, self.patch_size)  # [B, C·p², H/p, W/p]
        residuals = tokens.residuals
        out = self.unet(
            x,
            t,
            encoder_hidden_states=tokens.sequence,  # [B, S, D]
            class_labels=tokens.pooled,  # [B, D]
            down_block_additional_residuals=None if residuals is None else residuals[:-1],
            mid_block_additional_residual=None if residuals is None else residuals[-1],
            return_dict=False,
        )[0]  # [B, 6·p², H/p, W/p]
        out = F.pixel_shuffle(out, self.patch_size)  # [B, 6, H, W]
        if not self.learned_variance:
            return Prediction(out, None)
        return Prediction(*out.chunk(2, dim=1))

    def join_low_res(self, x_t: Tensor, low_res: Tensor | None) -> Tensor:
        """x_t and, for an upsampler, the small image enlarged bilinearly beside it."""
        if (low_res is None) != (self.low_res is None):
            have, want = ("none", "a small image") if low_res is None else ("one", "no small image")
            raise UserError(f"this translator expects {want} as 'low_res', got {have}")
        if low_res is None:
            return x_t
        large = F.interpolate(low_res, x_t.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([x_t, large.to(x_t.dtype)], dim=1)
