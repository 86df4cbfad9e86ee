"""Published configurations are recognised, and the recipes match those models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from piti.checkpoints.folder import ModelError
from piti.checkpoints.prior_families import FAMILIES
from piti.checkpoints.prior_folders import recognised
from piti.models import Translator
from piti.training import read_recipe
from piti.training.build import translator_config
from piti.training.fitting import check_config
from piti.training.init import begin
from tests.conftest import ROOT
from tests.priors.published import MODELS

pytest.importorskip("transformers")

OTHERS = ("pixart-sigma", "sana-1600m", "sd3-medium", "sd35-large")
"""Of which there is no recipe."""
RECIPES = [name for name in MODELS if not name.startswith("if-") and name not in OTHERS]


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_is_recognised_and_has_its_size(tmp_path: Path, name: str) -> None:
    published = MODELS[name]
    found = recognised(published.folder(tmp_path))
    assert found.what == published.says
    with torch.device("meta"):
        translator = Translator(**found.arguments())
    assert sum(one.numel() for one in translator.unet.parameters()) == published.parameters
    assert translator.role == found.family.role
    assert translator.image_size % translator.granularity == 0
    if found.family.network == "transformer":
        layers = translator.unet.config["num_layers"]
        places = 0 if name.startswith("pixart") else layers // 2
        if name.startswith("flux"):
            places = (layers + 1) // 2 + translator.unet.config["num_single_layers"] // 2
        assert len(translator.wiring.aligned) == places
        return
    layers, levels = translator.unet.config["layers_per_block"], len(translator.unet.config["block_out_channels"])
    counts = [layers] * levels if isinstance(layers, int) else layers
    # one after each layer and each shrinking, the first, and the middle
    assert len(translator.wiring.aligned) == sum(counts) + levels + 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_for_the_published_model(tmp_path: Path, name: str) -> None:
    """Its UNet setting by setting, its schedule, space and sizes, and the width of its encoder's tokens."""
    found, recipe = recognised(MODELS[name].folder(tmp_path)), read_recipe(name)
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, None))
    check_config(translator, found.unet, name)
    assert recipe.schedule.shift == pytest.approx(found.schedule.shift, rel=1e-7)
    assert recipe.schedule == found.schedule.model_copy(update={"shift": recipe.schedule.shift})
    assert recipe.model.space == found.space
    arguments = found.arguments()
    assert recipe.model.image_size == arguments["image_size"]
    assert recipe.model.learned_variance == arguments["learned_variance"]
    assert recipe.model.patch_size == arguments["patch_size"]
    assert recipe.model.shift_growth == pytest.approx(arguments["shift_growth"], rel=1e-7)
    assert recipe.model.encoder is not None
    assert recipe.model.encoder.token_width == translator.wiring.sequence
    assert recipe.model.encoder.pooled == translator.wiring.pooled_width
    assert [stage.trains[0] for stage in recipe.stages] == ["encoder", "encoder"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_names_the_import_that_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(name)
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, None))
    imports = rf"import it: piti import FOLDER_OR_HUB_ID .* {recipe.prior}; or give its hub id"
    with pytest.raises(ModelError, match=imports):
        begin(translator, recipe, only_check=True)


def test_the_guide_says_how_each_family_is_sampled() -> None:
    guide = (ROOT / "docs/guides/adapt-stable-diffusion.md").read_text(encoding="utf-8")
    said = {}
    for names, *values in re.findall(r"^\| ([\w. ,]+) \| `(\S+)` \| (\d+) \| ([\d.]+) \|$", guide, re.MULTILINE):
        said |= {name: tuple(values) for name in names.split(", ")}
    for family in FAMILIES.values():
        own = {key.removeprefix("upsampler_"): value for key, value in family.sampling.items()}
        steps = re.sub(r"[a-z]", "", str(own["steps"]))
        name = re.sub("-[αΣ]", "", family.name)
        assert said[name] == (own["sampler"], steps, f"{own['guidance']['w']:g}"), name
