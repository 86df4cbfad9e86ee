"""The text encoder: GLIDE's transformer over a caption's tokens (Nichol et al. 2021, arXiv 2112.10741)."""

from __future__ import annotations

import torch
from jaxtyping import Integer
from pydantic import Field, model_validator
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.models.encoders import Tokens, TransformerBlock


class TextEncoderSpec(Spec):
    """A transformer over the tokens of a text. The defaults are GLIDE's (Nichol et al. 2021, section 4)."""

    vocabulary: int = Field(default=50257, ge=1)
    """Number of token ids."""
    context: int = Field(default=128, ge=1)
    """Tokens of a text, L; shorter ones are filled up."""
    width: int = Field(default=512, ge=1)
    """Width D of the tokens."""
    layers: int = Field(default=16, ge=0, le=512)
    """Of the transformer."""
    heads: int = Field(default=8, ge=1)
    """Of its attention; they share the width."""
    final_norm: bool = True
    """A normalisation after the last layer."""

    @model_validator(mode="after")
    def _consistent(self) -> TextEncoderSpec:
        if self.width % self.heads:
            raise UserError(f"'width' {self.width} is not a multiple of 'heads' {self.heads}")
        return self

    @property
    def token_width(self) -> int:
        """Width of the tokens that attention reads."""
        return self.width

    @property
    def pooled_width(self) -> int:
        """Width of the pooled token."""
        return self.width


class TextEncoder(nn.Module):
    """Token ids [B, 1, 1, L], -1 after a text's end => Tokens(pooled [B, D], sequence [B, L, D]).

    Every place after the end has a learned embedding of its own; the last place is the pooled token (Nichol et al.
    2021, section 4, and GLIDE as released).
    """

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.positions = nn.Parameter(0.02 * torch.randn(spec.context, spec.width))
        self.padding = nn.Parameter(0.02 * torch.randn(spec.context, spec.width))
        self.blocks = nn.ModuleList(TransformerBlock(spec.width, spec.heads) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width) if spec.final_norm else nn.Identity()
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids: Integer[Tensor, "b 1 1 l"]) -> Tokens:
        ids = checked_ids(ids, self.spec.context)  # [B, L]
        x = self.embedding(ids.clamp(min=0)) + self.positions  # [B, L, D]
        x = torch.where((ids >= 0)[..., None], x, self.padding)  # [B, L, D]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Tokens(x[:, -1], x)


def checked_ids(ids: Integer[Tensor, "b 1 1 l"], context: int) -> Integer[Tensor, "b l"]:
    """Token ids of a text encoder that reads `context` of them, int64. Raises UserError for another number."""
    if ids.shape[1:] != (1, 1, context):
        raise UserError(
            f"the text encoder expects token ids [B, 1, 1, {context}], got {list(ids.shape)}; "
            "give the condition the context of its encoder"
        )
    return ids[:, 0, 0].long()
