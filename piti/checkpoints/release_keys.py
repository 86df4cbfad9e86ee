"""Mapping between GLIDE's and PITI's released keys and ours, with the tensor layouts of both.

Written as tables: a `Rule` says that the released tensor `source` contains our tensors `targets`; `split` and `join`
convert losslessly in both directions. `release_rules` lists the rules of a whole translator in the order in which a
released file's keys.

Two layouts differ. GLIDE's UNet has queries, keys and values in one 1-d convolution whose rows are ordered by head,
within each head q, k, v; here they are three linear layers. Its text and condition transformers do the same with linear
layers, where ours have one layer whose rows are ordered q, k, v, and within each by head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from piti.models.encoders import EncoderSpec
from piti.models.text import TextEncoderSpec
from piti.models.unet import UNetSpec

Rows = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Rule:
    """A released tensor, and our tensors with the same values."""

    source: str
    targets: tuple[str, ...]
    split: Rows
    """The released tensor => ours, in the order of `targets`."""
    join: Callable[[tuple[Tensor, ...]], Tensor]
    """The inverse."""

    def prefixed(self, source: str, target: str) -> Rule:
        """The same rule with prefixes, for a larger model."""
        targets = tuple(target + name for name in self.targets)
        return Rule(source + self.source, targets, self.split, self.join)


def release_rules(encoder: EncoderSpec | TextEncoderSpec, unet: UNetSpec) -> list[Rule]:
    """The rules of a whole file: PITI's with a `EncoderSpec`, GLIDE's with a `TextEncoderSpec`."""
    if isinstance(encoder, EncoderSpec):
        of_encoder = [rule.prefixed("encoder.", "encoder.") for rule in encoder_rules(encoder)]
        return of_encoder + [rule.prefixed("decoder.", "unet.") for rule in unet_rules(unet)]
    return _glide_rules(encoder, unet)


def same(name: str) -> Rule:
    """A tensor with the same name in both."""
    return _same(name, name)


# The condition encoder


def encoder_rules(spec: EncoderSpec) -> list[Rule]:
    """PITI's encoder, without a prefix on either side."""
    last = len(spec.channels)
    layers = [*_transformer(spec.layers, spec.heads)]
    for i in range(last):
        layers += [*_layer(f"cnn.conv{i + 1}", f"stem.convs.{i}"), *_layer(f"cnn.norm{i + 1}", f"stem.norms.{i}")]
    layers += [*_layer(f"cnn.conv{last + 1}", "stem.out"), *_layer("final_ln", "norm")]
    return [_same("cls_token", "pooled_token"), _same("positional_embedding", "positions"), *layers]


# The text encoder


def _glide_rules(spec: TextEncoderSpec, unet: UNetSpec) -> list[Rule]:
    """GLIDE's networks are one module, so the transformer's keys are among the UNet's."""
    *body, weight, bias = unet_rules(unet)  # the last layer is transformer_proj
    own = [_same("positional_embedding", "positions"), _same("padding_embedding", "padding")]
    after = [*_transformer(spec.layers, spec.heads)]
    after += _layer("final_ln", "norm") if spec.final_norm else []
    after += [_same("token_embedding.weight", "embedding.weight")]
    return [
        *(rule.prefixed("", "encoder.") for rule in own),
        *(rule.prefixed("", "unet.") for rule in body),
        *(rule.prefixed("", "encoder.") for rule in after),
        *(rule.prefixed("", "unet.") for rule in (weight, bias)),
    ]


_BLOCK = {
    "attn.c_proj": "to_out",
    "ln_1": "norm_attention",
    "mlp.c_fc": "mlp_in",
    "mlp.c_proj": "mlp_out",
    "ln_2": "norm_mlp",
}


def _transformer(layers: int, heads: int) -> Iterator[Rule]:
    for k in range(layers):
        theirs, ours = f"transformer.resblocks.{k}", f"blocks.{k}"
        for part in ("weight", "bias"):
            yield _by_part(f"{theirs}.attn.c_qkv.{part}", f"{ours}.to_qkv.{part}", heads)
        for source, target in _BLOCK.items():
            yield from _layer(f"{theirs}.{source}", f"{ours}.{target}")


# The UNet


_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_SKIP = ("skip_connection", "conv_shortcut")
_QKV = ("to_q", "to_k", "to_v")
_ENCODER_KV = ("add_k_proj", "add_v_proj")


def unet_rules(spec: UNetSpec) -> list[Rule]:
    """GLIDE's UNet, without a prefix on either side; the last two are `transformer_proj`'s."""
    return [
        *_layer("time_embed.0", "time_embedding.linear_1"),
        *_layer("time_embed.2", "time_embedding.linear_2"),
        *_layer("input_blocks.0.0", "conv_in"),
        *chain.from_iterable(_down(spec, level) for level in range(len(spec.channels))),
        *_residual("middle_block.0", "mid_block.resnets.0", skip=False),
        *_attention("middle_block.1", "mid_block.attentions.0", spec.head_dim),
        *_residual("middle_block.2", "mid_block.resnets.1", skip=False),
        *chain.from_iterable(_up(spec, level) for level in reversed(range(len(spec.channels)))),
        *_layer("out.0", "conv_norm_out"),
        *_layer("out.2", "conv_out"),
        *_layer("transformer_proj", "class_embedding"),
    ]


def _down(spec: UNetSpec, level: int) -> Iterator[Rule]:
    """A down level: its residual blocks, then one that halves the resolution, except at the last."""
    first, ours = 1 + level * (spec.layers + 1), f"down_blocks.{level}"
    widens = level > 0 and spec.channels[level - 1] != spec.channels[level]
    for i in range(spec.layers):
        theirs = f"input_blocks.{first + i}"
        yield from _residual(f"{theirs}.0", f"{ours}.resnets.{i}", skip=i == 0 and widens)
        if spec.attention[level]:
            yield from _attention(f"{theirs}.1", f"{ours}.attentions.{i}", spec.head_dim)
    if level + 1 < len(spec.channels):
        yield from _residual(f"input_blocks.{first + spec.layers}.0", f"{ours}.downsamplers.0", skip=False)


def _up(spec: UNetSpec, level: int) -> Iterator[Rule]:
    """An up level: one block more, each with a skip connection, then one that doubles the resolution."""
    turn = len(spec.channels) - 1 - level  # index of the up level
    first, ours = turn * (spec.layers + 1), f"up_blocks.{turn}"
    for i in range(spec.layers + 1):
        theirs = f"output_blocks.{first + i}"
        yield from _residual(f"{theirs}.0", f"{ours}.resnets.{i}", skip=True)
        if spec.attention[level]:
            yield from _attention(f"{theirs}.1", f"{ours}.attentions.{i}", spec.head_dim)
    if level > 0:
        place = 2 if spec.attention[level] else 1
        yield from _residual(f"output_blocks.{first + spec.layers}.{place}", f"{ours}.upsamplers.0", skip=False)


def _residual(source: str, target: str, skip: bool) -> Iterator[Rule]:
    for theirs, ours in [*_RESIDUAL.items(), *([_SKIP] if skip else [])]:
        yield from _layer(f"{source}.{theirs}", f"{target}.{ours}")


def _attention(source: str, target: str, head_dim: int) -> Iterator[Rule]:
    yield from _layer(f"{source}.norm", f"{target}.group_norm")
    for theirs, ours in (("qkv", _QKV), ("encoder_kv", _ENCODER_KV), ("proj_out", ("to_out.0",))):
        for part in ("weight", "bias"):
            names = tuple(f"{target}.{name}.{part}" for name in ours)
            yield _interleaved(f"{source}.{theirs}.{part}", names, head_dim, convolution=part == "weight")


# Layouts


def _same(source: str, target: str) -> Rule:
    return Rule(source, (target,), lambda x: (x,), lambda parts: parts[0])


def _layer(source: str, target: str) -> Iterator[Rule]:
    for part in ("weight", "bias"):
        yield _same(f"{source}.{part}", f"{target}.{part}")


def _by_part(source: str, target: str, heads: int) -> Rule:
    """Rows [heads, 3, d] => [3, heads, d]."""
    return Rule(source, (target,), partial(_heads_inside, heads=heads), partial(_heads_outside, heads=heads))


def _heads_inside(x: Tensor, heads: int) -> tuple[Tensor]:
    return (x.reshape(heads, 3, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape),)


def _heads_outside(parts: tuple[Tensor, ...], heads: int) -> Tensor:
    (x,) = parts
    return x.reshape(3, heads, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def _interleaved(source: str, targets: tuple[str, ...], head_dim: int, convolution: bool) -> Rule:
    """Rows [heads, parts, d] of a 1-d convolution => a linear layer for each part, rows [heads, d]."""
    return Rule(
        source,
        targets,
        partial(_deinterleaved, parts=len(targets), head_dim=head_dim, convolution=convolution),
        partial(_reinterleaved, head_dim=head_dim, convolution=convolution),
    )


def _deinterleaved(x: Tensor, parts: int, head_dim: int, convolution: bool) -> tuple[Tensor, ...]:
    rows = (x.squeeze(-1) if convolution else x).unflatten(0, (-1, parts, head_dim))  # [heads, parts, d, …]
    return tuple(part.flatten(0, 1) for part in rows.unbind(1))


def _reinterleaved(parts: tuple[Tensor, ...], head_dim: int, convolution: bool) -> Tensor:
    rows = torch.stack([part.unflatten(0, (-1, head_dim)) for part in parts], dim=1)  # [heads, parts, d, …]
    return rows.flatten(0, 2).unsqueeze(-1) if convolution else rows.flatten(0, 2)
