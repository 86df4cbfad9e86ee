"""Augmentation of a discriminator's inputs: consistent, deterministic given the draws, differentiable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.augmentation import DRAWS, KINDS, SHIFT, augmented


def ramps(batch: int = 3, side: int = 16) -> Tensor:
    """Images whose first two channels are their own coordinates, from 1."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([rows + 1.0, columns + 1.0, torch.ones(side, side)]).expand(batch, -1, -1, -1).clone()


def draws(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(batch, DRAWS, generator=torch.Generator().manual_seed(seed))


def test_the_middle_of_all_draws_changes_no_colour_and_moves_nothing() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    still, over = augmented(x, [x], ["colour", "shift"], torch.full((2, DRAWS), 0.5))
    torch.testing.assert_close(still, x)
    torch.testing.assert_close(over[0], x)


def test_a_shift_moves_images_and_what_lies_over_them_alike() -> None:
    x = ramps()
    moved, (over,) = augmented(x, [x[:, :1]], ["shift"], draws())
    assert torch.equal(moved[:, :1], over)
    inside = moved[:, 2] == 1
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    for k in range(3):
        dy = (moved[k, 0] - 1 - rows)[inside[k]].unique()
        dx = (moved[k, 1] - 1 - columns)[inside[k]].unique()
        assert len(dy) == len(dx) == 1  # one shift a sample
        assert dy.abs().item() <= 16 * SHIFT
        assert dx.abs().item() <= 16 * SHIFT
        assert int((~inside[k]).sum()) == 256 - (16 - abs(int(dy))) * (16 - abs(int(dx)))  # what comes in is 0


def test_all_shifts_come_about() -> None:
    u = torch.zeros(5, DRAWS)
    u[:, 3] = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.99])
    moved, _ = augmented(ramps(5), [], ["shift"], u)
    assert [int(x[0, 8, 8] - 9) for x in moved] == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize(("side", "half"), [(16, 8), (8, 4), (6, 3), (5, 3), (7, 4), (1, 1)])
def test_a_cutout_takes_a_square_of_half_the_sides(side: int, half: int) -> None:
    u = torch.full((1, DRAWS), 0.5)
    cut, (over,) = augmented(ramps(1, side), [ramps(1, side)], ["cutout"], u)
    gone = cut[0, 2] == 0
    assert int(gone.sum()) == half * half
    assert int(gone.any(dim=0).sum()) == int(gone.any(dim=1).sum()) == half
    assert torch.equal(cut, over)


@pytest.mark.parametrize("side", [8, 6])
def test_a_cutout_lies_anywhere_also_across_the_border(side: int) -> None:
    """Its first row is drawn as DiffAugment draws it: from half its size before the image to half of it before the
    end."""
    half = side // 2
    places = side + 1 - half % 2
    u = torch.full((places, DRAWS), 0.5)
    u[:, 5] = (torch.arange(places) + 0.5) / places
    cut, _ = augmented(ramps(places, side), [], ["cutout"], u)
    for place in range(places):
        rows = range(max(0, place - half // 2), min(side, place - half // 2 + half))
        assert (cut[place, 2] == 0).any(dim=1).nonzero().flatten().tolist() == list(rows)


def test_colours_do_not_touch_the_condition() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed, (over,) = augmented(x, [x], ["colour"], draws(2))
    assert torch.equal(over, x)
    assert not torch.allclose(changed, x)
    grey = x.mean(dim=1, keepdim=True).expand_as(x)
    still_grey, _ = augmented(grey, [], ["colour"], draws(2))
    torch.testing.assert_close(still_grey.std(dim=1), torch.zeros(2, 8, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_and_samples_do_not_mix(kind: str) -> None:
    x = ramps().requires_grad_()
    augmented(x, [], [kind], draws())[0][1].sum().backward()
    assert x.grad is not None
    assert x.grad[1].abs().sum() > 0
    assert not x.grad[[0, 2]].any()
    alone = augmented(x[1:2].detach(), [], [kind], draws()[1:2])[0]
    torch.testing.assert_close(alone[0], augmented(x.detach(), [], [kind], draws())[0][1])


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown augmentation 'shifts'; did you mean 'shift'\?"):
        augmented(ramps(), [], ["shifts"], draws())
