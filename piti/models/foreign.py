"""Networks of diffusers by their own configuration: its UNets, and the transformers of PixArt, Sana, Stable Diffusion 3
and FLUX.1."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

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


TransformerKind = Literal["pixart", "sana", "sd3", "flux"]
"""Whose kind a transformer is: PixArt's, Sana's, Stable Diffusion 3's, or FLUX.1's."""


def transformer_kind(config: Mapping[str, Any]) -> TransformerKind | None:
    """The kind of the transformer of a configuration; None for a UNet's."""
    if "joint_attention_dim" in config:
        return "flux" if "num_single_layers" in config else "sd3"
    if "caption_channels" not in config:
        return None
    return "sana" if "num_cross_attention_heads" in config else "pixart"


def is_transformer(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a transformer that attends to texts, and not of a UNet."""
    return transformer_kind(config) is not None


_BLOCKS: dict[TransformerKind, tuple[str, ...]] = {
    "pixart": ("BasicTransformerBlock",),
    "sana": ("SanaTransformerBlock",),
    "sd3": ("JointTransformerBlock",),
    "flux": ("FluxTransformerBlock", "FluxSingleTransformerBlock"),
}


def transformer_blocks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of the blocks that the transformer of a configuration repeats."""
    kind = transformer_kind(config)
    assert kind is not None
    return _BLOCKS[kind]


def channels_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels that the network of a configuration sees and makes; FLUX.1's leaves the latter out where they are
    equal."""
    return config["in_channels"], config.get("out_channels") or config["in_channels"]


def foreign_network(config: Mapping[str, Any]) -> Any:
    """The network of a configuration of diffusers: a UNet2DConditionModel, or a PixArtTransformer2DModel,
    SanaTransformer2DModel, SD3Transformer2DModel or FluxTransformer2DModel, which have what is asked of a UNet here,
    but for slices of their attention: x_t, t and tokens in, x_t's form out.

    Raises UserError for switches that are not read; what diffusers raises for any other mistake.
    """
    values = plain_config(config)
    match transformer_kind(values):
        case None:
            return _built(UNet2DConditionModel, values)
        case "sana":
            return _sana(values)
        case "sd3":
            from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

            return _built(SD3Transformer2DModel, values)
        case "flux":
            from piti.models.flux import FluxNetwork

            return _built(FluxNetwork, values)
        case "pixart":
            return _pixart(values)


def _pixart(values: dict[str, Any]) -> Any:
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
