"""How any UNet of diffusers, and the transformers of PixArt, Sana, Stable Diffusion 3 and FLUX.1, take a condition,
read from their own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from piti.core.errors import UserError
from piti.models.encoders import Tokens
from piti.models.foreign import TransformerKind, transformer_kind

_TIME_IDS = 6
"""Of SDXL: original height and width, top, left, target height and width (Podell et al. 2023, arXiv 2307.01952, section
2.2)."""


@dataclass(frozen=True)
class Wiring:
    """Where a network takes tokens and maps, how wide they are, and the sides of its levels."""

    sequence: int | None
    """Width of the tokens that attention reads; none: it takes no condition."""
    pooled: Literal["class_labels", "text_embeds", "pooled_projections"] | None
    """Where the pooled token is used; None: not at all, or the UNet pools the sequence."""
    pooled_width: int
    """0 where it goes nowhere."""
    sized: bool
    """Whether it has size conditioning, as SDXL."""
    leveled: bool
    """Whether it is conditioned on the noise level of its small image, as DeepFloyd IF's second stage."""
    aligned: tuple[tuple[int, int], ...]
    """(channels, level) of the places where feature maps of the aligned path are added: a UNet's skip connections in
    order, then its middle block; or between a transformer's blocks. Level k has side / 2^k."""
    reduction: int
    """Downsampling factor of the lowest level."""
    longest: int | None = None
    """Longest side of x_t for which it has positions; None: no limit."""

    @classmethod
    def of(cls, config: Mapping[str, Any], guidance: float | None = None) -> Wiring:
        """Of a network's configuration. guidance: the scale that a guidance-distilled one takes, see
        `TransformerWiring`. Raises UserError for what no task encoder can be put in front of."""
        if bool(config.get("guidance_embeds")) != (guidance is not None):
            raise UserError(_MISSING if guidance is None else _NOT_TAKEN)
        if (kind := transformer_kind(config)) is not None:
            return TransformerWiring.of_transformer(config, kind, guidance)
        _refuse_others(config)
        blocks = (*config["down_block_types"], config["mid_block_type"] or "", *config["up_block_types"])
        attends = any("CrossAttn" in block for block in blocks)
        pooled, width = _pooled(config)
        levels = len(config["block_out_channels"])
        return cls(
            sequence=_sequence(config) if attends else None,
            pooled=pooled if attends else None,
            pooled_width=width if attends else 0,
            sized=config.get("addition_embed_type") == "text_time",
            leveled=config.get("class_embed_type") == "timestep",
            aligned=_skips_and_middle(config),
            reduction=2 ** (levels - 1),
        )

    def arguments(self, tokens: Tokens, size: tuple[int, int], level: int | None) -> dict[str, Any]:
        """Keyword arguments of the UNet's `forward`, beside x_t and t.

        size: (height, width) of the images in pixels; level: of the noise in the small images, where it is told.
        """
        sequence, pooled = tokens.sequence, tokens.pooled
        given: dict[str, Any] = {"encoder_hidden_states": None if self.sequence is None else sequence}
        if self.pooled == "class_labels":
            given["class_labels"] = pooled
        if self.leveled:
            given["class_labels"] = torch.full((len(sequence),), level or 0, device=sequence.device)
        if self.sized:
            height, width = size
            ids = sequence.new_tensor([height, width, 0, 0, height, width]).expand(len(sequence), -1)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        if tokens.residuals is not None:
            given["down_block_additional_residuals"] = tokens.residuals[:-1]
            given["mid_block_additional_residual"] = tokens.residuals[-1]
        return given


@dataclass(frozen=True)
class TransformerWiring(Wiring):
    """Of a transformer, which has no skip connections: maps are added to what comes out of its blocks."""

    kind: TransformerKind = "pixart"
    """PixArt's (Chen et al. 2023, arXiv 2310.00426), Sana's (Xie et al. 2024, arXiv 2410.10629), Stable Diffusion 3's
    (Esser et al. 2024, arXiv 2403.03206) or FLUX.1's, whose tokens attend to the image too."""
    proportioned: bool = False
    """Whether it is conditioned on the image's size and aspect ratio, as PixArt-α at 1024 px."""
    doubles: int = 0
    """The number of the maps that are added after FLUX.1's double blocks; the others follow its single blocks."""
    guidance: float | None = None
    """The guidance scale that a guidance-distilled transformer (FLUX.1-dev) takes as an input; None: it takes none.

    Such a network learned to give in one pass what classifier-free guidance of this scale gives in two (Meng et al.
    2023, arXiv 2210.03142). At 1 it gives the estimate without guidance, to which the loss of a flow belongs, and
    guidance by a condition (PITI, eq. 7-8) acts on that, as with any other prior: so models are adapted at 1, as in
    diffusers' README of its DreamBooth scripts. A text is translated at 3.5 without further guidance, as in diffusers'
    pipeline; w above 0 comes on top of it, as `true_cfg_scale` there, with the empty text as the negative one.
    """

    @classmethod
    def of_transformer(
        cls, config: Mapping[str, Any], kind: TransformerKind, guidance: float | None = None
    ) -> TransformerWiring:
        """Of its whole configuration, defaults included."""
        joint, patch = kind in ("sd3", "flux"), config["patch_size"]
        told = config.get("use_additional_conditions") if kind == "pixart" else False
        return cls(
            sequence=config["joint_attention_dim" if joint else "caption_channels"] or config["cross_attention_dim"],
            pooled="pooled_projections" if joint else None,
            pooled_width=config["pooled_projection_dim"] if joint else 0,
            sized=False,
            leveled=False,
            aligned=_between_blocks(config, kind),
            reduction=patch,
            longest=config["pos_embed_max_size"] * patch if kind == "sd3" else None,
            kind=kind,
            doubles=(config["num_layers"] + 1) // 2 if kind == "flux" else 0,
            guidance=guidance,
            proportioned=config["sample_size"] == _PROPORTIONED if told is None else told,
        )

    def arguments(self, tokens: Tokens, size: tuple[int, int], level: int | None) -> dict[str, Any]:
        """As for a UNet, plus the text's attention mask for PixArt and Sana."""
        sequence = tokens.sequence
        maps = None if tokens.residuals is None else [one.flatten(2).transpose(1, 2) for one in tokens.residuals]
        if self.kind == "sd3":
            given = {"encoder_hidden_states": sequence, "pooled_projections": tokens.pooled}
            return given | {"block_controlnet_hidden_states": maps}
        if self.kind == "flux":
            return self._of_flux(tokens, maps or [])
        if self.kind == "sana":
            given = {"encoder_hidden_states": sequence, "encoder_attention_mask": tokens.mask}
            return given | {"controlnet_block_samples": maps}
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.proportioned:
            height, width = size
            told["resolution"] = sequence.new_tensor([height, width]).expand(len(sequence), -1)
            told["aspect_ratio"] = sequence.new_tensor([height / width]).expand(len(sequence), -1)
        return {
            "encoder_hidden_states": sequence,
            "encoder_attention_mask": tokens.mask,
            "added_cond_kwargs": told,
        }

    def _of_flux(self, tokens: Tokens, maps: list[Tensor]) -> dict[str, Any]:
        given = {"encoder_hidden_states": tokens.sequence, "pooled_projections": tokens.pooled}
        if self.guidance is not None:
            given["guidance"] = torch.full((len(tokens.sequence),), self.guidance, device=tokens.sequence.device)
        double, single = maps[: self.doubles], maps[self.doubles :]
        return given | {"controlnet_block_samples": double, "controlnet_single_block_samples": single}


_MISSING = (
    "the transformer takes a guidance scale ('guidance_embeds' is true), and 'embedded_guidance' is null; give one, "
    "such as 1.0"
)
_NOT_TAKEN = (
    "'embedded_guidance' is given, but the network takes no guidance scale ('guidance_embeds' is not true); leave it "
    "out"
)
_PROPORTIONED = 128  # side of the latents at which diffusers takes such a transformer to be told, if nothing is said


def _sequence(config: Mapping[str, Any]) -> int:
    """Width of the tokens before the UNet's own projection of them, where it has one."""
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    if not isinstance(width, int):
        raise UserError(f"the UNet's 'cross_attention_dim' is {width}; only one width for all levels is supported")
    return width


def _pooled(config: Mapping[str, Any]) -> tuple[Literal["class_labels", "text_embeds"] | None, int]:
    width = config.get("projection_class_embeddings_input_dim") or 0
    if config.get("class_embed_type") == "simple_projection":
        return "class_labels", width
    if config.get("addition_embed_type") == "text_time":
        return "text_embeds", width - _TIME_IDS * config["addition_time_embed_dim"]
    return None, 0


def _between_blocks(config: Mapping[str, Any], kind: TransformerKind) -> tuple[tuple[int, int], ...]:
    """Half as many maps as there are blocks: diffusers adds each after two blocks of Stable Diffusion 3 and FLUX.1, and
    one after each block of Sana from the second on. PixArt's transformer takes none."""
    if kind == "pixart":
        return ()
    width, level = config["num_attention_heads"] * config["attention_head_dim"], config["patch_size"].bit_length() - 1
    if kind == "flux":  # double, then single blocks; the last of an odd number has a map of its own
        return ((width, level),) * ((config["num_layers"] + 1) // 2 + (config["num_single_layers"] + 1) // 2)
    return ((width, level),) * (config["num_layers"] // 2)


def _skips_and_middle(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    counts = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    shapes = [(channels[0], 0)]
    for level, (width, count) in enumerate(zip(channels, counts, strict=True)):
        shapes += [(width, level)] * count
        if level + 1 < len(channels):
            shapes.append((width, level + 1))
    return (*shapes, shapes[-1])


_KNOWN: dict[str, tuple[Any, ...]] = {
    "encoder_hid_dim_type": (None, "text_proj"),
    "addition_embed_type": (None, "text", "text_time"),
    "class_embed_type": (None, "timestep", "simple_projection"),
    "num_class_embeds": (None,),
    "center_input_sample": (False, None),
}


def _refuse_others(config: Mapping[str, Any]) -> None:
    if config.get("time_cond_proj_dim") is not None:
        raise UserError(
            "the UNet takes the guidance strength as an input ('time_cond_proj_dim'): it is distilled for a few "
            "guided steps",
            remedy="take the model that it was distilled from",
        )
    for key, known in _KNOWN.items():
        if config.get(key) not in known:
            raise UserError(
                f"the UNet's '{key}' is {config[key]!r}: it takes inputs that no task encoder makes",
                remedy="take a text-to-image model",
            )
