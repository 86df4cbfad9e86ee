"""Recipes: parsing, changes, errors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from piti.core.spec import SpecError
from piti.data.generated import GeneratedSpec
from piti.models.discriminator import DiscriminatorSpec
from piti.models.perceptual import PerceptualSpec
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import changed_recipe, differences, read_recipe, recipe_names, recipe_path, write_recipe
from piti.training.stages import Stage
from tests.conftest import ROOT, tiny_recipe


def written(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_that_is_shipped_parses(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_written_and_read_back(tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_recipe(tmp_path), "test")
    write_recipe(recipe, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_changes_on_top(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_recipe(tmp_path))
    recipe = read_recipe(
        path,
        ["stages.0.lr=1e-4", "data.flip=false", "preview.guidance.w=2", "loss.weighting=min_snr", "precision=fp32"],
    )
    assert recipe.precision == "no"
    assert recipe.stages[0].lr == 1e-4
    assert recipe.data.flip is False
    assert recipe.preview.guidance.w == 2
    assert recipe.loss.weighting == "min_snr"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bach=3", "unknown key 'bach'; did you mean 'batch'"),
        ("stages.0.step=3", "unknown key 'stages.0.step'; did you mean 'steps'"),
        ("model.unet.layer=3", "unknown key 'model.unet.layer'; did you mean 'layers'"),
        ("batch=none", "'batch' = 'none'"),
        ("batch=0", "'batch' = 0"),
        ("optimizer.betas=[0.9, 1.5]", r"'optimizer.betas.1' = 1.5: is too large; give less than 1"),
        ("stages.3.lr=1", "'3' is not an index from 0 to 0"),
        ("stages", "expected KEY=VALUE"),
        ("batch.size=3", "'batch' is a single value"),
        ("preview.sampler=dmpp", "known: ddpm, ddim"),
        ("loss.weighting=min_snrr", "did you mean 'min_snr'"),
        ("loss.timesteps=second_momen", "did you mean 'second_moment'"),
        ("data.size=32", "make them equal"),
        ("stages.0.trains=[]", "nothing is trained"),
        ("preview={sampler: dpm++, steps: 1000}", "steps 1000"),
        ("name=[", "is not YAML"),
        ("stages=[{name: joint, steps: 1}, {name: tail, trains: [unet], steps: 1}]", "stage 'tail' freezes encoder"),
        ("degradation={blur: 0.5}", "'degradation' is for upsamplers"),
        ("stages.0.diffusion.weight=0", "'stages.0.diffusion.weight' is 0 and the stage has no other loss"),
        ("data={shards: [a.tar], photographs: [b]}", "'photographs' is for folders"),
        ("data.val_shards=[a.tar]", "'val_shards' is for shards, but 'shards' is empty; give them, or remove it"),
        ("generated={root: made}", "'generated' is for upsamplers"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(tmp_path: Path, change: str, message: str) -> None:
    path = written(tmp_path, tiny_recipe(tmp_path))
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        read_recipe(path, [change])


def test_keys_that_nothing_would_read(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_recipe(tmp_path))
    changes = ["loss.vb_weight=0.5", "model.learned_variance=false"]
    with pytest.raises(SpecError, match=r"'loss.vb_weight' weights the loss of a learned variance.*remove it"):
        read_recipe(path, changes)
    read_recipe(path, changes[:1])
    baseline = {"baseline": {"kind": "spade"}, "stages": [{"trains": ["generator"], "steps": 1}]}
    values = {key: value for key, value in tiny_recipe(tmp_path).items() if key not in ("model", "stages")}
    values |= baseline | {"model": {"image_size": values["data"]["size"]}, "condition_dropout": 0.2}
    Recipe.parse(values, "test")
    for change in ("checkpointing=true", "compile=true", "stages.0.from_noise=1", "stages.0.pixel={weight: 1}"):
        with pytest.raises(SpecError, match=f"'{change.partition('=')[0]}' has no effect for a baseline"):
            changed_recipe(copy.deepcopy(values), [change], "test")


@pytest.mark.parametrize("stage", [{"from_noise": 0.5}, {"diffusion": {"weight": 0.5}}])
def test_timesteps_drawn_by_losses_are_set_by_nothing_else(tmp_path: Path, stage: dict[str, object]) -> None:
    recipe = tiny_recipe(tmp_path, stages=[stage], loss={"timesteps": "second_moment"})
    with pytest.raises(SpecError, match="from_noise or diffusion of a stage set them differently; use even"):
        Recipe.parse(recipe, "test")


@pytest.mark.parametrize("name", ["001", "2024_01", "1e5", "inf"])
def test_what_is_quoted_is_text(tmp_path: Path, name: str) -> None:
    for quoted in (f"'{name}'", f'"{name}"'):
        assert changed_recipe(tiny_recipe(tmp_path), [f"data.images={quoted}"], "test").data.images == name
    with pytest.raises(SpecError, match=r"'data.images' = .*: is not a string; write it in quotes"):
        changed_recipe(tiny_recipe(tmp_path), [f"data.images={name}"], "test")


def test_keys_inside_what_a_run_wrote_as_null(tmp_path: Path) -> None:
    write_recipe(Recipe.parse(tiny_recipe(tmp_path), "test"), tmp_path / "written.yaml")
    recipe = read_recipe(tmp_path / "written.yaml", ["stages.0.pixel.weight=0.5"])
    assert recipe.stages[0].pixel is not None
    assert recipe.stages[0].pixel.weight == 0.5


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: there is no such file or recipe"):
        read_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        read_recipe(tmp_path / "bad.yaml")
    with pytest.raises(RecipeError, match="got list"):
        read_recipe(written(tmp_path, [1]))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_recipe(tmp_path))
    line = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + "data: {flip: false}\n")
    with pytest.raises(RecipeError, match=rf"recipe\.yaml: 'data' occurs twice, in lines \d+ and {line}, .* merge"):
        read_recipe(path)
    with pytest.raises(RecipeError, match="'w' occurs twice"):
        changed_recipe(tiny_recipe(tmp_path), ["preview.guidance={w: 1, kind: plain, w: 2}"], "test")


def test_yaml_that_overrides_what_it_merges_has_no_key_twice(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path)
    del values["stages"]
    stages = "stages:\n- &one {name: one, steps: 3}\n- {<<: *one, name: two}\n- {<<: *one, steps: 4}\n"
    path = written(tmp_path, values)
    path.write_text(path.read_text() + stages)
    assert [(stage.name, stage.steps) for stage in read_recipe(path).stages] == [("one", 3), ("two", 3), ("one", 4)]


def test_recipes_in_the_package_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = recipe_names()
    assert {"street", "full-upsampler", "baselines/spade"} <= set(names)
    assert not any("accelerate" in name or "ddp" in name for name in names)
    for name in names:
        assert read_recipe(name) == read_recipe(ROOT / f"piti/recipes/{name}.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "street").mkdir()  # is no recipe
    assert recipe_path("street").parent == ROOT / "piti/recipes"
    own = written(tmp_path, tiny_recipe(tmp_path))
    own.rename(tmp_path / "sketch")  # a file comes first
    assert recipe_path("sketch") == Path("sketch")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "spade",
            r"spade: there is no such file or recipe; .* did you mean 'baselines/spade'\? known: baselines/oasis, ",
        ),
        ("recipes/stret.yaml", r"recipes/stret\.yaml: there is no such file or recipe; .* did you mean 'street'\?"),
        ("accelerate/ddp", "there is no such file or recipe"),
        (".", "is not a file"),
    ],
)
def test_unknown_recipes_name_the_nearest(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        read_recipe(name)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    stage = Stage(steps=100, lr=1.0, warmup=9, decay=0.5)
    assert stage.lr_at(0) == pytest.approx(0.1)
    assert stage.lr_at(9) == stage.lr_at(50) == 1.0
    assert stage.lr_at(75) == pytest.approx(0.5)
    assert 0 < stage.lr_at(99) < 0.001
    assert Stage(steps=10, lr=0.5).lr_at(9) == 0.5


def test_stages_follow_one_another(tmp_path: Path) -> None:
    stages = [{"name": "adapt", "trains": ["encoder"], "steps": 3}, {"name": "joint", "steps": 2}]
    recipe = Recipe.parse(tiny_recipe(tmp_path, stages=stages), "test")
    adapt, joint = recipe.stages
    assert recipe.stages_left(0) == [(adapt, 0), (joint, 0)]
    assert recipe.stages_left(2) == [(adapt, 2), (joint, 0)]
    assert recipe.stages_left(3) == [(adapt, 3), (joint, 0)]  # its checkpoint is of the first stage
    assert recipe.stages_left(4) == [(joint, 1)]
    assert recipe.stages_left(5) == [(joint, 2)]
    assert recipe.steps == 5


def _judging(folder: str) -> DiscriminatorSpec:
    return DiscriminatorSpec(features=PerceptualSpec(weights=f"{folder}/features.pth"))


def test_what_a_continued_run_may_change(tmp_path: Path) -> None:
    old = Recipe.parse(tiny_recipe(tmp_path), "test")
    free = {"log_every": 1, "stages": [{"name": "joint", "steps": 99, "lr": 1e-3}]}
    assert differences(old, Recipe.parse(tiny_recipe(tmp_path, **free), "test")) == []
    changed = differences(old, Recipe.parse(tiny_recipe(tmp_path, seed=5, batch=8), "test"))
    assert changed == ["batch: 4 in the checkpoint, 8 now", "seed: 0 in the checkpoint, 5 now"]
    moved = [
        old.model_copy(update={"generated": GeneratedSpec(root=Path(root)), "discriminator": _judging(root)})
        for root in ("before", "now")
    ]
    assert differences(*moved) == []
    of = {name: Recipe.parse(tiny_recipe(tmp_path, precision=name), "test") for name in ("auto", "no", "bf16", "fp16")}
    assert differences(of["bf16"], of["auto"]) == differences(of["auto"], of["no"]) == []
    assert differences(of["bf16"], of["no"]) == ["precision: 'bf16' in the checkpoint, 'no' now"]
    assert differences(of["auto"], of["fp16"]) == ["precision: 'auto' in the checkpoint, 'fp16' now"]
    assert differences(of["fp16"], of["auto"]) == []  # the scale is left out
    judged = [of[name].model_copy(update={"baseline": {"kind": "spade"}}) for name in ("fp16", "auto")]
    assert differences(*judged) == ["precision: 'fp16' in the checkpoint, 'auto' now"]
