"""The text encoders that priors of other families come with: CLIP's, T5's and Gemma's, as transformers builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from pydantic import Field
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.models.encoders import Tokens
from piti.models.text import checked_ids


class LanguageModelSpec(Spec):
    """One text encoder."""

    kind: Literal["clip", "clip_projection", "t5", "gemma"]
    """CLIP's; CLIP's with its projected pooled token; T5's encoder; Gemma 2, a decoder whose last states are taken."""
    config: dict[str, Any]
    """Its configuration in transformers."""
    pad: int = Field(ge=0)
    """The token id after a text's end."""
    penultimate: bool = False
    """Its tokens are those before its last layer, without the final norm, as SDXL takes them."""
    masked: bool = False
    """Uses the text's attention mask."""


class LanguageSpec(Spec):
    """Text encoders side by side: their tokens are joined along the width; the last one's pooled token is taken."""

    models: tuple[LanguageModelSpec, ...]
    context: int = Field(ge=2)
    """Tokens of a text, L; shorter ones are filled up."""
    vocabulary: int = Field(ge=1)
    """Number of token ids."""
    empty: tuple[int, ...]
    """The ids of the empty text, which stands for no condition."""
    zero_empty: bool = False
    """No condition is tokens of zeros instead."""
    mask: bool = False
    """The network also gets the text's attention mask."""


class LanguageEncoder(nn.Module):
    """Token ids [B, 1, 1, L], -1 after a text's end => Tokens(pooled [B, D] or [B, 0], sequence [B, L, D']).

    Ids that are -1 throughout are no condition. Raises UserError where transformers is not installed.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.models = nn.ModuleList(_BUILDERS[model.kind](model.config) for model in spec.models)

    def forward(self, ids: Integer[Tensor, "b 1 1 l"]) -> Tokens:
        ids = checked_ids(ids, self.spec.context)  # [B, L]
        none = (ids < 0).all(dim=1)  # [B]
        empty = ids.new_full((self.spec.context,), -1)
        empty[: len(self.spec.empty)] = ids.new_tensor(self.spec.empty)
        filled = torch.where(none[:, None], empty, ids)  # [B, L]
        pairs = zip(self.spec.models, self.models, strict=True)
        found = [_READERS[one.kind](one, model, filled) for one, model in pairs]
        sequence, pooled = torch.cat([tokens for tokens, _ in found], dim=-1), found[-1][1]
        if self.spec.zero_empty:
            sequence = torch.where(none[:, None, None], 0.0, sequence)
            pooled = torch.where(none[:, None], 0.0, pooled)
        return Tokens(pooled, sequence, mask=filled >= 0 if self.spec.mask else None)


def _clip(spec: LanguageModelSpec, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, D] and the pooled token, [B, 0] without a projection."""
    mask = (ids >= 0).long() if spec.masked else None
    out = model(
        input_ids=torch.where(ids >= 0, ids, spec.pad), attention_mask=mask, output_hidden_states=spec.penultimate
    )
    tokens = out.hidden_states[-2] if spec.penultimate else out.last_hidden_state
    pooled = out.text_embeds if spec.kind == "clip_projection" else tokens.new_empty(len(ids), 0)
    return tokens, pooled


def _states(spec: LanguageModelSpec, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    mask = (ids >= 0).long() if spec.masked else None
    out = model(input_ids=torch.where(ids >= 0, ids, spec.pad), attention_mask=mask)
    return out.last_hidden_state, out.last_hidden_state.new_empty(len(ids), 0)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("this prior's text encoder needs transformers: pip install 'piti[text]'") from None
    return transformers


def _build_clip(config: dict[str, Any]) -> nn.Module:
    library = _transformers()
    return library.CLIPTextModel(library.CLIPTextConfig(**config))


def _build_clip_projection(config: dict[str, Any]) -> nn.Module:
    library = _transformers()
    return library.CLIPTextModelWithProjection(library.CLIPTextConfig(**config))


def _build_t5(config: dict[str, Any]) -> nn.Module:
    """The encoder without the wrapper that shares its embedding with a decoder."""
    library = _transformers()
    encoder = library.T5EncoderModel(library.T5Config(**config)).encoder
    for block in encoder.modules():
        if isinstance(getattr(block, "wo", None), nn.Linear):
            block.wo = _WideLinear.of(block.wo)
    return encoder


class _WideLinear(nn.Linear):
    """A product in float32 where its weights are float16: T5's feed-forward layers end in numbers beyond float16, for
    which transformers keeps these weights in float32 (its issue 20287)."""

    @classmethod
    def of(cls, layer: nn.Linear) -> _WideLinear:
        """One with the weights of a layer that has no bias."""
        made = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight = layer.weight
        return made

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype is not torch.float16:
            return super().forward(input)
        return F.linear(input.float(), self.weight.float())


def _build_gemma(config: dict[str, Any]) -> nn.Module:
    library = _transformers()
    return library.Gemma2Model(library.Gemma2Config(**config | {"use_cache": False}))


_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "clip": _build_clip,
    "clip_projection": _build_clip_projection,
    "t5": _build_t5,
    "gemma": _build_gemma,
}
_READERS: dict[str, Callable[[LanguageModelSpec, nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    "clip": _clip,
    "clip_projection": _clip,
    "t5": _states,
    "gemma": _states,
}
