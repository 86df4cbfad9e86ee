"""Pix2PixHD, SPADE and OASIS: losses over scales, gradients, precision, learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti.baselines import Baseline
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from tests.baselines.tiny import KINDS, noise, picture, tiny


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
