"""Pix2PixHD, SPADE and OASIS: inputs, norms, weights and noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti.baselines import BaselineError
from piti.baselines.discriminators import PatchDiscriminator
from piti.baselines.layers import SpectralConv2d
from piti.baselines.modulated import ModulatedNorm
from tests.baselines.tiny import KINDS, noise, picture, tiny

# What is seen


def test_classes_ignored_pixels_and_edges() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, :, 10:] = 1
    labels[0, 0, 0] = 2  # ignored
    encoded = F.one_hot(labels, 3)[..., :2].permute(0, 3, 1, 2).float()
    for kind in ("pix2pixhd", "spade"):
        seen = tiny(kind, channels=2).seen(encoded)
        assert seen.shape == (1, 4, 16, 16)
        assert torch.equal(seen[:, :2], encoded)
        assert seen[0, 2].nonzero().tolist() == [[0, 0]]
        edges = torch.zeros(16, 16)
        edges[:, 9:11] = 1  # both sides of the border
        edges[0, :2] = edges[1, 0] = 1  # what is not labelled has a border too
        assert torch.equal(seen[0, 3], edges)
    seen = tiny("oasis", channels=2).seen(encoded)
    assert torch.equal(seen, torch.cat([encoded, (labels == 2)[:, None].float()], dim=1))


@pytest.mark.parametrize("kind", ["pix2pixhd", "spade"])
def test_other_conditions_are_seen_as_they_are(kind: str) -> None:
    baseline = tiny(kind, classes=False, channels=5)
    encoded = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(baseline.seen(encoded), encoded)
    assert baseline.generator()(baseline.seen(encoded), None).shape == (2, 3, 16, 16)


def test_conditions_that_do_not_fit() -> None:
    with pytest.raises(BaselineError, match=r"expected a condition \[B, 3, h, w\], got \[1, 4, 16, 16\]"):
        tiny("spade").seen(torch.zeros(1, 4, 16, 16))
    with pytest.raises(BaselineError, match=r"18 × 16 px; .* multiples of 4"):
        tiny("oasis", size=32).seen(torch.zeros(1, 3, 16, 18))


# Networks


def test_the_layout_modulates_what_is_normalised() -> None:
    """Park et al., eq. 1: γ and β of each pixel's neighbourhood, and nothing but these where they are constant."""
    torch.manual_seed(0)
    norm = ModulatedNorm(4, 2, 8)
    x, seen = torch.randn(3, 4, 6, 6) * 5 + 2, torch.zeros(3, 2, 6, 6)
    y = norm(x, seen)  # biases begin at 0: γ = β = 0
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    with torch.no_grad():
        norm.modulation.bias.copy_(torch.tensor([1.0] * 4 + [3.0] * 4))  # type: ignore[union-attr]
    torch.testing.assert_close(norm(x, seen), 2 * y + 3, atol=1e-4, rtol=1e-4)
    seen[:, :, :, 4:] = 1
    changed = (norm(x, seen) - (2 * y + 3)).abs().amax(dim=(0, 1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, True, True, True]  # two convolutions of 3 × 3


def test_weights_are_drawn_as_the_papers_say() -> None:
    pix = tiny("pix2pixhd", channels=20).generator()
    assert [m.weight.std().item() for m in pix.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)] == (
        pytest.approx([0.02] * 6, rel=0.15)
    )
    norm = ModulatedNorm(32, 16, 32)  # Glorot: σ² = gain² · 2 / (fan in + fan out)
    fans = 9 * (32 + 32)
    for half in norm.modulation.weight.chunk(2):
        assert half.std().item() == pytest.approx(0.02 * (2 / fans) ** 0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["spade", "oasis"])
def test_spectral_norms(kind: str) -> None:
    """SPADE: the generator's blocks and the judges' inner layers; OASIS: all but the first and last layers."""
    baseline = tiny(kind)
    for network, inner in (
        (baseline.generator(), "levels"),
        (baseline.discriminator(), "conv_" if kind == "oasis" else "layers."),
    ):
        normed = {name: m for name, m in network.named_modules() if isinstance(m, SpectralConv2d)}
        assert normed
        assert all(inner in name or "shortcut" in name for name in normed)
        for module in normed.values():
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.1)


def test_judges_see_each_image_by_itself() -> None:
    torch.manual_seed(0)
    for spectral in (False, True):
        judge = PatchDiscriminator(3, [8, 16, 16], spectral).eval()
        x = torch.randn(3, 3, 16, 16)
        for together, alone in zip(judge(x), judge(x[1:2]), strict=True):
            torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_noise_changes_the_picture() -> None:
    baseline = tiny("oasis", channels=3)
    generator, seen = baseline.generator().eval(), baseline.seen(picture()[0])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(5)  # at the start weights, and what noise does, are small
        one, other = (generator(seen, noise(baseline, 1, seed)) for seed in (0, 1))
    assert torch.equal(one, generator(seen, noise(baseline, 1, 0)))
    assert (one - other).abs().max() > 1e-4


def test_noise_of_its_own_for_every_pixel() -> None:
    """Given for every pixel, alike: the same picture. Changed in a corner: another picture there, the rest as it is."""
    baseline = tiny("oasis", size=32, start=16)
    generator, seen = baseline.generator().eval(), baseline.seen(F.interpolate(picture()[0], scale_factor=2))
    drawn = noise(baseline, 1)
    assert drawn is not None
    everywhere = drawn.expand(-1, -1, 32, 32).clone()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(5)
        plain = generator(seen, drawn)
        assert torch.equal(generator(seen, everywhere), plain)
        everywhere[:, :, :4, :4] += 3
        changed = (generator(seen, everywhere) - plain).abs().amax(dim=1)[0]
    assert changed[:4, :4].min() > 0
    assert changed[24:, 24:].max() == 0
    for wrong in (None, torch.zeros(1, 4), torch.zeros(1, 4, 16, 16), torch.zeros(2, 4, 1, 1)):
        with pytest.raises(BaselineError, match=r"expected noise \[1, 4, 1, 1\] or \[1, 4, 32, 32\], got"):
            generator(seen, wrong)


def test_the_others_take_no_noise() -> None:
    for kind in ("pix2pixhd", "spade"):
        assert noise(tiny(kind), 2) is None


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_weights_are_found_outside_autocast(kind: str) -> None:
    """A GPU would round the power iteration (a CPU does not)."""
    from torch.nn.utils.parametrize import register_parametrization

    seen: list[bool] = []

    class Probe(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return weight

    baseline = tiny(kind)
    generator = baseline.generator()
    normed = [module for module in generator.modules() if isinstance(module, SpectralConv2d)]
    for module in normed:
        register_parametrization(module, "weight", Probe())
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        generator(baseline.seen(picture()[0]), noise(baseline, 1))
    assert len(seen) == len(normed)
    assert not any(seen)
    assert bool(normed) == (kind != "pix2pixhd")
