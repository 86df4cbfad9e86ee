"""Encoders, the UNet and the translator: sizes, shapes, alignment, saving."""

from __future__ import annotations

import pytest
import torch

from piti.models import ConditionEncoder, EncoderSpec, Tokens, Translator, UNetSpec
from piti.spec import SpecError
from tests.conftest import TINY_MODEL


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(**changes: object) -> Translator:
    torch.manual_seed(0)
    config = {"encoder_spec": TINY_MODEL["encoder"], "unet_spec": TINY_MODEL["unet"], "image_size": 16, "patch_size": 2}
    return Translator(**(config | changes)).eval()


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch, 3, 16, 16, generator=generator)
    return x_t, torch.tensor([3, 700])[:batch], torch.rand(batch, 3, 16, 16, generator=generator)


def test_full_size_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        translator = Translator()
    assert count(translator) == 338_015_302
    assert count(translator.get_submodule("unet")) == 308_728_902
    assert count(translator.get_submodule("encoder")) == 29_286_400


def test_full_size_encoder_makes_256_tokens() -> None:
    with torch.device("meta"):
        tokens = ConditionEncoder(EncoderSpec())(torch.empty(1, 3, 256, 256))
    assert tokens.pooled.shape == (1, 512)
    assert tokens.sequence.shape == (1, 256, 512)
    assert tokens.residuals is None


def test_shapes_and_that_everything_matters() -> None:
    translator = tiny()
    x_t, t, condition = inputs()
    out = translator(x_t, t, condition)
    assert out.output.shape == out.variance.shape == (2, 3, 16, 16)
    for changed in ((x_t + 1, t, condition), (x_t, t + 100, condition), (x_t, t, 1 - condition)):
        assert not torch.allclose(translator(*changed).output, out.output, atol=1e-6)


def test_encoding_once_is_encoding_every_time() -> None:
    translator = tiny()
    x_t, t, condition = inputs()
    assert torch.equal(translator(x_t, t, translator.encode(condition)).output, translator(x_t, t, condition).output)


def test_without_learned_variance() -> None:
    assert tiny(learned_variance=False)(*inputs()).variance is None


def test_aligned_residuals_start_as_nothing_and_then_reach_the_output() -> None:
    translator = tiny()
    x_t, t, condition = inputs()
    tokens = translator.encode(condition)
    assert tokens.residuals is not None
    assert all(not r.any() for r in tokens.residuals)
    without = Tokens(tokens.pooled, tokens.sequence)
    assert torch.allclose(translator(x_t, t, tokens).output, translator(x_t, t, without).output, atol=1e-6)
    for k in range(len(tokens.residuals)):
        torch.nn.init.constant_(translator.get_submodule("encoder.residuals.convs")[k].bias, 0.5)
        changed = translator(x_t, t, condition).output
        assert not torch.allclose(changed, translator(x_t, t, without).output, atol=1e-6), k
        torch.nn.init.zeros_(translator.get_submodule("encoder.residuals.convs")[k].bias)


def test_residuals_are_aligned() -> None:
    """A change in one corner of the condition changes the finest residual there and not in the opposite corner."""
    spec = EncoderSpec.parse(TINY_MODEL["encoder"], "test")  # type: ignore[arg-type]
    unet = UNetSpec.parse(TINY_MODEL["unet"], "test")  # type: ignore[arg-type]
    encoder = ConditionEncoder(spec, unet.skip_shapes(), 8)
    finest = encoder.get_submodule("residuals.convs")[0]
    torch.nn.init.normal_(finest.weight)
    condition = inputs(1)[2]
    marked = condition.clone()
    marked[..., :2, :2] = 1 - marked[..., :2, :2]
    gap = (encoder(marked).residuals[0] - encoder(condition).residuals[0]).abs().sum(1)[0]  # type: ignore[index]
    assert gap[:2, :2].mean() > 5 * gap[-2:, -2:].mean()


@pytest.mark.parametrize("layers", [1, 2])
def test_skips_fit_the_unet(layers: int) -> None:
    unet = TINY_MODEL["unet"] | {"layers": layers, "channels": [16, 32, 32], "attention": [False, True, False]}
    translator = tiny(unet_spec=unet)
    assert translator(*inputs()).output.shape == (2, 3, 16, 16)


def test_upsampler_takes_a_small_image() -> None:
    translator = tiny(low_res=4)
    x_t, t, condition = inputs()
    small = torch.rand(2, 3, 4, 4)
    assert translator(x_t, t, condition, small).output.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="expects a small image"):
        translator(x_t, t, condition)
    with pytest.raises(ValueError, match="expects no small image"):
        tiny()(x_t, t, condition, small)


def test_saved_and_loaded(tmp_path) -> None:
    translator = tiny()
    translator.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    again = Translator.from_pretrained(tmp_path).eval()
    assert torch.equal(again(*inputs()).output, translator(*inputs()).output)


def test_tokens_in_batches() -> None:
    tokens = tiny().encode(inputs()[2])
    both = tokens.joined(tokens.picked([1, 1]))
    assert both.pooled.shape[0] == 4
    assert torch.equal(both.sequence[2], tokens.sequence[1])
    assert torch.equal(both.residuals[0][3], tokens.residuals[0][1])  # type: ignore[index]


def test_wrong_specs_say_what_is_wrong() -> None:
    with pytest.raises(SpecError, match="unknown key 'chanels'; did you mean 'channels'"):
        tiny(unet_spec={"chanels": [1]})
    with pytest.raises(SpecError, match="one of each for every level"):
        tiny(unet_spec={"channels": [32, 64], "attention": [True]})
    with pytest.raises(ValueError, match="make them equal"):
        tiny(unet_spec=TINY_MODEL["unet"] | {"token_width": 32})
    with pytest.raises(ValueError, match="multiple of 'patch_size'"):
        tiny(patch_size=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        tiny(unet_spec=TINY_MODEL["unet"] | {"channels": [16] * 3, "attention": [False] * 3}, image_size=20)
    with pytest.raises(ValueError, match=r"shape \[B, 3, 16, 16\], got \[2, 3, 8, 8\]"):
        tiny().encode(torch.zeros(2, 3, 8, 8))
