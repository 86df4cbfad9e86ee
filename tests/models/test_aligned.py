"""Translators with a condition at image size, and pixel heads."""

from __future__ import annotations

import pytest
import torch

from piti.core.errors import UserError
from piti.models import PixelHead, PixelHeadSpec, Translator

ALIGNED = {
    "unet_spec": {
        "channels": [16, 32],
        "layers": 1,
        "attention": [False, False],
        "token_width": None,
        "norm_groups": 8,
    },
    "image_size": 32,
    "patch_size": 4,
    "low_res": 8,
    "aligned_spec": {"in_channels": 5, "size": 32, "channels": [4, 6, 8, 8]},
    "head_spec": {"channels": [12, 8]},
}


def aligned(**changes: object) -> Translator:
    torch.manual_seed(0)
    translator = Translator(**{**ALIGNED, **changes}).eval()  # type: ignore[arg-type]
    for parameter in translator.parameters():
        if not parameter.any():  # zero-initialised: at the start neither path says anything
            torch.nn.init.normal_(parameter, std=0.1)
    return translator


def test_an_aligned_condition_reaches_every_size_of_image() -> None:
    translator = aligned()
    assert (translator.condition_side, translator.granularity, translator.wiring.sequence) == (32, 8, None)
    for height, width in ((32, 32), (16, 48)):
        noise, condition = torch.randn(2, 3, height, width), torch.rand(2, 5, height, width)
        small = torch.randn(2, 3, height // 4, width // 4)
        out = translator(noise, torch.tensor(3), condition, small)
        assert out.output.shape == noise.shape
        other = translator(noise, torch.tensor(3), condition.flip(-1), small)
        assert not torch.allclose(out.output, other.output)


def test_an_aligned_condition_acts_where_it_lies() -> None:
    """The head's finest map is the condition's own: a change of one pixel's class moves that place most."""
    translator = aligned()
    noise, condition, small = torch.randn(1, 3, 32, 32), torch.rand(1, 5, 32, 32), torch.randn(1, 3, 8, 8)
    changed = condition.clone()
    changed[:, :, 20, 9] += 1
    moved = (
        (
            translator(noise, torch.tensor(3), changed, small).output
            - translator(noise, torch.tensor(3), condition, small).output
        )
        .abs()
        .sum(1)[0]
    )
    place = int(moved.argmax())
    assert abs(place // 32 - 20) <= 2
    assert abs(place % 32 - 9) <= 2


def test_the_aligned_condition_is_encoded_once_and_batched() -> None:
    translator = aligned()
    noise, condition, small = torch.randn(3, 3, 32, 32), torch.rand(3, 5, 32, 32), torch.randn(3, 3, 8, 8)
    tokens = translator.encode(condition)
    assert [tuple(one.shape[1:]) for one in tokens.maps or ()] == [(4, 32, 32), (6, 16, 16), (8, 8, 8), (8, 4, 4)]
    whole = translator(noise, torch.tensor(3), tokens, small).output
    torch.testing.assert_close(whole, translator(noise, torch.tensor(3), condition, small).output)
    picked = translator(noise[[2]], torch.tensor(3), tokens.picked([2]), small[[2]]).output
    torch.testing.assert_close(picked, whole[[2]], atol=1e-5, rtol=1e-4)
    both = tokens.picked([0]).joined(tokens.picked([1]))
    torch.testing.assert_close(
        translator(noise[:2], torch.tensor(3), both, small[:2]).output, whole[:2], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("enlarge", ["shuffle", "bilinear"])
def test_a_pixel_head_begins_as_the_enlarged_small_image(tmp_path, enlarge: str) -> None:
    torch.manual_seed(0)
    head = ALIGNED["head_spec"] | {"enlarge": enlarge}  # type: ignore[operator]
    translator = Translator(**{**ALIGNED, "head_spec": head}, learned_variance=False, detail=0.2, steps=10).eval()  # type: ignore[arg-type]
    assert translator.preconditioning is not None
    translator.preconditioning.set_noise(torch.linspace(0.99, 1e-6, 10))
    small = torch.rand(1, 3, 8, 8)
    out = translator(torch.randn(1, 3, 32, 32), torch.tensor(9), torch.rand(1, 5, 32, 32), small).output
    large = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")
    torch.testing.assert_close(out, large, atol=1e-3, rtol=0)  # at the last timestep noise says nothing
    translator.save_pretrained(tmp_path)
    again = Translator.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(translator.parameters(), again.parameters(), strict=True))


def test_a_bilinear_head_leaves_no_grid_on_what_is_flat() -> None:
    torch.manual_seed(0)
    features, seen = torch.randn(1, 8, 1, 1).expand(1, 8, 12, 12), torch.zeros(1, 2, 48, 48)
    grids = {}
    for enlarge in ("shuffle", "bilinear"):
        head = PixelHead(PixelHeadSpec(channels=(6, 4), enlarge=enlarge), 8, 3, 2)
        for parameter in head.parameters():  # trained weights: no two of a shuffle's four pixels are alike
            torch.nn.init.normal_(parameter, std=0.3)
        grids[enlarge] = head(features, seen)[0, :, 16:32, 16:32].std(dim=(1, 2)).max()  # far from the borders
    assert grids["bilinear"] < 1e-5 < 1e-2 < grids["shuffle"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": 8}, "'head_spec' has 2 'channels' and 'patch_size' is 8"),
        ({"aligned_spec": {"size": 64, "in_channels": 5}}, "'aligned_spec.size' 64 is not 'image_size' 32"),
        ({"encoder_spec": {"width": 16}}, "'encoder_spec' and 'aligned_spec' are given"),
        ({"unet_spec": ALIGNED["unet_spec"] | {"token_width": 16}}, "make it null"),  # type: ignore[operator]
    ],
)
def test_parts_that_do_not_fit_an_aligned_upsampler(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Translator(**{**ALIGNED, **changes})  # type: ignore[arg-type]
