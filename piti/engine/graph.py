"""A translator's step as a graph of tensors, for compilers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piti.models import Tokens
from piti.models.translator import Translator


def time_embedding(translator: Translator, seen: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
    """The UNet's time embedding, including the condition's pooled token, [B, E] in float32.

    Computed outside the graph, since its sines of large arguments are inaccurate in half precision.
    """
    unet = translator.unet
    embedding = unet.time_embedding(unet.get_time_embed(seen, t.expand(len(seen))))
    pooled = unet.get_class_embed(seen, tokens.pooled if translator.takes_tokens else None)
    return embedding if pooled is None else embedding + pooled


def inputs_of(translator: Translator, seen: Tensor, embedding: Tensor, tokens: Tokens) -> list[Tensor]:
    """The graph's inputs in order."""
    sequence = [tokens.sequence] if translator.takes_tokens else []
    maps = () if translator.head is None else tokens.maps or ()
    return [seen, embedding, *sequence, *(tokens.residuals or ()), *maps]


class _Given(nn.Module):
    """A layer with a precomputed output."""

    value: Tensor | None = None

    def forward(self, *_: object) -> Tensor | None:
        return self.value


class StepGraph(nn.Module):
    """`translator.step` as a function of the tensors of `inputs_of`, in float32, with copies of the networks it needs.

    residuals, maps: the number of inputs for these fields of `Tokens`.
    """

    def __init__(self, translator: Translator, residuals: int, maps: int) -> None:
        super().__init__()
        self.translator = _copied(translator)
        self.residuals, self.maps = residuals, maps
        self.embedding = _Given()
        for name, layer in {
            "time_proj": self.embedding,
            "time_embedding": self.embedding,
            "class_embedding": None,
        }.items():
            setattr(self.translator.unet, name, layer)
        self.ignored = torch.zeros((), dtype=torch.long)

    def forward(self, seen: Tensor, embedding: Tensor, *others: Tensor) -> Tensor:
        """[B, 3|6, H, W]."""
        unet, rest = self.translator.unet, list(others)
        self.embedding.value = embedding
        sequence = rest.pop(0) if self.translator.takes_tokens else None
        residuals, maps = rest[: self.residuals], tuple(rest[self.residuals :])
        features = unet(
            nn.functional.pixel_unshuffle(seen, self.translator.patch_size),
            self.ignored,
            encoder_hidden_states=sequence,
            down_block_additional_residuals=residuals[:-1] if residuals else None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]
        nothing = seen.new_empty(0)
        return self.translator.unfolded(features, seen, Tokens(nothing, nothing, None, maps))


def _copied(translator: Translator) -> Translator:
    """A copy in float32, without gradients and without the encoder."""
    copied = copy.deepcopy(translator)
    copied.encoder = None
    return copied.float().eval().requires_grad_(False)


def dynamic_shapes(inputs: Sequence[Tensor]) -> list[list[int]]:
    """Shapes of the inputs, with -1 for dimensions that vary between batches and canvases: all but channels, which are
    second, and in a sequence last."""
    return [[-1, -1, x.shape[2]] if x.dim() == 3 else [-1, x.shape[1], *([-1] * (x.dim() - 2))] for x in inputs]
