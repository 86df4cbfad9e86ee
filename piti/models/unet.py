"""The UNet: a spec of `diffusers.UNet2DConditionModel` in GLIDE's architecture."""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import Field, model_validator

from piti.core.errors import UserError
from piti.core.spec import Spec


class UNetSpec(Spec):
    """Width, depth and attention of a UNet. The defaults are GLIDE's 64 px base (308.7M parameters).

    Input and output channels are not part of the spec: the translator derives them from its patch size and
    low-resolution input.
    """

    channels: tuple[int, ...] = (192, 384, 576, 768)
    """Width at each level; every level but the last halves the resolution."""
    layers: int = Field(default=3, ge=1, le=512)
    """Residual blocks at each level."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Whether each level has attention, to itself and to the condition's tokens."""
    head_dim: int = Field(default=64, ge=1)
    """Channels of one attention head."""
    token_width: int | None = Field(default=512, ge=1)
    """Width D of the condition's tokens; null: no condition and no attention, so that the UNet works at any image
    size."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of every group normalisation."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout rate in residual blocks."""

    @model_validator(mode="after")
    def _consistent(self) -> UNetSpec:
        if not self.channels:
            raise UserError("'channels' is empty; give one width for each level, such as [64, 128]")
        if len(self.attention) != len(self.channels):
            raise UserError(
                f"'attention' has {len(self.attention)} entries and 'channels' {len(self.channels)}; "
                "give one of each for every level"
            )
        if self.token_width is None and any(self.attention):
            raise UserError("'token_width' is null (no condition), but 'attention' is true at a level; make all false")
        for width, attends in zip(self.channels, self.attention, strict=True):
            if width % self.norm_groups:
                raise UserError(f"'channels' has {width}, not a multiple of 'norm_groups' {self.norm_groups}")
            if attends and width % self.head_dim:
                raise UserError(f"'channels' has {width}, not a multiple of 'head_dim' {self.head_dim}")
        return self

    @property
    def reduction(self) -> int:
        """Downsampling factor of the lowest level."""
        return 2 ** (len(self.channels) - 1)


def build_unet(spec: UNetSpec, sample_size: int, in_channels: int, out_channels: int) -> UNet2DConditionModel:
    """GLIDE's UNet (Nichol et al. 2021, arXiv 2112.10741) as a diffusers model.

    The pooled token [B, D] goes in as `class_labels` and joins the time embedding; the token sequence
    [B, S, D] goes in as `encoder_hidden_states` and extends the keys and values of the self-attention.
    Without `token_width` it is the same network without attention.
    """
    if sample_size % spec.reduction:
        raise UserError(
            f"a UNet of {len(spec.channels)} levels needs a side that is a multiple of {spec.reduction}, "
            f"got {sample_size}; change the image size, the patch size or the number of 'channels'"
        )
    down = ["SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in spec.attention]
    up = ["SimpleCrossAttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in spec.attention]
    tokens: dict[str, Any] = {"mid_block_type": "UNetMidBlock2D"}
    if spec.token_width is not None:
        tokens = {
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "cross_attention_dim": spec.token_width,
            "attention_head_dim": spec.head_dim,
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": spec.token_width,
        }
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers,
        down_block_types=tuple(down),
        up_block_types=tuple(reversed(up)),
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,
        freq_shift=0,
        act_fn="silu",
        norm_num_groups=spec.norm_groups,
        norm_eps=1e-5,
        dropout=spec.dropout,
        **tokens,
    )
