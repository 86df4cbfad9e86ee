"""Training of inpainting translators: their inputs, their priors, their uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from piti.core.spec import SpecError
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RecipeError, train
from piti.training.init import load_prior
from piti.training.known import KnownSpec
from tests.conftest import TINY_MODEL, tiny_recipe
from tests.pipelines.test_pipeline import tiny_pipeline

SPECS: Any = {"encoder_spec": TINY_MODEL["encoder"], "unet_spec": TINY_MODEL["unet"], "image_size": 16, "patch_size": 2}


def recipe_of(root: Path, **changes: object) -> Recipe:
    return Recipe.parse(tiny_recipe(root, **changes), "test")


def test_a_rectangle_is_unknown_or_everything() -> None:
    images = torch.rand(64, 3, 24, 32) * 2 - 1
    known = KnownSpec(nothing=0.25, sides=(0.25, 0.5)).of(images, 3, range(64))
    assert torch.equal(known[:, :3], images)
    mask = known[:, 3]
    nothing = mask.flatten(1).sum(dim=1) == 0
    assert 6 <= nothing.sum() <= 26  # a quarter of 64, four deviations wide
    for one in mask[~nothing]:
        rows, columns = ((one == 0).any(dim=k).nonzero().flatten() for k in (1, 0))
        assert 5 <= len(rows) <= 13  # of 24, rounded to pixels
        assert 7 <= len(columns) <= 17  # of 32
        assert torch.equal(rows, torch.arange(int(rows[0]), int(rows[-1]) + 1))
        assert (one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
        assert (one == 0).sum() == len(rows) * len(columns)
    again = KnownSpec(nothing=0.25, sides=(0.25, 0.5)).of(images[40:], 3, range(40, 64))
    assert torch.equal(again[:, 3], mask[40:])  # by a sample's number, not by its batch


def test_all_and_nothing() -> None:
    images = torch.zeros(4, 3, 8, 8)
    assert KnownSpec(nothing=1).of(images, 0, range(4))[:, 3].sum() == 0
    assert KnownSpec(nothing=0, sides=(1, 1)).of(images, 0, range(4))[:, 3].sum() == 0
    assert KnownSpec(nothing=0, sides=(0.1, 0.2)).of(images, 0, range(4))[:, 3].amax(dim=(1, 2)).sum() == 4


def test_a_prior_that_does_not_inpaint_makes_at_first_what_it_made(tmp_path: Path) -> None:
    plain = PITIPipeline.from_pretrained(_saved(tmp_path / "plain", inpaint=False)).base
    torch.manual_seed(5)
    wide = Translator(**SPECS, inpaint=True)
    said = load_prior(wide, str(tmp_path / "plain"), ScheduleSpec())
    assert "at zero" in said
    wide.encoder.load_state_dict(plain.encoder.state_dict())  # type: ignore[union-attr]
    x_t, condition = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    known = torch.cat([torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)], dim=1)
    t = torch.tensor(500)
    with torch.no_grad():
        wanted = plain(x_t, t, condition).output
        assert torch.allclose(wide(x_t, t, condition, known=known).output, wanted, atol=1e-6)


def test_priors_that_do_not_fit(tmp_path: Path) -> None:
    for inpaint in (True, False):
        _saved(tmp_path / str(inpaint), inpaint)
    schedule = ScheduleSpec()
    with pytest.raises(RecipeError, match=r"True inpaints, but this recipe's model does not; set model.inpaint: true"):
        load_prior(Translator(**SPECS), str(tmp_path / "True"), schedule)
    with pytest.raises(RecipeError, match="adapters cannot add inputs to its UNet"):
        load_prior(Translator(**SPECS, inpaint=True), str(tmp_path / "False"), schedule, adapts=True)
    assert "zero" not in load_prior(Translator(**SPECS, inpaint=True), str(tmp_path / "True"), schedule, adapts=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": {"nothing": 0.5}}, "'known' is for translators that inpaint; set model.inpaint: true"),
        ({"model": TINY_MODEL | {"inpaint": True}, "known": {"sides": [0.5, 0.2]}}, "0 < from <= to <= 1"),
        ({"model": TINY_MODEL | {"inpaint": True, "low_res": 8, "detail": 0.1}}, "'inpaint' cannot be combined"),
    ],
)
def test_recipes_that_make_no_sense(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((RecipeError, SpecError), match=message):
        recipe_of(tmp_path, **changes)


def test_an_inpainting_prior_is_adapted_and_translates(tiny_data: Path, tmp_path: Path) -> None:
    """Two stages on an inpainting prior: it is shown what is known, and then makes whole images, or a region."""
    _saved(tmp_path / "prior", inpaint=True)
    stages = [
        {"name": "adapt", "trains": ["encoder"], "steps": 1, "lr": 1e-3},
        {"name": "joint", "steps": 1, "lr": 1e-3},
    ]
    model = TINY_MODEL | {"inpaint": True}
    recipe = recipe_of(tiny_data, model=model, stages=stages, prior=str(tmp_path / "prior"), known={"nothing": 0})
    seen: list[torch.Tensor] = []
    joined = Translator.join_low_res

    def watched(self: Translator, x_t: Any, low_res: Any, t: Any, known: Any = None) -> Any:
        if self.training:
            seen.append(known)
        return joined(self, x_t, low_res, t, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Translator, "join_low_res", watched)
        train(recipe, tmp_path / "run", console=Console(quiet=True))
    assert len(seen) == 2
    for known in seen:
        assert (known[:, 3].mean(dim=(1, 2)) > 0.3).all()
        assert (known[:, 3].mean(dim=(1, 2)) < 1).all()
    pipeline = PITIPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.base.inpaint
    image = pipeline(str(next((tiny_data / "labels").iterdir())), steps=2).images[0]
    assert min(image.size) == 16


def _saved(folder: Path, inpaint: bool) -> Path:
    """A prior's folder: a tiny model with weights of its own."""
    torch.manual_seed(1)
    plain = tiny_pipeline()
    base = Translator(**SPECS, inpaint=inpaint).eval()
    PITIPipeline(base, scheduler_of(ScheduleSpec()), plain.condition).save_pretrained(folder)
    return folder
