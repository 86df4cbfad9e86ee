"""The text encoders that priors of other families come with: CLIP's, T5's and Gemma's, as transformers builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from pydantic import Field, model_validator
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.models.encoders import Tokens
from piti.models.text import checked_ids


class LanguageModelSpec(Spec):
    """One text encoder."""

    kind: Literal["clip", "clip_projection", "clip_pooled", "t5", "gemma"]
    """CLIP's; CLIP's with its projected pooled token; CLIP's pooled token alone, not projected, as FLUX.1 takes it;
    T5's encoder; Gemma 2, a decoder whose last states are taken."""
    config: dict[str, Any]
    """Its configuration in transformers."""
    pad: int = Field(ge=0)
    """The token id after a text's end."""
    penultimate: bool = False
    """Its tokens are those before its last layer, without the final norm, as SDXL takes them."""
    masked: bool = False
    """Uses the text's attention mask."""
    ids: tuple[int, int] | None = None
    """Its ids [low, high), if each text encoder has its own tokenizer; None: all."""
    places: int | None = Field(default=None, ge=1)
    """Number of its own ids that it reads; None: `context`."""
    after: bool = False
    """Its tokens are appended to those of the previous models, instead of widening them."""

    @model_validator(mode="after")
    def _consistent(self) -> LanguageModelSpec:
        if (self.ids is None) != (self.places is None):
            raise UserError("'ids' and 'places' go together; give both or neither")
        return self


class LanguageSpec(Spec):
    """Text encoders side by side: their tokens are joined along the width, or with `after` along the sequence."""

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
    pool_all: bool = False
    """Concatenate the pooled tokens of all models, instead of using the last one's."""
    width: int | None = Field(default=None, ge=1)
    """Width to which tokens are padded with zeros; None: no padding."""
    zeros: int = Field(default=0, ge=0)
    """Number of zero tokens at the end, in place of an omitted text encoder."""


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
        found = [_READERS[one.kind](one, model, _own(one, filled)) for one, model in pairs]
        sequence = self._joined([tokens for tokens, _ in found])
        pooled = torch.cat([each for _, each in found], dim=-1) if self.spec.pool_all else found[-1][1]
        if self.spec.zero_empty:
            sequence = torch.where(none[:, None, None], 0.0, sequence)
            pooled = torch.where(none[:, None], 0.0, pooled)
        return Tokens(pooled, sequence, mask=filled >= 0 if self.spec.mask else None)

    def _joined(self, tokens: list[Tensor]) -> Tensor:
        """The tokens [B, L, D] of each model as one sequence."""
        rows: list[list[Tensor]] = []
        for model, own in zip(self.spec.models, tokens, strict=True):
            rows = [*rows, [own]] if model.after or not rows else [*rows[:-1], [*rows[-1], own]]
        wide = [torch.cat(row, dim=-1) for row in rows]
        width = self.spec.width or wide[0].shape[-1]
        parts = [F.pad(part, (0, width - part.shape[-1])) for part in wide]
        return F.pad(torch.cat(parts, dim=1), (0, 0, 0, self.spec.zeros))


def _own(spec: LanguageModelSpec, ids: Tensor) -> Tensor:
    """The ids [B, places] that are a model's own, as it numbers them, -1 after the last."""
    if spec.ids is None or spec.places is None:
        return ids
    low, high = spec.ids
    before = ((ids >= 0) & (ids < low)).sum(dim=1, keepdim=True)  # [B, 1]
    places = before + torch.arange(spec.places, device=ids.device)  # [B, places]
    taken = F.pad(ids, (0, spec.places), value=-1).gather(1, places)
    return torch.where((taken >= low) & (taken < high), taken - low, -1)


def _clip(spec: LanguageModelSpec, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, D] and the pooled token, [B, 0] without a projection."""
    mask = (ids >= 0).long() if spec.masked else None
    out = model(
        input_ids=torch.where(ids >= 0, ids, spec.pad), attention_mask=mask, output_hidden_states=spec.penultimate
    )
    tokens = out.hidden_states[-2] if spec.penultimate else out.last_hidden_state
    pooled = out.text_embeds if spec.kind == "clip_projection" else tokens.new_empty(len(ids), 0)
    return tokens, pooled


def _clip_pooled(spec: LanguageModelSpec, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """No tokens [B, 0, D], and the pooled token: the state at a text's end."""
    mask = (ids >= 0).long() if spec.masked else None
    out = model(input_ids=torch.where(ids >= 0, ids, spec.pad), attention_mask=mask)
    return out.last_hidden_state[:, :0], out.pooler_output


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
    "clip_pooled": _build_clip,
    "t5": _build_t5,
    "gemma": _build_gemma,
}
_READERS: dict[str, Callable[[LanguageModelSpec, nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    "clip": _clip,
    "clip_projection": _clip,
    "clip_pooled": _clip_pooled,
    "t5": _states,
    "gemma": _states,
}
