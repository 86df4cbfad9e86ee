"""Networks of diffusers by their own configuration: its UNets, and transformers of PixArt's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from piti.core.errors import UserError

TRANSFORMER_BLOCK = "BasicTransformerBlock"
"""The class of the blocks that a transformer repeats."""
_UNREAD = ("double_self_attention", "num_vector_embeds", "only_cross_attention", "use_linear_projection")
"""Switches of the class that PixArt's transformers once were saved as, all off in them."""


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a configuration of diffusers, without what it says of itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def is_transformer(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a transformer that attends to texts, and not of a UNet."""
    return "caption_channels" in config


def foreign_network(config: Mapping[str, Any]) -> Any:
    """The network of a configuration of diffusers: a UNet2DConditionModel, or a PixArtTransformer2DModel, which has
    what is asked of a UNet here, but for slices of its attention: x_t, t and tokens in, x_t's form out.

    Raises UserError for switches of a transformer that are not read; what diffusers raises for any other mistake.
    """
    values = plain_config(config)
    if not is_transformer(values):
        return UNet2DConditionModel(**values)
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    for key in _UNREAD:
        if values.pop(key, None):
            raise UserError(f"the transformer's '{key}' is set, which no transformer of PixArt's is")
    return PixArtTransformer2DModel(**values)
