"""Encoders, the UNet and the translator: sizes, shapes, alignment, saving."""

from __future__ import annotations

import pytest
import torch

from piti.core.spec import SpecError
from piti.models import ConditionEncoder, EncoderSpec, Tokens, Translator, UNetSpec, build_unet
from piti.models.wiring import Wiring
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
    places = list(Wiring.of(build_unet(unet, 8, 12, 24).config).aligned)
    encoder = ConditionEncoder(spec, places, 8)
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


UNCONDITIONAL = {
    "encoder_spec": None,
    "unet_spec": {
        "channels": [16, 32], "attention": [False, False], "layers": 1, "token_width": None, "norm_groups": 8
    },
}  # fmt: skip


def test_without_a_condition_any_size_will_do() -> None:
    translator = tiny(**UNCONDITIONAL, low_res=4)
    assert translator.encoder is None
    assert translator.granularity == 4
    x_t, t, condition = inputs()
    tokens = translator.encode(condition)
    assert tokens.joined(tokens.picked([1])).pooled.shape == (3, 0)
    small = torch.rand(2, 3, 4, 4)
    out = translator(x_t, t, tokens, small).output
    assert torch.equal(out, translator(x_t, t, condition * 0, small).output)
    assert not torch.allclose(out, translator(x_t, t, tokens, 1 - small).output, atol=1e-6)
    assert not torch.allclose(out, translator(x_t, t + 100, tokens, small).output, atol=1e-6)
    wide = translator(torch.randn(1, 3, 16, 36), t[:1], tokens.picked([0]), torch.rand(1, 3, 4, 9))
    assert wide.output.shape == (1, 3, 16, 36)


def test_a_translator_without_condition_survives_saving(tmp_path) -> None:
    translator = tiny(**UNCONDITIONAL, low_res=4, detail=0.2, steps=1000)
    assert translator.preconditioning is not None
    translator.preconditioning.set_noise(torch.linspace(0.999, 0.001, 1000).double())
    translator.save_pretrained(tmp_path)
    x_t, t, condition = inputs()
    again = Translator.from_pretrained(tmp_path).eval()
    small = torch.rand(2, 3, 4, 4)
    assert torch.equal(again(x_t, t, condition, small).output, translator(x_t, t, condition, small).output)


def test_the_preconditioned_upsampler_is_the_best_guess_where_the_unet_says_nothing() -> None:
    """For a Gaussian residual the posterior mean of x₀ is linear in x_t, and F has nothing to add."""
    translator = tiny(**UNCONDITIONAL, low_res=4, detail=0.2, steps=1000)
    x_t, t, condition = inputs()
    small = torch.rand(2, 3, 4, 4)
    alphas_cumprod = torch.linspace(0.999, 0.001, 1000).double()
    assert translator.preconditioning is not None
    translator.preconditioning.set_noise(alphas_cumprod)
    for parameter in translator.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")
    alpha, variance = (part.float().view(-1, 1, 1, 1) for part in (alphas_cumprod[t].sqrt(), 1 - alphas_cumprod[t]))
    gain = 0.2**2 * alpha / (0.2**2 * alpha**2 + variance)  # of a Kalman filter
    expected = large + gain * (x_t - alpha * large)
    torch.testing.assert_close(translator(x_t, t, condition, small).output, expected, atol=1e-5, rtol=1e-4)


def test_the_preconditioned_input_has_unit_variance_at_any_noise() -> None:
    translator = tiny(**UNCONDITIONAL, low_res=4, detail=0.2, steps=1000)
    preconditioning = translator.preconditioning
    assert preconditioning is not None
    alphas_cumprod = torch.linspace(0.9999, 0.0001, 1000).double()
    preconditioning.set_noise(alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(1, 3, 64, 64, generator=generator)
    for t in (0, 10, 500, 999):
        x0 = large + 0.2 * torch.randn(large.shape, generator=generator)
        alpha, sigma = alphas_cumprod[t].sqrt().float(), (1 - alphas_cumprod[t]).sqrt().float()
        x_t = alpha * x0 + sigma * torch.randn(large.shape, generator=generator)
        seen = preconditioning(x_t, large, torch.tensor([t]))
        assert float(seen.std()) == pytest.approx(1, abs=0.05)
        s = sigma / alpha
        scale = s * 0.2 / (s**2 + 0.2**2).sqrt()
        target = (x0 - preconditioning.image(torch.zeros_like(x_t), x_t, large, torch.tensor([t]))) / scale
        assert float(target.std()) == pytest.approx(1, abs=0.05)


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
    with pytest.raises(ValueError, match="'low_res' 5 does not chain with 'image_size' 16"):
        tiny(low_res=5)
    with pytest.raises(ValueError, match=r"'detail' 0\.1 is for upsamplers"):
        tiny(detail=0.1)
    with pytest.raises(ValueError, match="an encoder is given, but the UNet's 'token_width' is null"):
        tiny(unet_spec=UNCONDITIONAL["unet_spec"])
    with pytest.raises(SpecError, match="'attention' is true at a level; make all false"):
        tiny(encoder_spec=None, unet_spec=TINY_MODEL["unet"] | {"token_width": None})
    for shape in ((2, 3, 16, 18), (2, 4, 16, 16), (2, 3, 0, 16)):
        with pytest.raises(ValueError, match=r"\[B, 3, H, W\], H and W multiples of 4 \(trained at 16\), got \[2, "):
            tiny().encode(torch.zeros(*shape))


class TestAnyShape:
    def test_positions_on_the_trained_grid_are_the_learned_ones(self) -> None:
        encoder = tiny().get_submodule("encoder")
        found = encoder.positions_on(4, 4)
        assert found.data_ptr() == encoder.positions[:, 1:].data_ptr()
        assert torch.equal(found, encoder.positions[:, 1:])

    def test_positions_on_another_grid_span_the_trained_one(self) -> None:
        """A ramp over the square becomes a ramp over the whole, whichever way it runs."""
        encoder = tiny().get_submodule("encoder")
        ramp = torch.arange(4.0)
        with torch.no_grad():
            encoder.positions.zero_()
            encoder.positions[0, 1:, 0] = ramp.repeat_interleave(4)  # down the rows
            encoder.positions[0, 1:, 1] = ramp.repeat(4)  # along the columns
            encoder.positions[0, 0] = 7.0  # of the pooled token
        found = encoder.positions_on(4, 8).view(4, 8, -1)
        torch.testing.assert_close(found[..., 0], ramp[:, None].expand(4, 8))
        middle = (torch.arange(8.0) + 0.5) / 2 - 0.5
        torch.testing.assert_close(found[:, 2:6, 1], middle[2:6].expand(4, 4), atol=0.1, rtol=0)
        assert (found[0, :, 1].diff() > 0).all()
        assert not found[..., 2:].any()
        turned = encoder.positions_on(8, 4).view(8, 4, -1).transpose(0, 1)
        torch.testing.assert_close(turned[..., [1, 0]], found[..., :2])

    @pytest.mark.parametrize("shape", [(16, 32), (32, 16), (12, 20), (8, 8)])
    def test_shapes(self, shape: tuple[int, int]) -> None:
        translator = tiny(low_res=8)
        small = (shape[0] // 2, shape[1] // 2)
        x_t, condition = torch.randn(2, 3, *shape), torch.rand(2, 3, *shape)
        tokens = translator.encode(condition)
        assert tokens.sequence.shape[1] == shape[0] * shape[1] // 16
        assert tokens.residuals is not None
        assert tokens.residuals[0].shape[-2:] == small
        out = translator(x_t, torch.tensor(5), tokens, torch.rand(2, 3, *small))
        assert out.output.shape == out.variance.shape == x_t.shape

    def test_residuals_are_aligned_on_any_shape(self) -> None:
        encoder = tiny().get_submodule("encoder")
        torch.nn.init.normal_(encoder.get_submodule("residuals.convs")[0].weight)
        condition = torch.rand(1, 3, 16, 48)
        marked = condition.clone()
        marked[..., :4, -4:] = 1 - marked[..., :4, -4:]
        gap = (encoder(marked).residuals[0] - encoder(condition).residuals[0]).abs().sum(1)[0]
        assert gap.shape == (8, 24)
        assert gap[:2, -2:].mean() > 5 * gap[:2, :12].mean()
        assert gap[:2, -2:].mean() > 5 * gap[-2:, -2:].mean()

    def test_what_does_not_fit_is_refused(self) -> None:
        translator = tiny()
        with pytest.raises(ValueError, match="images of 16 x 18: this translator's sides are multiples of 4; pad"):
            translator(torch.zeros(1, 3, 16, 18), torch.tensor(5), torch.zeros(1, 3, 16, 16))
        with pytest.raises(ValueError, match="images of 16 x 32: their condition lies over 16 x 16; resize one"):
            translator(torch.zeros(1, 3, 16, 32), torch.tensor(5), torch.zeros(1, 3, 16, 16))
