"""Networks of diffusers by their own configuration: its UNets, and the transformers of PixArt and of Sana."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from piti.core.errors import UserError

_UNREAD = ("double_self_attention", "num_vector_embeds", "only_cross_attention", "use_linear_projection")
"""Switches of the class that PixArt's transformers once were saved as, all off in them."""


_OF_AVERAGES = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)
"""What diffusers' `EMAModel` writes into the configuration of the network whose average it saves."""


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a configuration of diffusers, without what it says of itself, or of the average that it is."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _OF_AVERAGES}


def is_transformer(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a transformer that attends to texts, and not of a UNet."""
    return "caption_channels" in config


def is_sana(config: Mapping[str, Any]) -> bool:
    """Whether a transformer's configuration is Sana's."""
    return "num_cross_attention_heads" in config


def transformer_block(config: Mapping[str, Any]) -> str:
    """The class of the blocks that a transformer repeats."""
    return "SanaTransformerBlock" if is_sana(config) else "BasicTransformerBlock"


def foreign_network(config: Mapping[str, Any]) -> Any:
    """The network of a configuration of diffusers: a UNet2DConditionModel, or a PixArtTransformer2DModel or
    SanaTransformer2DModel, which have what is asked of a UNet here, but for slices of their attention: x_t, t and
    tokens in, x_t's form out.

    Raises UserError for switches that are not read; what diffusers raises for any other mistake.
    """
    values = plain_config(config)
    if not is_transformer(values):
        return _built(UNet2DConditionModel, values)
    if is_sana(values):
        return _sana(values)
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    for key in _UNREAD:
        if values.pop(key, None):
            raise UserError(f"the transformer's '{key}' is set, which no transformer of PixArt's is")
    return _built(PixArtTransformer2DModel, values)


def _sana(values: dict[str, Any]) -> Any:
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    if values.get("guidance_embeds") or values.get("timestep_scale", 1.0) != 1.0:
        raise UserError(
            "the transformer takes the guidance strength as an input, or its time at another scale: it is distilled "
            "for a few guided steps",
            remedy="take the model that it was distilled from",
        )
    return _built(SanaTransformer2DModel, values)


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    """A network of a class of diffusers; switches that it does not know are left out where they are off."""
    known = inspect.signature(kind).parameters
    for key in sorted(values.keys() - known.keys()):
        if values[key] not in (None, False):
            raise UserError(
                f"'{key}' is {values[key]!r}, which {kind.__name__} of the diffusers that is installed does not know",
                remedy="install a newer diffusers, or take the key out where it changes nothing",
            )
    return kind(**{key: value for key, value in values.items() if key in known})
