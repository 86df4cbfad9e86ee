"""A table end to end with tiny networks: finished work is not repeated, failures are reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from piti.baselines.rrdb import RRDBNet
from piti.conditions import ClassTable, MaskCondition
from piti.core.errors import UserError, option
from piti.core.files import OutputError
from piti.data.generated import WithGenerated
from piti.data.pairs import FolderSpec
from piti.generation.options import GenerationOptions
from piti.reproduction import images, make, rows, runs, small_plans
from piti.reproduction.checks import Checker
from piti.reproduction.files import DatasetFiles, choose
from piti.reproduction.images import begin_folder
from piti.reproduction.rows import Generated, Row, Training
from piti.reproduction.runs import Judges, Workspace, is_of, progress_of, recipe_of, trained
from piti.training import Recipe, RunError, RunFolder, TrainingInterrupted
from piti.training.build import build_condition, open_data
from piti.training.loop import Trainer
from tests.conftest import tiny_recipe
from tests.evaluation.tiny_judges import segformer
from tests.reproduction.tiny import DIVERGING, FAST, PLAN, QUIET, ROW, TINY, judged_by_nobody


def touched_in_another_order(run: Path) -> None:
    """As copying a run may leave it: the model seems to be older than the checkpoint."""
    for path in (run / "model").rglob("*"):
        os.utime(path, (0, 0))


def stamps(folder: Path) -> dict[Path, int]:
    """When each file was written last, tables and logs aside."""
    inside = (folder / name for name in ("runs", "images", "results"))
    files = (path for place in inside for path in place.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files if not path.name.endswith(".lock")}


def test_a_table_is_made_once(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, rows=(*PLAN.rows, Row("diverging", "spade", DIVERGING)))
    workspace = replace(workspace, judges=replace(workspace.judges, segmenter=str(segformer(tmp_path / "segmenter"))))
    table = make.reproduce(plan, workspace, QUIET)
    line, other = table.lines
    assert line.found[0].value("fd") > 0
    assert 0 <= line.found[0].value("miou") <= 100
    assert table.photographs["camvid"].value("fd") > 0
    assert "the last good checkpoint" in other.missing[0] or "no checkpoint yet" in other.missing[0]
    assert "; check this batch:" in other.missing[0]  # and no flags of another command
    assert (table.data["camvid"].training, table.data["camvid"].validation) == (9, 3)
    text = (workspace.out / "table1.md").read_text()
    assert "| tiny | " in text
    assert "† diverging: seed 0: " in text
    assert json.loads((workspace.out / "table1.json").read_text())["networks"][0]["name"] == "squeezenet"
    assert (workspace.out / "table1.jpg").stat().st_size > 0
    newest = RunFolder(workspace.out / "runs/tiny-0").newest()
    assert newest is not None
    assert newest.name == "step-00000004"

    def never(*rest: object, **more: object) -> None:
        raise AssertionError("nothing is to be done again")

    def failing(recipe: object, folder: Path, **more: object) -> None:
        assert folder.name == "diverging-0"
        raise UserError(other.missing[0].removeprefix("seed 0: "))

    before = stamps(workspace.out)
    monkeypatch.setattr(runs, "train", failing)
    monkeypatch.setattr(images, "translate_files", never)
    monkeypatch.setattr(runs, "evaluate_files", never)
    again = make.reproduce(plan, workspace, QUIET)
    assert stamps(workspace.out) == before
    assert again.lines[0].found == line.found
    assert (workspace.out / "table1.md").read_text() == text


def beyond_the_paper(root: Path) -> Row:
    """A row whose upsampler learns from the base's images, and the recipe of that upsampler."""
    learning = Training("learning", "learning", "camvid", generated=Generated(TINY, FAST))
    upsampler = {"condition": {"kind": "none"}, "generated": {"root": "nowhere", "share": 0.5}}
    model = {
        "image_size": 64,
        "low_res": 16,
        "patch_size": 4,
        "encoder": None,
        "unet": {"channels": [32], "layers": 1, "attention": [False], "token_width": None},
    }
    recipe = tiny_recipe(root, model=model, stages=[{"name": "only", "trains": ["unet"], "steps": 1, "lr": 1e-3}])
    (rows.FOLDER / "small/learning.yaml").write_text(yaml.safe_dump({**recipe, **upsampler}))
    return replace(ROW, method="beyond", key="", name="tiny-beyond", upsampler=learning)


def test_a_base_is_enlarged_by_others_and_its_images_are_learned_from(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_by_nobody(monkeypatch)
    others = [
        replace(ROW, method=name, key="", name=f"tiny-{name}", enlarger=name) for name in ("bicubic", "real-esrgan")
    ]
    seen: list[list[Path]] = []

    def learn(recipe: Recipe, folder: Path, **more: object) -> None:
        assert folder.name == "learning-0"
        assert recipe.generated is not None
        assert recipe.generated.root is not None
        training, _ = open_data(recipe, build_condition(recipe))
        assert isinstance(training, WithGenerated)  # which reads what the base made
        seen.append(sorted(Path(recipe.generated.root).glob("*_0.png")))
        raise UserError("enough was seen")

    plan = replace(PLAN, rows=(ROW, *others, beyond_the_paper(tmp_path)))
    trained(PLAN, TINY, 0, workspace, QUIET)
    monkeypatch.setattr(runs, "train", learn)
    table = make.reproduce(plan, workspace, QUIET)
    own, bicubic, real_esrgan, failed = table.lines
    assert [line.found[0].value("fd") for line in (own, bicubic)] == [4, 3]  # with and without a contact sheet
    assert "give real_esrgan FILE" in real_esrgan.missing[0]
    assert "enough was seen" in failed.missing[0]
    small, large = (sorted((workspace.out / "images" / name).glob("*_0.png")) for name in ("tiny-0", "tiny-bicubic-0"))
    for before, after in zip(small, large, strict=True):
        with Image.open(before) as one, Image.open(after) as other:
            wanted = one.resize((4 * one.width, 4 * one.height), Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(other), np.asarray(wanted))
    assert [len(files) for files in seen] == [9]  # every training pair, none of the held-out ones
    stamp = large[0].stat().st_mtime_ns
    torch.manual_seed(0)
    network = RRDBNet(width=4, growth=2, blocks=1).eval()
    weights = tmp_path / "network.safetensors"
    save_file(network.state_dict(), weights)
    for module in (images, make):
        monkeypatch.setattr(module, "load_real_esrgan", lambda path: network)
    again = make.reproduce(replace(plan, rows=(ROW, *others)), replace(workspace, real_esrgan=weights), QUIET)
    assert not again.missing
    assert large[0].stat().st_mtime_ns == stamp
    with Image.open(small[0]) as one, Image.open(workspace.out / "images/tiny-real-esrgan-0" / small[0].name) as other:
        assert np.array_equal(np.asarray(other), np.asarray(network.enlarged(one.convert("RGB"))))


def test_an_unfinished_run_goes_on_and_other_recipes_are_refused(workspace: Workspace) -> None:
    run = trained(PLAN, TINY, 0, workspace, QUIET)
    finished = RunFolder(run).newest()
    assert finished is not None
    recipe = recipe_of(PLAN, TINY, 0, workspace)
    assert progress_of(run, recipe).finished
    touched_in_another_order(run)
    assert progress_of(run, recipe).finished
    lagging = shutil.copytree(run / "checkpoints/step-00000003", run.parent / "step-00000003")
    assert not is_of(run / "model", lagging)  # whatever the files' dates say
    assert is_of(run / "model", finished)
    shutil.rmtree(finished)  # as if it had been stopped at step 3
    now = progress_of(run, recipe)
    assert (str(now), now.finished) == ("step 3 of 4", False)
    with pytest.raises(RunError, match=r"tiny-0 is not trained \(step 3 of 4\), and training is disabled"):
        trained(PLAN, TINY, 0, replace(workspace, train=False), QUIET)
    trained(PLAN, TINY, 0, workspace, QUIET)
    assert progress_of(run, recipe).finished
    (run / "model/model_index.json").unlink()  # killed between checkpoint and model
    assert not progress_of(run, recipe).finished
    trained(PLAN, TINY, 0, workspace, QUIET)
    assert progress_of(run, recipe).finished
    faster = replace(workspace, changes=("compile=true", "checkpointing=true", "precision=bf16"))  # as on GPUs
    assert progress_of(run, recipe_of(PLAN, TINY, 0, faster)).finished
    other = replace(workspace, changes=("stages.0.lr=0.5", "workers=3"))
    with pytest.raises(RunError, match=r"another recipe; .*stages\.0\.lr = 0\.001 where 0\.5 is planned"):
        trained(PLAN, TINY, 0, other, QUIET)
    halved = recipe.model_copy(update={"batch": 2})  # of one of two processes
    values = json.loads((finished / "run.json").read_text()) | {"processes": 2}
    (finished / "run.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="batch of all processes = 8 where 4"):
        progress_of(run, recipe)
    (finished / "recipe.yaml").write_text(yaml.safe_dump(halved.to_dict()))
    assert progress_of(run, recipe).step == 4


def test_a_finished_run_is_of_the_data_that_is_given(workspace: Workspace) -> None:
    run = trained(PLAN, TINY, 0, workspace, QUIET)
    elsewhere = shutil.copytree(workspace.data["camvid"], workspace.out / "elsewhere")
    moved = replace(workspace, data={"camvid": elsewhere})
    assert trained(PLAN, TINY, 0, moved, QUIET) == run
    assert Checker(PLAN, moved).problem(TINY, 0) == ""
    for folder in ("images", "labels"):
        for path in (elsewhere / folder).glob("*.png"):
            path.rename(path.with_stem(f"{path.stem}-other"))
    splits = json.loads((elsewhere / "splits.json").read_text())
    renamed = {split: [f"{key}-other" for key in keys] for split, keys in splits.items()}
    (elsewhere / "splits.json").write_text(json.dumps(renamed))
    said = "step-00000004 was trained with other pairs: their number is the same, but their names differ"
    assert said in Checker(PLAN, moved).problem(TINY, 0)
    for train in (True, False):
        with pytest.raises(RunError, match=said):
            trained(PLAN, TINY, 0, replace(moved, train=train), QUIET)


def test_the_average_is_found_among_all_that_a_checkpoint_keeps(workspace: Workspace) -> None:
    """Draws of timesteps by their losses have a state too, and are registered first."""
    workspace = replace(workspace, changes=("loss.timesteps=second_moment",))
    run = trained(PLAN, TINY, 0, workspace, QUIET)
    finished = RunFolder(run).newest()
    assert finished is not None
    assert len(list(finished.glob(runs.STATES))) == 2
    assert progress_of(run, recipe_of(PLAN, TINY, 0, workspace)).finished
    for number, path in enumerate(sorted(finished.glob(runs.STATES), reverse=True), start=5):
        path.rename(path.with_name(f"custom_checkpoint_{number}.pkl"))
    (finished / "custom_checkpoint_3.pkl").write_bytes(b"cut short")
    assert is_of(run / "model", finished)
    for path in finished.glob(runs.STATES):
        path.write_bytes(b"cut short")
    assert not is_of(run / "model", finished)


def test_results_of_other_images_are_made_anew(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_by_nobody(monkeypatch)
    make.reproduce(PLAN, workspace, QUIET)
    before = stamps(workspace.out)
    slower = replace(
        PLAN, rows=(replace(PLAN.rows[0], options=GenerationOptions.from_flat(steps=3, sampler="ddim", num=2)),)
    )
    found = make.reproduce(slower, workspace, QUIET).lines[0].found[0]
    assert found.value("fd") == 7  # two of each of three conditions, and their sheet
    after = stamps(workspace.out)
    changed = {path for path in after if before.get(path) != after[path]}
    assert {path.parent.name for path in changed} == {"tiny-0", "images", "results"}
    assert not any("runs" in path.parts for path in changed)


def test_a_corrected_class_table_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names decide which of a segmenter's labels mean which class."""
    judged_by_nobody(monkeypatch)
    space, here = Workspace(tmp_path, judges=Judges(())), tmp_path / "data"

    def judged_at(name: str) -> int:
        """When the result was written that is found for these classes."""
        condition = MaskCondition(ClassTable(names=("sky", name), ids=(0, 1), colours=((0, 0, 0), (9, 9, 9))))
        chosen = DatasetFiles(condition, here, here, here, (), 0)
        runs.evaluated(tmp_path / "row-0", {"models": "these"}, 64, space, chosen, QUIET)
        return space.result("row-0").stat().st_mtime_ns

    first = judged_at("raod")
    assert judged_at("raod") == first
    assert judged_at("road") > first


def test_two_pairs_whose_images_would_have_one_name_are_told(tiny_data: Path, tmp_path: Path) -> None:
    """One of them would be lost without a word."""
    for kind in ("images", "labels"):
        (tiny_data / kind / "drive").mkdir()
        for key in ("scene-00", "scene-01"):
            shutil.copy(tiny_data / kind / f"{key}.png", tiny_data / kind / f"{key.replace('scene', 'drive')}.png")
        shutil.copy(tiny_data / kind / "scene-00.png", tiny_data / kind / "drive/00.png")
    splits = {"train": ["scene-02"], "val": ["drive-00", "drive-01", "drive/00"]}
    (tiny_data / "splits.json").write_text(json.dumps(splits))
    condition = build_condition(Recipe.parse(tiny_recipe(tiny_data), "test"))
    spec = FolderSpec(root=tiny_data)
    with pytest.raises(UserError, match=r"the images of drive-00 and drive/00 would both be named drive-00; ren"):
        choose(condition, spec, "val", tmp_path / "chosen")
    (tiny_data / "splits.json").write_text(json.dumps(splits | {"val": ["drive-01", "drive/00"]}))
    assert choose(condition, spec, "val", tmp_path / "chosen").stems == ("drive-00", "drive-01")


def test_a_failed_run_is_tried_once_and_an_interruption_ends_all(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_by_nobody(monkeypatch)
    tried = []

    def failing(*rest: object, **more: object) -> None:
        tried.append(rest)
        raise UserError("the loss is not a number")

    monkeypatch.setattr(runs, "train", failing)
    plan = replace(PLAN, rows=(*PLAN.rows, replace(PLAN.rows[0], method="again", name="again")))
    table = make.reproduce(plan, workspace, QUIET)
    assert [line.missing for line in table.lines] == [("seed 0: the loss is not a number",)] * 2
    assert len(tried) == 1
    assert "missing" in (workspace.out / "table1.md").read_text()

    def interrupted(*rest: object, **more: object) -> None:
        raise TrainingInterrupted("saved")

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(TrainingInterrupted):
        make.reproduce(PLAN, workspace, QUIET)


def test_a_stop_during_a_runs_last_step_ends_all(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "preview", lambda trainer, _: signal.raise_signal(signal.SIGINT))
    complete = "the run is complete and saved; give the same command again to continue"
    with pytest.raises(TrainingInterrupted, match=complete):
        trained(PLAN, TINY, 0, workspace, QUIET)
    assert trained(PLAN, TINY, 0, workspace, QUIET) == workspace.run(TINY, 0)


def test_what_a_run_proposes_is_what_this_command_can_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = f"free disk space, then continue with {option('resume')}, or give another {option('out')}"
    for local, said in ((f"give {option('set')} workers=1", ""), ("mend classes.json", "mend classes.json, or ")):
        full = Mock(side_effect=RunError("full", remedy=remedy, local_remedy=local))
        monkeypatch.setattr(runs, "train", full)
        with pytest.raises(
            RunError, match=f"full; {said}free disk space, then continue with the same command, or give another out$"
        ):
            trained(PLAN, TINY, 0, workspace, QUIET)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_bytes(b"")
    with pytest.raises(OutputError, match="contains other files"):
        begin_folder(tmp_path / "images", {"seed": 0})
    assert (tmp_path / "images/mine.png").exists()


def test_photographs_that_cannot_be_judged_are_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_by_nobody(monkeypatch)

    def failing(*rest: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(make, "as_png", failing)
    table = make.reproduce(PLAN, workspace, QUIET)
    assert table.lines[0].found
    assert table.missing == [f"photographs of `{workspace.data['camvid'].name}` (instead of CamVid): the disk is full"]
    assert "| *photographs (held out)* † | missing |" in (workspace.out / "table1.md").read_text()


def command_alone() -> typer.Typer:
    from piti.cli.reproduce import reproduce

    app = typer.Typer()
    app.command()(reproduce)
    return app


def test_the_command(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    app = command_alone()
    monkeypatch.setitem(small_plans.SMALL, "table1", lambda: PLAN)  # type: ignore[arg-type]
    run = CliRunner()
    data, out = str(workspace.data["camvid"]), str(workspace.out)
    told = run.invoke(app, ["table1", "--dry-run", "--out", out, "--seeds", "1"])
    assert told.exit_code == 0, told.output
    assert "tiny-0" in told.output
    votes = run.invoke(app, ["table2", "--dry-run", "--out", out])
    assert "piti-tokens-0" in votes.output
    assert "piti-tokens-1" not in votes.output  # raters see one run of each method
    assert "normalised (eq. 8)" in run.invoke(app, ["figure6", "--dry-run"]).output
    refused = run.invoke(app, ["table1", "--out", out])
    assert "data: is missing for camvid" in str(refused.exception)
    given = ["--features", workspace.judges.features[0], "--bootstrap", "0", "--seeds", "1", "--device", "cpu"]
    missing = run.invoke(app, ["table1", "--data", data, "--out", out, "--no-train", *given])
    assert missing.exit_code == 1
    assert "missing: tiny: seed 0: tiny-0 is not trained (new), and training is disabled" in missing.output
    assert (workspace.out / "table1.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("figure6 --scale small --no-train", "--scale, --no-train has no effect with piti reproduce figure6"),
        ("figure6 --seeds 2 --perceptual x --gpu h100", "--seeds, --perceptual, --gpu has no effect"),
        ("table2 --features clip", "--features has no effect with piti reproduce table2"),
        ("table2 --votes sent --dry-run", "--dry-run has no effect with piti reproduce table2 --votes; remove it"),
        ("table2 --votes sent --limit 5", "--limit has no effect with piti reproduce table2 --votes; remove it"),
        (
            "table2 --votes sent --data d --device cpu",
            "--data, --device has no effect with piti reproduce table2",
        ),
        ("table1 --votes sent", "--votes has no effect with piti reproduce table1"),
        ("table1 --model street", "--model has no effect with piti reproduce table1"),
        ("table1 --dry-run --gpu h100", "--gpu applies only to --dry-run --scale paper"),
        ("table1 --scale paper --gpu h100", "--gpu applies only to --dry-run"),
        ("table1 --aliases a.json", "--aliases has no effect without --segmenter"),
    ],
)
def test_what_means_nothing_is_refused(words: str, message: str) -> None:
    assert message in str(CliRunner().invoke(command_alone(), words.split()).exception)
