"""Losses of the baselines against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from piti.baselines.losses import (
    LEAST_SQUARES,
    check_sizes,
    class_loss,
    class_weights,
    fake_loss,
    feature_matching,
    label_mix,
    label_mix_consistency,
    least_squares_generator,
    mix,
    perceptual_difference,
)
from piti.core.errors import UserError
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_least_squares() -> None:
    logits = torch.tensor([[[1.0, 3.0]], [[0.0, -2.0]]])
    assert least_squares_generator(logits).tolist() == [2.0, 5.0]  # (0 + 4)/2, (1 + 9)/2
    assert LEAST_SQUARES.discriminator(logits, 1 - logits).tolist() == [2.0, 5.0]  # both halves alike
    assert LEAST_SQUARES.discriminator(torch.ones(2, 1), torch.zeros(2, 1)).tolist() == [0.0, 0.0]


def test_feature_matching_sums_mean_differences_of_layers() -> None:
    fake = [torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 5, 2, 2, requires_grad=True)]
    real = [torch.full((2, 3, 4, 4), 0.5, requires_grad=True), torch.full((2, 5, 2, 2), -2.0, requires_grad=True)]
    loss = feature_matching(fake, real)
    assert loss.tolist() == [2.5, 2.5]
    loss.sum().backward()
    assert all(x.grad is None for x in real)
    slopes = [x.grad.unique().item() * x[0].numel() for x in fake if x.grad is not None]
    assert slopes == pytest.approx([-1, 1])


def test_feature_matching_keeps_samples_apart() -> None:
    real = noise(3, 2, 4, 4)
    fake = real.clone()
    fake[1] += 1
    torch.testing.assert_close(feature_matching([fake], [real]), torch.tensor([0.0, 1.0, 0.0]))


def test_perceptual_difference_has_a_gradient_for_the_fake_image_alone() -> None:
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1", layers=(1,), layer_weights=(3.0,)))
    fake, real = noise(2, 3, 16, 16).requires_grad_(), noise(2, 3, 16, 16, seed=1).requires_grad_()
    loss = perceptual_difference(fake, real, network)
    with torch.no_grad():
        want = 3 * (network(fake)[0] - network(real)[0]).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, want)
    loss.sum().backward()
    assert fake.grad is not None
    assert real.grad is None
    with pytest.raises(UserError, match="set the baseline's 'perceptual' to 0"):
        perceptual_difference(fake, real, None)


LABELS = torch.tensor([[[0, 0, 0, 2], [0, 0, 2, 3]]])  # of classes 0, 1, 2; 3 is ignored


def test_class_weights_by_hand() -> None:
    """Eight pixels, two classes occur: 5 of class 0, 2 of class 2, 1 ignored."""
    weights = class_weights(LABELS, 3)
    torch.testing.assert_close(weights, torch.tensor([8 / (2 * 5), 0.0, 8 / (2 * 2)]))
    over_pixels = torch.cat([weights, torch.zeros(1)])[LABELS]
    assert over_pixels.mean().item() == pytest.approx(1)


def test_nothing_counts_where_all_is_ignored() -> None:
    labels = torch.full((2, 4, 4), 3)
    assert class_weights(labels, 3).tolist() == [0, 0, 0]
    assert class_loss(noise(2, 4, 4, 4), labels, class_weights(labels, 3)).tolist() == [0, 0]


def test_cross_entropy_of_classes_by_hand() -> None:
    """Logits that say class 0 with odds of 3 to 1 to 1 to 1, everywhere."""
    logits = torch.tensor([math.log(3), 0, 0, 0]).view(1, 4, 1, 1).expand(1, 4, 2, 4)
    weights = torch.tensor([0.5, 7.0, 2.0])
    want = (5 * 0.5 * math.log(2) + 2 * 2.0 * math.log(6)) / 8  # the ignored pixel adds nothing
    assert class_loss(logits, LABELS, weights).item() == pytest.approx(want)
    assert fake_loss(logits).tolist() == pytest.approx([math.log(6)])  # the last class, at every pixel


def test_cross_entropy_is_torch_s() -> None:
    logits, weights = noise(2, 4, 5, 6), torch.tensor([0.5, 1.5, 3.0])
    labels = torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    whole = torch.nn.functional.cross_entropy(logits, labels, torch.cat([weights, torch.ones(1)]), reduction="sum")
    torch.testing.assert_close(class_loss(logits, labels, weights).sum() * 30, whole)


def test_ignored_pixels_give_no_gradient() -> None:
    logits = noise(1, 4, 2, 4).requires_grad_()
    class_loss(logits, LABELS, torch.ones(3)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 1, 3] == 0).all()
    assert (logits.grad[0, :, 0] != 0).all()


def test_label_mix_takes_whole_classes() -> None:
    labels = LABELS.repeat(2, 1, 1)
    mask = label_mix(labels, torch.tensor([[0.1, 0.9, 0.6, 0.9], [0.5, 0.1, 0.49, 0.2]]))
    assert mask[0, 0].tolist() == [[True, True, True, False], [True, True, False, False]]
    assert mask[1, 0].tolist() == [[False, False, False, True], [False, False, True, True]]
    mixed = mix(mask, torch.ones(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    assert torch.equal(mixed, mask.expand(2, 3, 2, 4).float())


def test_consistency_of_a_discriminator_that_sees_pixel_by_pixel() -> None:
    """Its logits of the mixture are the mixture of its logits; one that looks at neighbours is told off at borders."""
    real, fake = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    labels = (torch.arange(8) >= 4).long().expand(2, 8, 8)  # left 0, right 1
    mask = label_mix(labels, torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.2, 0.5]]))
    for kernel, zero in ((1, True), (3, False)):
        torch.manual_seed(0)
        look = torch.nn.Conv2d(3, 4, kernel, padding=kernel // 2)
        loss = label_mix_consistency(look(mix(mask, real, fake)), look(real), look(fake), mask)
        assert loss[1].item() == pytest.approx(0, abs=1e-10)  # all of it is real: nothing is mixed
        assert (loss[0].item() < 1e-10) == zero
    half = torch.tensor([[[[True, False]]]])
    by_hand = label_mix_consistency(
        torch.full((1, 2, 1, 2), 3.0), torch.ones(1, 2, 1, 2), torch.zeros(1, 2, 1, 2), half
    )
    assert by_hand.item() == pytest.approx(((3 - 1) ** 2 + (3 - 0) ** 2) / 2)


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(UserError, match=r"conditions of 6 × 4 px, images of 8 × 4: .*'data.condition_size'"):
        check_sizes(torch.zeros(1, 2, 4, 6), torch.zeros(1, 3, 4, 8))
