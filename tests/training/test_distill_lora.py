"""Students as low-rank adapters of their teachers: saving, initialisation, errors."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from piti.checkpoints.export import export_release
from piti.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_FILE, LoraSpec, approach, inject, merged
from piti.checkpoints.release import ExchangeError
from piti.checkpoints.weights import WEIGHTS_FILE
from piti.cli.app import app
from piti.core.spec import SpecError
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.training import RecipeError, RunError, distillation_recipe, plan, train
from piti.training.build import build_condition, build_translator
from piti.training.init import adapt, begin, load_prior
from tests.conftest import ROOT
from tests.training.runs import a_teacher, short

WANTED = {"steps": 2, "substeps": 2, "guidance": 0.5}
SMALL = short(20, 1e-2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(its data, a run of it)"""
    return a_teacher(tmp_path_factory.mktemp("adapted"), 10)


@pytest.fixture(scope="module")
def student(teacher: tuple[Path, Path]) -> Path:
    """A run that trained adapters of it."""
    data, run = teacher
    train(distillation_recipe(str(run), WANTED, data, SMALL, rank=2), run.parent / "student")
    return run.parent / "student"


def weights_of(run: Path) -> dict[str, Tensor]:
    base = PITIPipeline.from_pretrained(run).base
    assert isinstance(base, Translator)
    return base.state_dict()


def test_its_model_is_adapters_alone(teacher: tuple[Path, Path], student: Path) -> None:
    folder = student / "model/base"
    assert sorted(p.name for p in folder.iterdir()) == [ADAPTER_CONFIG, ADAPTER_FILE, "config.json"]
    adapter = load_file(folder / ADAPTER_FILE)
    assert adapter
    offsets = {name for name, x in adapter.items() if ".lora_" not in name}
    assert {len(adapter[name].shape) for name in offsets} == {1}
    assert {"encoder.stem.norms.0.bias", "unet.conv_in.bias", "unet.conv_norm_out.weight"} <= offsets
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert (config["prior"], config["own_encoder"]) == (str(teacher[1]), False)
    assert config["lora"] == {"rank": 2, "alpha": None, "convolutions": True, "encoder": True, "offsets": True}

    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[-1] < losses[0]

    before, after = weights_of(teacher[1]), weights_of(student)
    assert before.keys() == after.keys()
    same = {name for name, x in before.items() if torch.equal(x, after[name])}
    adapted = {name.partition(".lora_")[0] + ".weight" for name in adapter if ".lora_" in name}
    assert adapted <= before.keys() - same <= adapted | offsets
    assert {"unet.conv_in.bias", "unet.conv_norm_out.weight"}.isdisjoint(same)
    assert {name.partition(".")[0] for name in adapted} == {"encoder", "unet"}


def test_it_is_sampled_as_any_student(teacher: tuple[Path, Path], student: Path, tmp_path: Path) -> None:
    mask, run = teacher[0] / "labels/scene-00.png", CliRunner().invoke
    arguments = ["translate", str(mask), "--model", str(student), "--num", "1", "--out", str(tmp_path / "a")]
    run(app, arguments, catch_exceptions=False)
    refused = run(app, [*arguments[:-1], str(tmp_path / "b"), "--steps", "5"])
    assert f"leave it out, or use the model that it was distilled from, {teacher[1]}" in str(refused.exception)
    pipe = PITIPipeline.from_pretrained(student)
    assert isinstance(pipe.base, Translator)
    assert pipe.base.student is not None
    assert len(pipe.base.student.timesteps or ()) == 2


def test_adapters_begin_as_the_difference_of_a_whole_student(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    """At the full rank of every layer they hold all of it; at rank 1 they are the best matrix of that rank."""
    data, run = teacher
    train(distillation_recipe(str(run), WANTED, data, SMALL), tmp_path / "whole")
    before, target = weights_of(run), weights_of(tmp_path / "whole")
    for rank in (1, 64):
        changes = [*SMALL, f"distillation.student={tmp_path / 'whole'}"]
        recipe = distillation_recipe(str(run), WANTED, data, changes, rank=rank)
        assert f"adapters approximate the student {tmp_path / 'whole'}" in plan(recipe, tmp_path / "run")[2]["plan"]
        condition = build_condition(recipe)
        begun = build_translator(recipe, condition)
        begin(begun, recipe, condition)
        adapted = adapt(begun, recipe)
        adapted.save_pretrained(tmp_path / f"adapted-{rank}")
        adapter = load_file(tmp_path / f"adapted-{rank}" / ADAPTER_FILE)
        found = merged(before, adapter, recipe.lora, own_encoder=False)
        assert all(torch.equal(found[name], target[name]) for name in adapter if ".lora_" not in name)
        for name in {one.partition(".lora_")[0] + ".weight" for one in adapter if ".lora_" in one}:
            wanted = (target[name] - before[name]).flatten(1)
            left, values, right = torch.linalg.svd(wanted, full_matrices=False)
            best = (left[:, :rank] * values[:rank]) @ right[:rank]
            torch.testing.assert_close((found[name] - before[name]).flatten(1), best, rtol=0, atol=1e-6)
            if rank == 1:
                assert (best - wanted).norm() > 0.05 * wanted.norm()
    unadapted = adapt(build_translator(recipe, condition), recipe, anew=False).translator.state_dict()
    assert all(not x.any() for name, x in unadapted.items() if ".lora_B." in name)


def test_the_scale_of_the_adapters_is_theirs(teacher: tuple[Path, Path]) -> None:
    before = weights_of(teacher[1])
    translator = PITIPipeline.from_pretrained(teacher[1]).base
    assert isinstance(translator, Translator)
    target = {name: x + torch.randn_like(x) if x.is_floating_point() else x for name, x in before.items()}
    spec = LoraSpec(rank=64, alpha=16.0, convolutions=True)
    inject(translator, spec)
    approach(translator, target, spec)
    adapter = {name: x for name, x in translator.state_dict().items() if ".lora_" in name}
    found = merged(before, adapter, spec)
    for name in {one.partition(".lora_")[0] + ".weight" for one in adapter}:
        torch.testing.assert_close(found[name], target[name], rtol=0, atol=1e-4)


def test_it_shares_its_teachers_upsampler_by_name(tmp_path: Path) -> None:
    from piti.checkpoints.folder import bundled_models
    from piti.checkpoints.joining import join_upsampler

    (tmp_path / "model_index.json").write_text('{"base": ["piti", "Translator"], "defaults": {}}')
    join_upsampler(tmp_path, bundled_models()["street"], "street")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["shares_upsampler_of"] == "street"
    assert "upsampler" not in index
    assert [path.name for path in tmp_path.iterdir()] == ["model_index.json"]


def test_saved_anew_it_is_whole(student: Path, tmp_path: Path) -> None:
    PITIPipeline.from_pretrained(student).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/base" / ADAPTER_CONFIG).exists()
    before, after = weights_of(student), weights_of(tmp_path / "saved")
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_resumed_as_if_never_stopped(teacher: tuple[Path, Path], student: Path, tmp_path: Path) -> None:
    """Also where the student that the adapters began from is gone by then."""
    data, run = teacher
    train(distillation_recipe(str(run), WANTED, data, [*SMALL, "stages.0.steps=1"]), tmp_path / "whole")
    steps = [[*SMALL, f"distillation.student={tmp_path / 'whole'}", f"stages.0.steps={n}"] for n in (2, 4)]
    train(distillation_recipe(str(run), WANTED, data, steps[1], rank=2), tmp_path / "once")
    train(distillation_recipe(str(run), WANTED, data, steps[0], rank=2), tmp_path / "twice")
    shutil.rmtree(tmp_path / "whole")
    train(distillation_recipe(str(run), WANTED, data, steps[1], rank=2), tmp_path / "twice", resume=True)
    once, twice = (load_file(tmp_path / name / "model/base" / ADAPTER_FILE) for name in ("once", "twice"))
    assert all(torch.equal(x, twice[name]) for name, x in once.items())


def test_a_teacher_that_changed_is_another_run(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = teacher
    shutil.copytree(run, tmp_path / "teacher")
    short_run, longer = ([*SMALL, f"stages.0.steps={steps}"] for steps in (1, 2))
    train(distillation_recipe(str(tmp_path / "teacher"), WANTED, data, short_run), tmp_path / "run")
    path = tmp_path / "teacher/model/base" / WEIGHTS_FILE
    save_file({name: x + 1e-3 for name, x in load_file(path).items()}, path)
    with pytest.raises(RunError, match="was trained with teacher_sha256 = "):
        train(distillation_recipe(str(tmp_path / "teacher"), WANTED, data, longer), tmp_path / "run", resume=True)
    train(distillation_recipe(str(run), WANTED, data, longer), tmp_path / "run", resume=True)  # moved, and the same


def test_classes_in_another_order_are_refused(teacher: tuple[Path, Path], tmp_path: Path) -> None:
    """The encoder stays the teacher's, and reads them in its order."""
    data, run = teacher
    shutil.copytree(data, tmp_path / "data")
    table = json.loads((data / "classes.json").read_text())
    turned = {key: value[::-1] if isinstance(value, list) else value for key, value in table.items()}
    (tmp_path / "data/classes.json").write_text(json.dumps(turned))
    changes = [*SMALL, "condition={kind: mask}"]
    assert plan(distillation_recipe(str(run), WANTED, tmp_path / "data", changes), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"init: .* the same classes in another order, and adapters"):
        plan(distillation_recipe(str(run), WANTED, tmp_path / "data", changes, rank=2), tmp_path / "run")


def test_a_lent_upsampler_that_changed_is_refused(tmp_path: Path) -> None:
    from piti.checkpoints.folder import ModelError, ModelFolder, bundled_models
    from piti.checkpoints.joining import join_upsampler

    street = bundled_models()["street"]
    shutil.copytree(street, tmp_path / "lender")
    for name in ("base", "scheduler"):
        shutil.copytree(street / name, tmp_path / "mine" / name)
    shutil.copy(street / "condition.json", tmp_path / "mine/condition.json")
    index = json.loads((street / "model_index.json").read_text())
    own = {key: value for key, value in index.items() if not key.startswith("upsampler")}
    (tmp_path / "mine/model_index.json").write_text(json.dumps(own))
    join_upsampler(tmp_path / "mine", tmp_path / "lender", str(tmp_path / "lender"))
    assert PITIPipeline.from_pretrained(tmp_path / "mine").upsampler is not None
    with pytest.raises(ModelError, match=r"mine has no upsampler but shares that of (.*/lender); give \1$"):
        PITIPipeline.from_pretrained(tmp_path / "lender", upsampler=tmp_path / "mine")
    path = tmp_path / "lender/upsampler" / WEIGHTS_FILE
    save_file({name: 0.5 * x for name, x in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=r"has changed since .* was saved with it"):
        PITIPipeline.from_pretrained(tmp_path / "mine")
    assert ModelFolder.open(tmp_path / "mine").lender == str(tmp_path / "lender")


def test_adapters_are_bundled_beside_bundled_models(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = runpy.run_path(str(ROOT / "tools/bundle.py"))["copy_adapters"]
    with pytest.raises(SystemExit, match="which is not bundled"):
        bundle(student / "model", tmp_path / "a")
    monkeypatch.setitem(bundle.__globals__, "bundled_models", lambda: {str(student.parent / "teacher"): None})
    bundle(student / "model", tmp_path / "a")
    path = tmp_path / "a/base" / ADAPTER_FILE
    assert {x.dtype for x in load_file(path).values()} == {torch.float16}
    assert path.stat().st_mode & 0o044 == (student / "model/base" / ADAPTER_FILE).stat().st_mode & 0o044
    assert not (tmp_path / "a/recipe.yaml").exists()
    with pytest.raises(SystemExit, match="already exists"):
        bundle(student / "model", tmp_path / "a")


def test_what_does_not_fit(teacher: tuple[Path, Path], student: Path) -> None:
    data, run = teacher
    recipe = distillation_recipe(str(run), WANTED, data, [*SMALL, f"distillation.student={run}"], rank=2)
    with pytest.raises(RecipeError, match=r"distillation.student: .* was not distilled"):
        plan(recipe, run.parent / "none")
    with pytest.raises(RecipeError, match="is already distilled"):
        distillation_recipe(str(student), WANTED, data, rank=2)
    trains = 'stages.0.trains=["encoder", "lora"]'
    with pytest.raises(SpecError, match=r"lora.encoder adapts the encoder in distillation"):
        distillation_recipe(str(run), WANTED, data, [*SMALL, trains], rank=2)
    own = distillation_recipe(str(run), WANTED, data, [*SMALL, trains, "lora.encoder=false"], rank=2)
    condition = build_condition(own)
    translator = build_translator(own, condition)
    for adapts in (False, True):
        with pytest.raises(RecipeError, match=r"prior: .* was distilled, .*; give the model .* prior=.*teacher"):
            load_prior(translator, str(student), own.schedule, only_check=True, adapts=adapts)
    with pytest.raises(
        ExchangeError,
        match=r"is a set of low-rank adapters for another model; save the merged model, .*save_pretrained",
    ):
        export_release(str(student), student.parent / "exported")
    assert adapt(translator, own).config.own_encoder
    refused = CliRunner().invoke(app, ["distill", str(run), "--data", str(data), "--rank", "0", "--dry-run"])
    assert refused.exit_code == 2
