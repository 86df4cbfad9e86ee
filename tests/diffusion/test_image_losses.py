"""Perceptual and adversarial losses, the gradient penalty and their share of timesteps, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.losses import ADVERSARIAL, acts_at, adversarial_named, gradient_penalty, perceptual_loss

FORMS = sorted(ADVERSARIAL)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def shares(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=seeded(seed))


def two_layers(seed: int) -> list[Tensor]:
    return [noise(3, 4, 6, 6, seed=seed), noise(3, 8, 3, 3, seed=seed + 100)]


# Perceptual


def test_equal_features_have_no_distance() -> None:
    assert torch.equal(perceptual_loss(two_layers(0), two_layers(0), [1.0, 2.0]), torch.zeros(3))


def test_layers_are_weighted_means_of_absolute_differences() -> None:
    real = two_layers(0)
    shift = torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1, 1)  # one a sample
    loss = perceptual_loss([real[0] + shift, real[1] - 3 * shift], real, [0.25, 2.0])
    torch.testing.assert_close(loss, shift.abs().flatten() * (0.25 + 2.0 * 3))


def test_the_released_perceptual_loss_squares() -> None:
    real = [torch.zeros(2, 3, 4, 4)]
    shifted = [torch.full((2, 3, 4, 4), 0.5)]
    assert perceptual_loss(shifted, real, [2.0]).tolist() == [1.0, 1.0]
    assert perceptual_loss(shifted, real, [2.0], squared=True).tolist() == [0.5, 0.5]


def test_perceptual_gradient_reaches_the_prediction_only() -> None:
    predicted, real = [x.requires_grad_() for x in two_layers(0)], [x.requires_grad_() for x in two_layers(1)]
    perceptual_loss(predicted, real, [1.0, 0.5]).sum().backward()
    assert all(x.grad is None for x in real)
    for ours, theirs, weight in zip(predicted, real, [1.0, 0.5], strict=True):
        torch.testing.assert_close(ours.grad, weight * (ours - theirs).detach().sign() / ours[0].numel())


def test_half_precision_features_are_compared_in_float32() -> None:
    real = torch.full((1, 1, 64, 64), 100.0, dtype=torch.bfloat16)
    loss = perceptual_loss([real.float() + 0.125], [real], [1.0])
    assert loss.dtype == torch.float32
    assert loss.item() == 0.125  # bfloat16 knows no 100.125
    assert perceptual_loss([real], [real + 1], [1.0]).dtype == torch.float32


def test_features_that_do_not_correspond() -> None:
    real = two_layers(0)
    with pytest.raises(UserError, match="2 predicted and 2 real maps, 1 weights"):
        perceptual_loss(real, real, [1.0])
    with pytest.raises(UserError, match="0 predicted"):
        perceptual_loss([], [], [])
    with pytest.raises(UserError, match=r"\[3, 4, 6, 6\] and real ones \[3, 1, 6, 6\]"):  # would broadcast
        perceptual_loss(real, [real[0][:, :1], real[1]], [1.0, 1.0])


# Adversarial


def test_known_logits() -> None:
    real, fake = torch.tensor([[[[2.0, 0.5]]], [[[0.0, -1.0]]]]), torch.tensor([[[[-3.0, 0.25]]], [[[1.0, 0.0]]]])
    hinge, wasserstein = ADVERSARIAL["hinge"], ADVERSARIAL["wgan_gp"]
    torch.testing.assert_close(hinge.discriminator(real, fake), torch.tensor([0.25 + 0.625, 1.5 + 1.5]))
    torch.testing.assert_close(wasserstein.discriminator(real, fake), torch.tensor([-1.375 - 1.25, 0.5 + 0.5]))
    for form in (hinge, wasserstein):
        torch.testing.assert_close(form.generator(fake), torch.tensor([1.375, -0.5]))


def test_non_saturating_is_cross_entropy() -> None:
    real, fake = 3 * noise(4, 1, 2, 2), 3 * noise(4, 1, 2, 2, seed=1)
    form = ADVERSARIAL["non_saturating"]
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    entropy = F.binary_cross_entropy_with_logits
    want = entropy(real, one, reduction="none") + entropy(fake, zero, reduction="none")
    torch.testing.assert_close(form.discriminator(real, fake), want.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(form.generator(fake), entropy(fake, one, reduction="none").mean(dim=(1, 2, 3)))
    torch.testing.assert_close(form.generator(fake), F.softplus(-fake).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_at_a_time_is_the_whole_batch(form: str) -> None:
    loss, real, fake = ADVERSARIAL[form], noise(5, 1, 3, 3), noise(5, 1, 3, 3, seed=1)
    whole = loss.discriminator(real, fake)
    assert whole.shape == (5,)
    alone = torch.stack([loss.discriminator(real[[k]], fake[[k]])[0] for k in range(5)])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole.mean(), loss.discriminator(real.view(1, -1), fake.view(1, -1))[0])
    torch.testing.assert_close(loss.generator(fake).mean(), loss.generator(fake.view(1, -1))[0])
    torch.testing.assert_close(loss.generator(fake.flatten()), loss.generator(fake.view(-1, 1)))  # one logit a sample


@pytest.mark.parametrize("form", FORMS)
def test_who_wants_what(form: str) -> None:
    """The discriminator raises real logits and lowers fake ones, the generator raises them."""
    loss = ADVERSARIAL[form]
    real, fake = torch.zeros(2, 1, 1, 1).requires_grad_(), torch.zeros(2, 1, 1, 1).requires_grad_()
    loss.discriminator(real, fake).sum().backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    hopeless = torch.full((2, 1, 1, 1), -20.0).requires_grad_()
    loss.generator(hopeless).sum().backward()
    torch.testing.assert_close(hopeless.grad, torch.full_like(hopeless, -1))  # and does not saturate


def test_the_best_discriminators() -> None:
    """Where real images have density p and fake ones q: log(p/q) for cross-entropy, sign(p − q) for hinge."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])

    def expected(form: str, logits: Tensor) -> Tensor:
        loss, nothing = ADVERSARIAL[form].discriminator, torch.zeros(3)
        return (p * loss(logits, nothing) + q * loss(nothing, logits)).sum()

    best = (p / q).log().requires_grad_()
    expected("non_saturating", best).backward()
    torch.testing.assert_close(best.grad, torch.zeros(3), atol=1e-6, rtol=0)
    best = (p - q).sign()
    for k in range(3):
        for change in (-0.5, 0.5):
            worse = best + change * F.one_hot(torch.tensor(k), 3)
            assert expected("hinge", worse) > expected("hinge", best) + 0.01


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_logits_give_float32_losses(form: str) -> None:
    logits = noise(2, 1, 2, 2).to(torch.bfloat16)
    assert ADVERSARIAL[form].discriminator(logits, logits).dtype == torch.float32
    assert ADVERSARIAL[form].generator(logits).dtype == torch.float32


def test_by_name() -> None:
    assert adversarial_named("hinge") is ADVERSARIAL["hinge"]
    assert {name: ADVERSARIAL[name].gradient_penalty for name in FORMS} == {
        "hinge": 0,
        "non_saturating": 0,
        "wgan_gp": 10,
    }
    with pytest.raises(UserError, match="unknown adversarial loss 'wgan'; did you mean 'wgan_gp'"):
        adversarial_named("wgan")


# Gradient penalty


def test_a_linear_critic_has_one_slope_everywhere() -> None:
    w = noise(1, 3, 4, 4, seed=2).requires_grad_()
    real, fake = noise(5, 3, 4, 4), noise(5, 3, 4, 4, seed=1)
    penalty = gradient_penalty(lambda x: (x * w).sum(dim=(1, 2, 3)), real, fake, shares(5))
    length = w.detach().norm()
    torch.testing.assert_close(penalty, ((length - 1) ** 2).expand(5))
    penalty.mean().backward()
    torch.testing.assert_close(w.grad, 2 * (length - 1) * w.detach() / length)


def test_the_critic_is_the_mean_of_its_patches() -> None:
    w, b = noise(1, 3, 4, 4, seed=2), torch.arange(6.0).view(1, 1, 2, 3)
    real, fake = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    patches = gradient_penalty(lambda x: (x * w).sum(dim=(1, 2, 3), keepdim=True) * b, real, fake, shares(2))
    torch.testing.assert_close(patches, ((2.5 * w.norm() - 1) ** 2).expand(2))


def test_the_slope_is_taken_between_real_and_fake() -> None:
    """The critic ‖x‖²/2 has slope x, whose length tells where on the way from real to fake it was taken."""
    fake = noise(200, 1, 4, 4)
    fake = 8 * fake / fake.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # x̂ = (1 − u) x̃, of length 8 (1 − u)

    def critic(x: Tensor) -> Tensor:
        return x.square().sum(dim=(1, 2, 3)) / 2

    penalty = gradient_penalty(critic, torch.zeros_like(fake), fake, shares(200))
    assert torch.equal(penalty, gradient_penalty(critic, torch.zeros_like(fake), fake, shares(200)))
    assert not torch.equal(penalty, gradient_penalty(critic, torch.zeros_like(fake), fake, shares(200, 1)))
    # E (8 s − 1)², s uniform on [0, 1], is 64/3 − 8 + 1
    assert abs(penalty.mean().item() - (64 / 3 - 7)) < 3 * penalty.std().item() / math.sqrt(200)
    assert penalty.max() <= 49.001
    assert penalty.unique().numel() > 190  # every sample has a place of its own
    torch.testing.assert_close(gradient_penalty(critic, fake, fake, shares(200)), torch.full((200,), 49.0))


def test_the_penalty_is_differentiable_in_the_critic() -> None:
    real, fake = noise(2, 1, 4, 4, dtype=torch.float64), noise(2, 1, 4, 4, seed=1, dtype=torch.float64)
    w = noise(2, 1, 3, 3, seed=2, dtype=torch.float64).requires_grad_()

    def of(w: Tensor) -> Tensor:
        return gradient_penalty(lambda x: F.conv2d(x, w).tanh(), real, fake, shares(2))

    assert torch.autograd.gradcheck(of, w)


def test_a_flat_critic_gets_a_finite_gradient() -> None:
    w = torch.zeros(1, 3, 4, 4).requires_grad_()
    images = noise(2, 3, 4, 4).requires_grad_()
    penalty = gradient_penalty(lambda x: (x * w).sum(dim=(1, 2, 3)), images, images, shares(2))
    torch.testing.assert_close(penalty, torch.ones(2))
    penalty.sum().backward()
    assert w.grad is not None
    assert w.grad.isfinite().all()
    assert images.grad is None


def test_the_penalty_keeps_its_precision_under_autocast() -> None:
    real, fake = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    w = noise(4, 3, 3, 3, seed=2)

    def of(x: Tensor) -> Tensor:
        return F.conv2d(x, w).tanh()

    want = gradient_penalty(of, real, fake, shares(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(of, real, fake, shares(2)), want)


# Timesteps


def test_rows_within_a_share_of_the_timesteps() -> None:
    t = torch.tensor([0, 1, 299, 300, 999])
    assert acts_at(t, 1000, (0.0, 0.3)).tolist() == [True, True, True, False, False]
    assert acts_at(t, 1000, (0.0, 1.0)).all()
    assert acts_at(t, 1000, (0.001, 0.3)).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("steps", [7, 27, 100, 1000])
def test_two_shares_part_the_timesteps(steps: int) -> None:
    t = torch.arange(steps)
    for percent in range(1, 100):
        low, high = acts_at(t, steps, (0.0, percent / 100)), acts_at(t, steps, (percent / 100, 1.0))
        assert torch.equal(low, ~high)
        assert low.sum() == -(-percent * steps // 100)  # t < percent/100 · T, in whole numbers


@pytest.mark.parametrize("share", [(0.5, 0.5), (-0.1, 0.5), (0.0, 1.5), (0.8, 0.2)])
def test_no_share_of_the_timesteps(share: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="0 ≤ low < high ≤ 1"):
        acts_at(torch.tensor([1]), 10, share)
