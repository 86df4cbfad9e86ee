"""The transformer of FLUX.1 as a network on maps."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from jaxtyping import Float, Shaped
from torch import Tensor

_TIMES = 1000
"""Timesteps of 1, which diffusers' class multiplies by again."""


class FluxNetwork(FluxTransformer2DModel):
    """FLUX.1's transformer (Black Forest Labs 2024), with weights and configuration of diffusers' class.

    diffusers' pipeline folds 2 x 2 latents into channels outside of the network, as a `Translator` of `patch_size` 2
    does, so that here each position of the map that it sees is a token of the image. Tokens of a text are at position
    (0, 0, 0), that of the image in row i and column j at (0, i, j); positions are rotations, without a longest side.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Shaped[Tensor, " b"],
        encoder_hidden_states: Float[Tensor, "b s d"],
        pooled_projections: Float[Tensor, "b p"],
        guidance: Float[Tensor, " b"] | None = None,
        controlnet_block_samples: list[Tensor] | None = None,
        controlnet_single_block_samples: list[Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "b c2 h w"]]:
        """Predict the flow's direction ε − x₀ of folded latents, of the same shape.

        sample: noisy folded latents; timestep: 0 … 1000; guidance: the guidance scale, if the configuration has
        `guidance_embeds`. controlnet_block_samples, controlnet_single_block_samples: tokens [B, H·W, D] that are added
        to those of the image after its double and its single blocks; with half as many, each after two blocks.
        """
        height, width = sample.shape[-2:]
        more: dict[str, Any] = {"joint_attention_kwargs": None, "return_dict": False}
        (out,) = super().forward(
            hidden_states=sample.flatten(2).transpose(1, 2),  # [B, H·W, C]
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep / _TIMES,  # pyright: ignore[reportArgumentType]
            img_ids=_positions(height, width, sample.device),
            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3, device=sample.device),
            guidance=guidance,  # pyright: ignore[reportArgumentType]
            controlnet_block_samples=controlnet_block_samples or None,
            controlnet_single_block_samples=controlnet_single_block_samples or None,
            **more,
        )
        return (out.transpose(1, 2).unflatten(2, (height, width)),)


def _positions(height: int, width: int, device: torch.device) -> Float[Tensor, "s 3"]:
    """(0, row, column) of every token of the image."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
