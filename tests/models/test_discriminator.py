"""The patch discriminator: the standard architecture, receptive field, normalisation, saving, learning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.diffusion.losses import ADVERSARIAL, gradient_penalty
from piti.models.discriminator import DiscriminatorEnsemble, DiscriminatorSpec, PatchDiscriminator, all_logits
from piti.models.perceptual import PerceptualNetwork


def tiny(**changes: object) -> PatchDiscriminator:
    torch.manual_seed(0)
    values = {"channels": [8, 12, 16], "conditional": False} | changes
    return PatchDiscriminator(DiscriminatorSpec.parse(values, "test"))


def images(batch: int = 2, side: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def weights(discriminator: PatchDiscriminator) -> list[Tensor]:
    return [conv.weight.detach().clone() for conv in discriminator.convs]  # type: ignore[union-attr]


def power_iterations(discriminator: PatchDiscriminator) -> list[Tensor]:
    return [x.clone() for key, x in discriminator.state_dict().items() if key.endswith(("._u", "._v"))]


def test_the_default_is_the_standard_70_by_70_patchgan() -> None:
    """Against the sequence that Isola et al. describe, with the same weights."""
    torch.manual_seed(0)
    ours = PatchDiscriminator(DiscriminatorSpec(norm="instance", conditional=False))
    assert sum(p.numel() for p in ours.parameters()) == 2_764_737
    standard = nn.Sequential(
        *(nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, 128, 4, 2, 1), nn.InstanceNorm2d(128), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(128, 256, 4, 2, 1), nn.InstanceNorm2d(256), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(256, 512, 4, 1, 1), nn.InstanceNorm2d(512), nn.LeakyReLU(0.2)),
        nn.Conv2d(512, 1, 4, 1, 1),
    )
    standard.load_state_dict(dict(zip(standard.state_dict(), ours.state_dict().values(), strict=True)))
    x = images(side=48)
    torch.testing.assert_close(ours(x), standard(x), atol=1e-5, rtol=1e-4)
    assert ours(x).shape == (2, 1, 4, 4)


def test_size_of_the_conditional_one() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator(DiscriminatorSpec())
    assert sum(p.numel() for p in discriminator.parameters()) == 2_764_737 + 3 * 64 * 16
    assert tiny(channels=[4] * 4, conditional=True)(images(1, 256), images(1, 64)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("depth", "side"), [(1, 7), (2, 16), (3, 34), (4, 70)])
def test_what_a_logit_sees(depth: int, side: int) -> None:
    """Isola et al., section 6.1.2: the gradient of one logit covers a square of that side, and no more."""
    discriminator = tiny(channels=[4] * depth, norm="none")
    x = images(1, 160).requires_grad_()
    logits = discriminator(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        places = seen.any(dim=axis).nonzero().flatten()
        assert int(places[-1] - places[0]) + 1 == side


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_smallest_image(depth: int) -> None:
    discriminator = tiny(channels=[4] * depth, norm="instance")
    side = discriminator.spec.min_side
    assert discriminator(images(1, side)).shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match=f"at least {side} px a side, got {side - 1} × {side - 1}"):
        discriminator(images(1, side - 1))


def test_the_small_image_is_enlarged_bilinearly_beside_the_large_one() -> None:
    conditional, six = tiny(conditional=True, norm="none"), PatchDiscriminator(tiny(norm="none").spec, in_channels=6)
    six.load_state_dict(conditional.state_dict())
    large, small = images(), images(side=6, seed=1)
    joined = torch.cat([large, F.interpolate(small, (24, 24), mode="bilinear", align_corners=False)], dim=1)
    assert torch.equal(conditional(large, small), six(joined))
    assert not torch.allclose(conditional(large, small), conditional(large, -small))


def test_a_small_image_too_many_or_too_few() -> None:
    with pytest.raises(UserError, match="needs the small image 'low_res', got none"):
        tiny(conditional=True)(images())
    with pytest.raises(UserError, match="takes no small image 'low_res', got one"):
        tiny()(images(), images(side=6))


def test_spectral_norm_bounds_every_weight() -> None:
    discriminator = tiny()
    for _ in range(30):
        discriminator(images())
    assert len(discriminator.convs) == 4
    for weight in weights(discriminator):
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)
    for weight in weights(tiny(norm="none")):
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() != pytest.approx(1, abs=0.1)


def test_the_estimate_of_the_norm_moves_in_training_only() -> None:
    discriminator = tiny()
    before = power_iterations(discriminator)
    discriminator.eval()(images())
    assert all(map(torch.equal, before, power_iterations(discriminator)))
    discriminator.train()(images())
    assert not all(map(torch.equal, before, power_iterations(discriminator)))


@pytest.mark.parametrize("norm", ["spectral", "instance", "none"])
def test_bfloat16_autocast(norm: str) -> None:
    exact, rounded = tiny(norm=norm), tiny(norm=norm)
    want = exact(images())
    with torch.autocast("cpu", torch.bfloat16):
        logits = rounded(images())
    torch.testing.assert_close(logits.float(), want, atol=0.02 * want.abs().max().item() + 1e-3, rtol=0.02)
    assert all(map(torch.equal, power_iterations(exact), power_iterations(rounded)))
    logits.float().sum().backward()
    for parameter in rounded.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_norms_of_weights_are_found_outside_autocast() -> None:
    """A GPU would round the power iteration (a CPU does not)."""
    seen: list[bool] = []

    class Probe(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return weight

    discriminator = tiny()
    for conv in discriminator.convs:
        register_parametrization(conv, "weight", Probe())
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(images())
    assert logits.dtype == torch.bfloat16
    assert len(seen) == len(discriminator.convs)
    assert not any(seen)


@pytest.mark.parametrize("norm", ["spectral", "instance", "none"])
def test_saved_and_resumed(norm: str, tmp_path: Path) -> None:
    """Bit-identical logits, also those of the following training steps."""
    discriminator = tiny(norm=norm)
    list(train(discriminator, "hinge", steps=2))
    torch.save(discriminator.state_dict(), tmp_path / "d.pt")
    torch.manual_seed(7)
    again = PatchDiscriminator(discriminator.spec)
    again.load_state_dict(torch.load(tmp_path / "d.pt", weights_only=True))
    assert torch.equal(again.eval()(images()), discriminator.eval()(images()))
    losses = [list(train(each.train(), "hinge", steps=2)) for each in (again, discriminator)]
    assert losses[0] == losses[1]
    assert torch.equal(again.eval()(images()), discriminator.eval()(images()))


def textures(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two kinds of image alike in mean and variance: independent pixels, and spots of 2 × 2 pixels."""
    fine = torch.randn(batch, 3, 24, 24, generator=generator)
    coarse = torch.randn(batch, 3, 12, 12, generator=generator)
    return fine, coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def train(discriminator: PatchDiscriminator, form: str, steps: int) -> Iterator[float]:
    loss, generator = ADVERSARIAL[form], torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    for _ in range(steps):
        real, fake = textures(8, generator)
        total = loss.discriminator(discriminator(real), discriminator(fake)).mean()
        if loss.gradient_penalty:
            share = torch.rand(len(real), generator=generator)
            total = total + loss.gradient_penalty * gradient_penalty(discriminator, real, fake, share).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        yield total.item()


def told_apart(discriminator: PatchDiscriminator) -> float:
    """Share of pairs, one image of each kind, in which the real one has the higher logit."""
    with torch.no_grad():
        real, fake = (
            discriminator.eval()(x).mean(dim=(1, 2, 3)) for x in textures(64, torch.Generator().manual_seed(9))
        )
    discriminator.train()
    return (real[:, None] > fake[None]).float().mean().item()


@pytest.mark.parametrize(("form", "norm"), [("hinge", "spectral"), ("non_saturating", "instance"), ("wgan_gp", "none")])
def test_it_learns_to_tell_textures_apart(form: str, norm: str) -> None:
    discriminator = tiny(norm=norm)
    assert told_apart(discriminator) < 0.9
    losses = list(train(discriminator, form, steps=60))
    assert told_apart(discriminator) > 0.99
    assert sum(losses[-5:]) < sum(losses[:5])


def test_wrong_specs_say_what_is_wrong() -> None:
    with pytest.raises(SpecError, match="unknown key 'chanels'; did you mean 'channels'"):
        tiny(chanels=[1])
    for channels in ([], [8, 0]):
        with pytest.raises(SpecError, match="one or more widths"):
            tiny(channels=channels)
    with pytest.raises(SpecError, match="'norm' = 'batch'"):
        tiny(norm="batch")


# Heads on frozen features


FEATURES = {"network": "squeezenet1_1", "layers": [1, 3]}


def ensemble(condition_channels: int = 4, **changes: object) -> DiscriminatorEnsemble:
    torch.manual_seed(0)
    values = {"channels": [8, 12], "features": FEATURES, "feature_width": 8, "condition": True} | changes
    spec = DiscriminatorSpec.parse(values, "test")
    assert spec.features is not None
    return DiscriminatorEnsemble(spec, PerceptualNetwork(spec.features), condition_channels)


def test_an_ensemble_judges_pixels_and_every_layer() -> None:
    condition = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    logits = ensemble()(images(side=64), images(side=16), condition)
    assert [list(one.shape) for one in logits] == [[2, 1, 30, 30], [2, 1, 31, 31], [2, 1, 15, 15]]
    assert [list(one.shape) for one in ensemble(pixels=False)(images(side=64), images(side=16), condition)] == [
        [2, 1, 31, 31],
        [2, 1, 15, 15],
    ]
    assert all_logits(logits[0]) == (logits[0],)


def test_every_logit_sees_the_condition_and_the_small_image() -> None:
    network = ensemble().eval()
    image, small = images(side=64), images(side=16)
    condition = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    before = network(image, small, condition)
    for other in (network(image, small.flip(-1), condition), network(image, small, condition.flip(-1))):
        assert all(not torch.allclose(a, b) for a, b in zip(before, other, strict=True))


def test_the_frozen_network_is_neither_trained_nor_saved_and_passes_gradients() -> None:
    network = ensemble()
    assert network.frozen is not None
    assert not any(key.startswith(("_frozen", "frozen")) for key in network.state_dict())
    assert {id(p) for p in network.parameters()}.isdisjoint({id(p) for p in network.frozen.parameters()})
    image = images(side=64).requires_grad_()
    for one in network(image, images(side=16), torch.zeros(2, 4, 64, 64))[1:]:
        (slope,) = torch.autograd.grad(one.sum(), image, retain_graph=True)
        assert slope.abs().sum() > 0
    assert all(p.grad is None for p in network.frozen.parameters())


def test_features_of_any_size_are_judged_alike() -> None:
    """They enter with unit length: only the last channel knows how large they were."""
    head = ensemble().heads[0]
    features = torch.rand(1, 64, 5, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    with torch.no_grad():
        head.features.parametrizations.weight.original[:, -1] = 0  # type: ignore[union-attr, index]
        told = torch.zeros(1, 7, 10, 10)
        torch.testing.assert_close(head.eval()(features, told), head(50 * features, told), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "given", "says"),
    [
        ({}, (images(side=64), images(side=16), None), "needs a condition, got none"),
        ({"condition": False}, (images(side=64), images(side=16), torch.zeros(2, 4, 64, 64)), "takes no condition"),
        ({}, (images(side=4), images(side=1), torch.zeros(2, 4, 4, 4)), "images of at least 6 px"),
    ],
)
def test_an_ensemble_refuses_what_it_cannot_see(changes: dict[str, object], given: tuple, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ensemble(**changes)(*given)


def test_something_must_be_judged() -> None:
    with pytest.raises(SpecError, match="nothing would be judged"):
        DiscriminatorSpec.parse({"pixels": False}, "test")
