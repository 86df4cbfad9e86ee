"""Recognition of released files by shapes; keys and layouts in both directions; inpainting networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from piti.checkpoints.release import (
    Heads,
    ReleaseError,
    as_released,
    expected_shapes,
    head_dim_of,
    heads_of,
    identify,
    our_tensors,
)
from piti.checkpoints.release_keys import release_rules
from piti.core.errors import UserError, option
from piti.models import EncoderSpec, TextEncoderSpec, Translator, UNetSpec
from tests.released import TINY, encoder_weights, tiny_weights

Shapes = dict[str, tuple[int, ...]]


def shapes_of(weights: dict[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in weights.items()}


def shapes_for(config: dict[str, Any]) -> Shapes:
    return expected_shapes(as_released(config).rules, our_tensors(config))


def full(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with every default written out, as far as a released file tells it."""
    encoder = "text_spec" if "text_spec" in config else "encoder_spec"
    spec = TextEncoderSpec if encoder == "text_spec" else EncoderSpec
    return {
        encoder: spec.parse(config[encoder], "test").to_dict(),
        "unet_spec": UNetSpec.parse(config["unet_spec"], "test").to_dict(),
        "image_size": config["image_size"],
        "low_res": config.get("low_res"),
        "learned_variance": config.get("learned_variance", True),
        "inpaint": config.get("inpaint", False),
    }


NAMES = {
    "piti": "PITI base",
    "sketch": "PITI base",
    "piti_up": "PITI upsampler",
    "glide": "GLIDE base",
    "glide_up": "GLIDE upsampler",
    "inpaint": "GLIDE inpaint base",
    "inpaint_up": "GLIDE inpaint upsampler",
    "sketch_up": "PITI upsampler",
}


@pytest.mark.parametrize("name", TINY)
def test_files_are_recognised_and_measured(name: str) -> None:
    found = identify(shapes_of(tiny_weights(name)), "x.pt")
    assert found.name == NAMES[name]
    assert found.config == full(TINY[name])


_BASE_UNET: dict[str, Any] = {}
_TEXT = {"width": 512}
_UP_UNET = {"channels": [192 * m for m in (1, 1, 2, 2, 4, 4)], "layers": 2, "attention": [False] * 3 + [True] * 3}
FULL_SIZE = {
    "PITI base": {"encoder_spec": {}, "unet_spec": _BASE_UNET, "image_size": 64},
    "PITI upsampler": {"encoder_spec": {}, "unet_spec": _UP_UNET, "image_size": 256, "low_res": 64},
    "GLIDE base": {"text_spec": _TEXT, "unet_spec": _BASE_UNET, "image_size": 64},
    "GLIDE inpaint upsampler": {
        "text_spec": _TEXT, "unet_spec": _UP_UNET, "image_size": 256, "low_res": 64, "inpaint": True
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_released_sizes_are_measured(name: str) -> None:
    """The sizes that were released, heads included: 64 channels in the UNet, 8 heads in the transformer."""
    config = FULL_SIZE[name]
    found = identify(shapes_for(config), "x.pt")
    assert found.name == name
    assert found.config == full(config)
    assert found.options == ""
    assert (found.encoder.heads, found.unet and found.unet.head_dim) == (8, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 3},
        {"channels": [32, 96], "attention": [True, True]},
        {"channels": [64, 64, 128], "attention": [False, False, False], "head_dim": 64},
        {"channels": [32], "attention": [False]},
        {"channels": [64, 32, 96, 32, 64], "attention": [True, False, True, False, True]},
    ],
)
def test_unusual_unets_are_measured(changes: dict[str, Any]) -> None:
    unet = TINY["piti"]["unet_spec"] | changes
    config = TINY["piti"] | {"unet_spec": unet, "image_size": 8 * 2 ** (len(unet["channels"]) - 1)}
    assert identify(shapes_for(config), "x.pt").config == full(config)


def test_a_text_transformer_without_final_norm_and_a_unet_without_variance() -> None:
    config = TINY["glide"] | {"text_spec": TINY["glide"]["text_spec"] | {"final_norm": False}}
    config |= {"learned_variance": False}
    assert identify(shapes_for(config), "x.pt").config == full(config)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_an_encoder_alone_is_recognised(prefix: str) -> None:
    found = identify(shapes_of(encoder_weights(prefix=prefix)), "x.pt")
    assert found.name == "PITI encoder"
    assert found.unet is None
    assert found.config == {"encoder_spec": full(TINY["piti"])["encoder_spec"]}
    assert {rule.source for rule in found.rules} == set(encoder_weights(prefix=prefix))


def test_heads_are_of_the_released_size_unless_told() -> None:
    assert head_dim_of((192, 384, 576, 768), (False, True, True, True)) == 64
    assert head_dim_of((64, 128, 192, 256), (False, True, True, True)) == 64
    assert head_dim_of((32, 64, 96, 128), (False, True, True, True)) == 32
    assert head_dim_of((64, 96), (False, True)) == 32
    assert [heads_of(width) for width in (128, 256, 512, 768, 48)] == [4, 4, 8, 12, None]
    told = identify(shapes_of(tiny_weights("piti")), "x.pt", Heads(head_dim=16, heads=4))
    assert (told.encoder.heads, told.unet and told.unet.head_dim) == (4, 16)
    assert told.options == "head_dim 16 heads 4"


def test_heads_of_no_usual_size_are_asked_for() -> None:
    encoder = TINY["piti"]["encoder_spec"] | {"width": 48, "heads": 2}
    config = TINY["piti"] | {"encoder_spec": encoder, "unet_spec": TINY["piti"]["unet_spec"] | {"token_width": 48}}
    with pytest.raises(ReleaseError, match=r"x.pt: .*width 48.*heads") as caught:
        identify(shapes_for(config), "x.pt")
    assert option("heads") in caught.value.text(), "the command line writes its flag"
    assert identify(shapes_for(config), "x.pt", Heads(heads=2)).config == full(config)
    with pytest.raises(ReleaseError, match="head_dim 48"):
        identify(shapes_for(config), "x.pt", Heads(head_dim=48, heads=2))


# Files that are something else


def without(shapes: Shapes, *keys: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key not in keys}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"conv.weight": (3, 3)},
            "neither a GLIDE nor a PITI checkpoint.*'token_embedding.weight'.*Found: 'conv.weight'",
        ),
        (without(shapes_of(tiny_weights("piti")), "decoder.out.0.bias"), "PITI base.*lacks 'decoder.out.0.bias'"),
        (shapes_of(tiny_weights("glide")) | {"spare": (3,)}, "GLIDE base.*has unexpected 'spare'"),
        (shapes_of(tiny_weights("piti")) | {"decoder.out.0.bias": (3,)}, r"out.0.bias' is \[3\].*has \[32\]"),
        (without(shapes_of(tiny_weights("glide")), "padding_embedding"), "padding_embedding.*not supported"),
        (without(shapes_of(tiny_weights("glide")), "transformer_proj.weight"), "has no 'transformer_proj.weight'"),
        (shapes_of(tiny_weights("glide")) | {"input_blocks.2.0.op.weight": (32, 32, 3, 3)}, "plain convolution"),
        (shapes_of(tiny_weights("glide")) | {"input_blocks.0.0.weight": (32, 4, 3, 3)}, "takes 4 channels.*3 .base"),
        (shapes_of(tiny_weights("piti")) | {"encoder.positional_embedding": (17, 32)}, "other dimensions"),
        (shapes_of(tiny_weights("piti")) | {"encoder.positional_embedding": (1, 60, 32)}, "positional_embedding"),
        ({}, "Found: nothing"),
    ],
)
def test_what_is_not_in_the_layout_is_refused(shapes: Shapes, message: str) -> None:
    with pytest.raises(ReleaseError, match=f"(?s)^x.pt: .*{message}"):
        identify(shapes, "x.pt")


# Keys and layouts


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_of_ours_has_one_place_and_comes_back(name: str) -> None:
    weights, ours = tiny_weights(name), our_tensors(TINY[name])
    rules = as_released(TINY[name]).rules
    assert [rule.source for rule in rules] == list(weights)
    targets = [target for rule in rules for target in rule.targets]
    assert sorted(targets) == sorted(ours)
    for rule in rules:
        split = rule.split(weights[rule.source])
        assert [tuple(part.shape) for part in split] == [tuple(ours[target].shape) for target in rule.targets]
        assert torch.equal(rule.join(split), weights[rule.source])


def test_fused_projections_go_head_by_head() -> None:
    """Row h · 3d + p · d + j of the released UNet is row h · d + j of part p; of the transformer, p · D + h · d + j."""
    encoder = TextEncoderSpec(width=8, heads=2, layers=1, vocabulary=3, context=2)
    unet = UNetSpec(channels=(32,), attention=(True,), layers=1, head_dim=8, token_width=8)
    rules = {rule.source: rule for rule in release_rules(encoder, unet)}
    split = rules["input_blocks.1.1.qkv.weight"].split(torch.arange(96.0).view(96, 1, 1).expand(96, 32, 1))
    q, k, v = (part[:, 0].tolist() for part in split)
    assert q == [h * 24 + j for h in range(4) for j in range(8)]
    assert k == [row + 8 for row in q]
    assert v == [row + 16 for row in q]
    key, value = rules["input_blocks.1.1.encoder_kv.bias"].split(torch.arange(64.0))
    assert key.tolist() == [h * 16 + j for h in range(4) for j in range(8)]
    assert value.tolist() == [row + 8 for row in key.tolist()]
    (fused,) = rules["transformer.resblocks.0.attn.c_qkv.bias"].split(torch.arange(24.0))
    assert fused.tolist() == [h * 12 + p * 4 + j for p in range(3) for h in range(2) for j in range(4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, "patches of 2 px"),
        ({"encoder_spec": TINY["piti"]["encoder_spec"] | {"residuals": True}}, "aligned residuals"),
        ({"encoder_spec": TINY["piti"]["encoder_spec"] | {"norm_groups": 4}}, "groups of channels"),
        ({"unet_spec": TINY["piti"]["unet_spec"] | {"norm_groups": 16}}, "normalises 16 groups"),
        ({"unet_spec": {"token_width": None, "attention": [False] * 4}}, "takes no condition"),
        ({"image_size": 32}, "makes 32 px, but its levels imply 16"),
        ({"low_res": 8}, "enlarges 8 px, not 4"),
        ({"image_size": 64, "low_res": 16, "detail": 0.1}, "predicts details"),
    ],
)
def test_models_without_a_released_layout_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReleaseError, match=f"no released layout.*{message}"):
        as_released(TINY["piti"] | changes)


# Inpainting


def tiny_translator(name: str, **changes: Any) -> Translator:
    torch.manual_seed(0)
    return Translator(**(TINY[name] | changes)).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["inpaint", "inpaint_up"])
def test_an_inpainting_unet_sees_what_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """[x_t, image · mask, mask, enlarged small image], as GLIDE's inpainting nets are fed."""
    translator = tiny_translator(name)
    side = translator.image_size
    x_t, image = torch.randn(2, 2, 3, side, side)
    mask = (torch.rand(2, 1, side, side) > 0.5).float()
    small = None if translator.low_res is None else torch.rand(2, 3, side // 4, side // 4)
    ids = torch.tensor([[[[3, 7, -1, -1, -1, -1]]]]).repeat(2, 1, 1, 1)
    seen: list[Tensor] = []
    real = translator.unet.forward
    monkeypatch.setattr(translator.unet, "forward", lambda x, *a, **k: seen.append(x) or real(x, *a, **k))
    told = translator(x_t, torch.tensor(5), ids, small, torch.cat([image, mask], dim=1)).output
    untold = translator(x_t, torch.tensor(5), ids, small).output
    large = [] if small is None else [torch.nn.functional.interpolate(small, size=side, mode="bilinear")]
    assert torch.equal(seen[0], torch.cat([x_t, image * mask, mask, *large], dim=1))
    assert torch.equal(seen[1], torch.cat([x_t, torch.zeros(2, 4, side, side), *large], dim=1))
    assert not torch.allclose(told, untold)


@torch.no_grad()
def test_with_nothing_known_it_is_the_net_without_those_channels() -> None:
    inpaint, plain = tiny_translator("inpaint"), tiny_translator("glide")
    state = inpaint.state_dict()
    state["unet.conv_in.weight"] = state["unet.conv_in.weight"][:, :3]
    plain.load_state_dict(state)
    x_t, ids = torch.randn(1, 3, 16, 16), torch.tensor([[[[3, 7, -1, -1, -1, -1]]]])
    told = inpaint(x_t, torch.tensor(5), ids).output
    torch.testing.assert_close(told, plain(x_t, torch.tensor(5), ids).output, atol=1e-6, rtol=0)


def test_only_inpainting_nets_are_told_what_is_known() -> None:
    known, ids = torch.zeros(1, 4, 16, 16), torch.full((1, 1, 1, 6), -1)
    with pytest.raises(UserError, match="does not inpaint"):
        tiny_translator("glide")(torch.zeros(1, 3, 16, 16), torch.tensor(5), ids, None, known)
    with pytest.raises(UserError, match="'detail' does not go together with 'inpaint'"):
        Translator(**(TINY["inpaint_up"] | {"detail": 0.1}))
