"""Pix2PixHD, SPADE and OASIS: sizes, what they see, gradients, precision, learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti.baselines import Baseline, BaselineError, baseline_from_config, noise_of
from piti.baselines.base import baseline_spec
from piti.baselines.discriminators import PatchDiscriminator
from piti.baselines.layers import SpectralConv2d
from piti.baselines.modulated import ModulatedNorm, level_widths
from piti.core.spec import SpecError
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec

KINDS = ("pix2pixhd", "spade", "oasis")
TINY: dict[str, dict[str, Any]] = {
    "pix2pixhd": {"channels": 8, "blocks": 1, "discriminator_channels": 8, "perceptual": 0},
    "spade": {"channels": 8, "hidden": 8, "discriminator_channels": 8, "perceptual": 0},
    "oasis": {"channels": 8, "hidden": 8, "noise": 4, "discriminator_channels": 8},
}


def tiny(kind: str, classes: bool = True, channels: int = 3, size: int = 16, **changes: Any) -> Baseline:
    torch.manual_seed(0)
    return baseline_from_config({"kind": kind, **TINY[kind], **changes}, channels, classes, size)


def whole(kind: str, size: int = 256, **changes: Any) -> Baseline:
    return baseline_from_config({"kind": kind, **changes}, 182, True, size)


def picture() -> tuple[Tensor, Tensor]:
    """A mask of three classes, one-hot [1, 3, 16, 16], and an image in the colours of its classes."""
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, 8:] = 1
    labels[:, 4:9, 3:9] = 2
    colours = torch.tensor([[-0.5, 0.2, 0.8], [-0.2, -0.2, -0.2], [0.7, -0.7, -0.6]])
    return F.one_hot(labels, 3).permute(0, 3, 1, 2).float(), colours[labels].permute(0, 3, 1, 2).contiguous()


def noise(baseline: Baseline, batch: int, seed: int = 0) -> Tensor | None:
    return noise_of(baseline, [torch.Generator().manual_seed(seed + k) for k in range(batch)], torch.device("cpu"))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks without numbers. There is no norm to be found, and looking for it takes seconds."""
    monkeypatch.setattr("torch.nn.utils.parametrizations._SpectralNorm._power_method", lambda *_: None)
    with torch.device("meta"):
        yield


# Sizes


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [("pix2pixhd", 183.0, 5.9), ("spade", 97.5, 5.9), ("oasis", 75.2, 22.3)],
)
def test_parameters_of_182_classes_at_256_px(kind: str, generator: float, discriminator: float, on_meta: None) -> None:
    """Millions. Beside the classes Pix2PixHD and SPADE see ignored pixels and edges, OASIS ignored pixels."""
    baseline = whole(kind)
    sizes = [count(baseline.generator()), count(baseline.discriminator())]
    assert [round(size / 1e6, 1) for size in sizes] == [generator, discriminator]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: str, size: int, on_meta: None) -> None:
    """At full width."""
    baseline = baseline_from_config({"kind": kind}, 5, True, size)
    generator, discriminator = baseline.generator(), baseline.discriminator()
    seen = baseline.seen(torch.zeros(2, 5, size, size))
    noise = torch.zeros(2, *baseline.noise_shape) if baseline.noise_shape else None
    images = generator(seen, noise)
    judged = discriminator(images) if kind == "oasis" else discriminator(seen, images)
    assert images.shape == (2, 3, size, size)
    if kind == "oasis":
        assert judged.shape == (2, 6, size, size)
        return
    assert [len(maps) for maps in judged] == [5, 5]
    assert [maps[-1].shape[-1] for maps in judged] == [size // 8 + 3, size // 16 + 3]


def test_the_smallest_maps() -> None:
    """8 px for SPADE and OASIS, 16 for Pix2PixHD, whatever the image: fewer levels where it is smaller."""
    assert [whole("spade", size).upsamplings for size in (16, 64, 256, 512)] == [1, 3, 5, 6]  # type: ignore[attr-defined]
    assert [whole("pix2pixhd", size).downsamplings for size in (32, 64, 256, 512)] == [1, 2, 4, 4]  # type: ignore[attr-defined]
    assert whole("spade", 64, start=4).granularity == 16
    assert level_widths(64, 5) == [1024, 1024, 512, 256, 128, 64]
    assert level_widths(64, 6) == [1024, 1024, 1024, 512, 256, 128, 64]
    assert level_widths(16, 3) == [64, 64, 32, 16]


@pytest.mark.parametrize("kind", KINDS)
def test_other_sides_than_it_was_trained_on(kind: str) -> None:
    baseline = tiny(kind, size=32)
    wide = torch.zeros(1, 3, 16, 48)
    assert baseline.generator()(baseline.seen(wide), noise(baseline, 1)).shape == (1, 3, 16, 48)


@pytest.mark.parametrize(
    ("kind", "size", "changes", "said"),
    [
        ("pix2pixhd", 64, {"downsamplings": 6}, "cannot be halved 6 times to 2 px or more; lower 'downsamplings'"),
        ("pix2pixhd", 100, {"downsamplings": 4}, "choose a size of 32, 48"),
        ("pix2pixhd", 16, {"scales": 4}, "too small to be judged at 4 'scales'"),
        ("spade", 64, {"start": 64}, "not 'start' = 64 px doubled once or more"),
        ("spade", 96, {}, "choose a 'start' of 48, 24 .*, or a size of 16, 32, 64"),
        ("oasis", 18, {"start": 9}, "choose an even 'start'"),
        ("oasis", 256, {"start": 1}, "'start' = 1: .*give at least 2"),
        ("spade", 256, {"chanels": 3}, "unknown key 'chanels'; did you mean 'channels'"),
    ],
)
def test_what_does_not_fit_is_said(kind: str, size: int, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((BaselineError, SpecError), match=said):
        whole(kind, size, **changes)


def test_oasis_needs_classes() -> None:
    with pytest.raises(BaselineError, match=r"use a mask, or pix2pixhd or spade"):
        tiny("oasis", classes=False)


def test_settings_survive() -> None:
    for kind in KINDS:
        baseline = tiny(kind)
        again = baseline_from_config(baseline.to_config(), 3, True, 16)
        assert again.to_config() == baseline.to_config()
        assert (baseline_spec({"kind": kind}).perceptual > 0) == (kind != "oasis")
        assert not baseline_spec(baseline.to_config()).perceptual
    with pytest.raises(BaselineError, match="unknown 'spadé'; did you mean 'spade'"):
        baseline_from_config({"kind": "spadé"}, 3, True, 64)
    with pytest.raises(BaselineError, match=r"missing key 'kind'; known: .*spade"):
        baseline_from_config({}, 3, True, 64)


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


# Losses


class Fixed(nn.Module):
    """A judge of two scales whose maps and logits are given; real images are those above 0."""

    def forward(self, seen: Tensor, images: Tensor) -> list[list[Tensor]]:
        value = images.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return [[value, 2 * value, 3 * value], [value, value, 5 * value]]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [  # sums of scales for Pix2PixHD, means for SPADE
        ("pix2pixhd", {"adversarial": (3 - 1) ** 2 + (5 - 1) ** 2, "features": 10 * (9 + 6) / 2, "patches": 42.0}),
        ("spade", {"adversarial": -4.0, "features": 10 * (9 + 6) / 2, "patches": (0 + 4 + 0 + 6) / 2}),
    ],
)
def test_losses_over_scales_by_hand(kind: str, wanted: dict[str, float]) -> None:
    """Fake images of 1, real ones of 4 in the generator's turn; the other way round in the discriminator's."""
    baseline, seen = tiny(kind, layers=3), torch.zeros(2, 5, 4, 4)
    fake, real = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 4.0)
    losses = baseline.generator_losses(Fixed(), seen, fake, real, None)
    losses |= baseline.discriminator_losses(Fixed(), seen, fake, torch.ones(2, 3, 4, 4), torch.zeros(2, 1))
    if kind == "pix2pixhd":  # ½ (3 − 1)² + ½ 3² + ½ (5 − 1)² + ½ 5²
        wanted = wanted | {"patches": (4 + 9 + 16 + 25) / 2}
    assert {name: loss.tolist() for name, loss in losses.items()} == {name: [x, x] for name, x in wanted.items()}


def turns(baseline: Baseline, lr: float, steps: int, batch: int = 2) -> Iterator[tuple[float, Tensor]]:
    """Learn one image: what the generator's losses are at every step, and how far it is from the image."""
    encoded, image = picture()
    seen, real = baseline.seen(encoded.repeat(batch, 1, 1, 1)), image.repeat(batch, 1, 1, 1)
    generator, judge = baseline.generator(), baseline.discriminator()
    optimizers = [torch.optim.Adam(network.parameters(), lr, (0.0, 0.9)) for network in (generator, judge)]
    draws = torch.Generator().manual_seed(5)
    for step in range(steps):
        fake = generator(seen, noise(baseline, batch, seed=batch * step))
        judge.requires_grad_(False)
        ours = torch.stack(list(baseline.generator_losses(judge, seen, fake, real, None).values())).sum(0).mean()
        judge.requires_grad_(True)
        optimizers[0].zero_grad()
        ours.backward()
        optimizers[0].step()
        uniform = torch.rand(batch, baseline.draws, generator=draws)
        theirs = baseline.discriminator_losses(judge, seen, fake.detach(), real, uniform)
        optimizers[1].zero_grad()
        torch.stack(list(theirs.values())).sum(0).mean().backward()
        optimizers[1].step()
        yield ours.item(), (fake.detach() - real).abs().mean().item()


@pytest.mark.parametrize(
    ("kind", "steps", "changes"),
    [
        ("pix2pixhd", 30, {}),
        ("spade", 40, {"hidden": 16}),
        ("oasis", 60, {"hidden": 16, "discriminator_channels": 16, "labelmix": 0}),
    ],
)
def test_it_learns_one_image(kind: str, steps: int, changes: dict[str, Any]) -> None:
    """OASIS is never shown the distance: classes alone bring it there."""
    losses, distances = zip(*turns(tiny(kind, **changes), 2e-3, steps), strict=True)
    assert sum(distances[-5:]) / 5 < 0.75 * sum(distances[:3]) / 3
    assert sum(losses[-5:]) / 5 < sum(losses[:3]) / 3


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight_and_samples_stay_apart(kind: str) -> None:
    """Also under bfloat16 autocast, in which losses and images come out in float32."""
    baseline = tiny(kind, perceptual=1)
    generator, judge = baseline.generator(), baseline.discriminator()
    encoded, real = picture()
    encoded, real = encoded.repeat(2, 1, 1, 1), torch.cat([real, -real])
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1", layers=(1,)))
    with torch.autocast("cpu", torch.bfloat16):
        seen = baseline.seen(encoded)
        fake = generator(seen, noise(baseline, 2))
        ours = baseline.generator_losses(judge, seen, fake, real, network)
        theirs = baseline.discriminator_losses(judge, seen, fake.detach(), real, torch.rand(2, baseline.draws))
    assert fake.dtype == torch.float32
    assert fake.abs().max() <= 1
    for loss in (*ours.values(), *theirs.values()):
        assert loss.shape == (2,)
        assert loss.dtype == torch.float32
    assert ours["perceptual"][0] != ours["perceptual"][1]
    for network, losses in ((generator, ours), (judge, theirs)):
        network.zero_grad()
        torch.stack(list(losses.values())).sum().backward(retain_graph=True)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_without_labelmix_and_balance() -> None:
    baseline = tiny("oasis", labelmix=0, balanced=False)
    encoded, real = picture()
    seen, judge = baseline.seen(encoded), baseline.discriminator().eval()
    losses = baseline.discriminator_losses(judge, seen, -real, real, torch.zeros(1, baseline.draws))
    assert list(losses) == ["classes"]
    with torch.no_grad():
        of_classes = F.cross_entropy(judge(real), encoded.argmax(1))
        of_fake = F.cross_entropy(judge(-real), torch.full((1, 16, 16), 3))
    torch.testing.assert_close(losses["classes"], (of_classes + of_fake)[None])
    assert baseline.draws == 4  # three classes, and what is ignored


def test_ignored_pixels_do_not_count_for_oasis() -> None:
    """Whatever the image shows there, what the generator minimises is the same."""
    baseline = tiny("oasis")
    encoded, real = picture()
    encoded[:, :, :, 12:] = 0
    seen = baseline.seen(encoded)

    class Pixelwise(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images, images[:, :1]], dim=1)

    other = real.clone()
    other[:, :, :, 12:] = 9
    losses = [baseline.generator_losses(Pixelwise(), seen, fake, real, None)["adversarial"] for fake in (real, other)]
    assert torch.equal(*losses)


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
