"""Interrupted, killed or refused runs resume as if uninterrupted, and only with their original settings."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from piti.core import files as atomic
from piti.core.spec import SpecError
from piti.training import Recipe, RunError, RunFolder, plan, read_recipe, run_folder, train
from piti.training.loop import Trainer
from piti.training.monitor import StopRequest
from piti.training.run_state import RunState
from tests.conftest import make_tiny_data, tiny_recipe
from tests.forked import Forked, piti
from tests.training.runs import STAGES, equal, recipe_of, shallow, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe with all that is random, and its run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    stages = [STAGES[0], STAGES[1] | {"steps": 4}]
    brief = {"preview": {"every": 5, "count": 1, "judged": 1, "steps": 1}, "checkpoint": {"every": 5, "keep": 2}}
    model = shallow(dropout=0.1)
    recipe = recipe_of(make_tiny_data(folder), stages=stages, accumulation=2, model=model, **brief)
    train(recipe, folder / "whole")
    return recipe, folder / "whole"


@pytest.mark.parametrize("stop_after", [3, 6])
def test_resumed_is_as_if_never_stopped(whole: tuple[Recipe, Path], tmp_path: Path, stop_after: int) -> None:
    """Stopped between the stages, and between two checkpoints."""
    recipe, uncut = whole
    real = Trainer.train_step

    def interrupted(self: Trainer, *args: object) -> object:
        if self.state.step == stop_after:
            raise RuntimeError("power cut")
        return real(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "cut")
    train(recipe, tmp_path / "cut", resume=True)
    assert equal(weights(uncut), weights(tmp_path / "cut"))
    logged = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert logged == [json.loads(line)["step"] for line in (uncut / "metrics.jsonl").read_text().splitlines()]


def test_timesteps_drawn_by_their_losses_are_resumed_as_if_never_stopped(tiny_data: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int, draws: str = "second_moment", resume: bool = False) -> dict[str, torch.Tensor]:
        recipe = recipe_of(
            tiny_data, model=shallow(), loss={"timesteps": draws}, schedule={"betas": "squaredcos_cap_v2", "steps": 3},
            stages=[{"name": "joint", "steps": steps, "lr": 1e-3}],
        )  # fmt: skip
        train(recipe, tmp_path / name, resume=resume)
        return weights(tmp_path / name)

    whole = run("whole", 13)
    run("parts", 11)
    assert equal(run("parts", 13, resume=True), whole)
    assert not equal(run("even", 13, draws="even"), whole)  # from step 11 on the losses decide
    newest = RunFolder(tmp_path / "whole").newest()
    assert newest is not None
    histories = [torch.load(one) for one in newest.glob("custom_checkpoint_*.pkl")]
    assert 13 * 4 in [int(one["counts"].sum()) for one in histories if "counts" in one]


def start(root: Path, out: Path, precision: str = "no") -> Forked:
    path = root / "recipe.yaml"
    stages = [{"name": "adapt", "trains": ["encoder"], "steps": 3}, {"name": "joint", "steps": 9, "lr": 1e-3}]
    changes = {"stages": stages, "checkpoint": {"every": 2, "keep": 2}, "precision": precision, "workers": 1}
    path.write_text(yaml.safe_dump(tiny_recipe(root, model=shallow(), **changes)))
    return Forked(piti, "train", str(path), "--out", str(out), folder=root, environment={})


def wait_for(path: Path, process: Forked) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.returncode is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def test_killed_by_the_kernel_and_resumed(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    process = start(tiny_data, tmp_path / "cut", precision="bf16")
    wait_for(tmp_path / "cut/checkpoints/step-00000004", process)
    time.sleep(0.1 * np.random.default_rng().random())  # anywhere, saving included
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    recipe = read_recipe(tiny_data / "recipe.yaml").model_copy(update={"workers": 0})
    train(recipe, tmp_path / "cut", resume=True)
    assert "continuing from" in " ".join(capsys.readouterr().err.split())
    train(recipe, tmp_path / "whole")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert not list((tmp_path / "cut").rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_and_says_how_to_go_on(number: int, tiny_data: Path, tmp_path: Path) -> None:
    process = start(tiny_data, tmp_path / "run")
    wait_for(tmp_path / "run/checkpoints/step-00000002", process)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: to the loader's worker too
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.count("stopping after this step") == 1
    assert "--resume" in said
    assert "Traceback" not in said
    newest = RunFolder(tmp_path / "run").newest()
    assert newest is not None
    assert f"step {int(newest.name.removeprefix('step-'))}" in " ".join(said.split())


def test_one_request_may_come_several_times() -> None:
    """A scheduler sends SIGTERM to all processes, and torchrun hands its own on, so that each gets it twice."""
    told, group = StopRequest(Console(quiet=True)), StopRequest(Console(quiet=True), alone=False)
    with told.listening():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert told.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with group.listening():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert group.asked


def test_a_terminal_that_closes_ends_what_is_not_to_outlive_it() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):  # the latter by `nohup`
            signal.signal(signal.SIGHUP, handler)
            stop = StopRequest(Console(quiet=True))
            with stop.listening():
                assert (signal.getsignal(signal.SIGHUP) != handler) == ends
                signal.raise_signal(signal.SIGHUP)
            assert stop.asked == ends
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


class PowerCut(BaseException):
    """Stops everything at once, as a kill does."""


def test_killed_at_any_file_operation_of_the_last_save(tiny_data: Path, tmp_path: Path) -> None:
    """The power goes at the k-th change of the disk while the last step is saved, for every k; of those that leave the
    same files behind one goes on."""
    stages = [{"name": "joint", "steps": 2, "lr": 1e-2}]
    recipe = recipe_of(tiny_data, stages=stages, model=shallow(), checkpoint={"every": 1, "keep": 1})
    operations = [(Path, "rename"), (Path, "write_text"), (Path, "mkdir"), (shutil, "rmtree")]
    operations += [(atomic, "flush"), (run_folder, "flush")]
    save, left = Trainer.save, {}

    def cut_everywhere(self: Trainer) -> None:
        for k in range(60 if self.state.step == 2 else 0):
            out = tmp_path / f"cut-{k}"
            shutil.copytree(self.run.folder.root, out, ignore=shutil.ignore_patterns("*.lock*"))
            if not cut(self, RunFolder(out), k):
                break
            left.setdefault(frozenset(path.relative_to(out) for path in out.rglob("*")), out)
        save(self)

    def cut(trainer: Trainer, folder: RunFolder, k: int) -> bool:
        """Whether saving into a folder was cut short after k operations."""
        whole, trainer.run, count = trainer.run, replace(trainer.run, folder=folder), [0]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in operations:
                patch.setattr(owner, name, failing(getattr(owner, name), count, k))
            try:
                save(trainer)
            except PowerCut:
                return True
            finally:
                trainer.run = whole
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", cut_everywhere)
        train(recipe, tmp_path / "whole")
    assert len(left) > 6
    assert len(list(tmp_path.glob("cut-*"))) > 10
    for out in left.values():
        train(recipe, out, resume=True)
        assert equal(weights(tmp_path / "whole"), weights(out)), out
        assert not list(out.rglob("*.partial")), out


def failing(real, count: list[int], k: int):  # type: ignore[no-untyped-def]
    def operation(*args: object, **options: object) -> object:
        count[0] += 1
        if count[0] > k:
            raise PowerCut
        return real(*args, **options)

    return operation


def test_killed_while_saving_keeps_the_checkpoint_before(tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "joint", "steps": 3, "lr": 1e-3}]
    recipe = recipe_of(tiny_data, stages=stages, model=shallow(), checkpoint={"every": 1, "keep": 2})
    train(recipe, tmp_path / "whole")

    def cut(self: RunFolder, partial: Path, *_: object) -> None:
        assert any(partial.iterdir())
        if partial.name.startswith("step-00000002"):
            raise RuntimeError("power cut")
        return real(self, partial, *_)  # type: ignore[arg-type]

    real = RunFolder.complete_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "complete_checkpoint", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "cut")
    newest = RunFolder(tmp_path / "cut").newest()
    assert newest is not None
    assert newest.name == "step-00000001"
    train(recipe, tmp_path / "cut", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_recipe_written_into_the_runs_folder_keeps_its_comments(tmp_path: Path) -> None:
    path, values = tmp_path / "recipe.yaml", tiny_recipe(tmp_path)
    path.write_text(text := "# mine\n" + yaml.safe_dump(values))
    folder = RunFolder(tmp_path)
    for seed in (0, 1):
        folder.begin(Recipe.parse(values | {"seed": seed}, "test"))
        folder.lock.release()
        assert (path.read_text() == text) == (seed == 0)
    assert read_recipe(path).seed == 1


def test_a_recipe_of_the_runs_folder_that_flags_change_is_kept_beside_it(tmp_path: Path) -> None:
    path, values = tmp_path / "recipe.yaml", tiny_recipe(tmp_path)
    folder = RunFolder(tmp_path)
    kept = []
    for seed, text in ((1, "# mine\n" + yaml.safe_dump(values)), (2, None), (3, "name: [cut")):
        if text is not None:
            path.write_text(text)
        kept.append(folder.begin(Recipe.parse(values | {"seed": seed}, "test")))
        folder.lock.release()
        assert read_recipe(path).seed == seed
    assert kept == [tmp_path / "recipe-given.yaml", None, tmp_path / "recipe-given-2.yaml"]
    assert [one.read_text()[:6] for one in kept if one is not None] == ["# mine", "name: "]


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_that_no_checkpoint_belongs_to_is_not_replaced(tmp_path: Path, resume: bool) -> None:
    """A folder of a project's own of that name, or what is left of a run whose checkpoints were removed."""
    (tmp_path / "model").mkdir()
    with pytest.raises(RunError, match=r"model exists without a checkpoint .* another out"):
        RunFolder(tmp_path).check(recipe_of(tmp_path), resume)


def test_copies_that_a_person_put_beside_checkpoints_stay_theirs(tmp_path: Path) -> None:
    folder, recipe = RunFolder(tmp_path), recipe_of(tmp_path)
    state = RunState(0, "joint", 0, 0, 0.0, processes=1, pairs=1, condition={}, version="0")
    kept = folder.partial_checkpoint(1).with_name("step-00000001-kept")
    kept.mkdir(parents=True)
    packed = kept.with_name("step-00000001.tar")
    packed.write_bytes(b"")
    assert folder.newest() is None
    for step in (1, 2):
        partial = folder.partial_checkpoint(step)
        partial.mkdir()
        newest = folder.complete_checkpoint(partial, state, recipe, keep=1)
        assert folder.newest() == newest
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [kept.name, packed.name, newest.name]


def test_a_checkpoint_that_was_copied_in_part_is_named(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, uncut = whole
    for name in ("recipe.yaml", "run.json", "model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"):
        copy = shutil.copytree(uncut, tmp_path / name, ignore=shutil.ignore_patterns("*.lock*"))
        newest = RunFolder(copy).newest()
        assert newest is not None
        kept = (newest / name).read_bytes()
        (newest / name).unlink()
        if name != "recipe.yaml":
            (newest / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(RunError, match=f"{newest.name}: a file of the checkpoint cannot be read .*or remove it"):
            train(recipe, copy, resume=True)
        shutil.rmtree(newest)
    train(recipe, copy, resume=True)


def test_a_run_is_not_overwritten_nor_continued_with_another_recipe(tiny_data: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_data), tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(RunError, match="resume"):
        train(recipe_of(tiny_data), tmp_path / "run")
    with pytest.raises(SpecError, match="batch: 4 in the checkpoint, 2 now"):
        train(recipe_of(tiny_data, batch=2), tmp_path / "run", resume=True)
    assert equal(before, weights(tmp_path / "run"))


def test_what_diverged_goes_on_with_a_lower_rate(tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "joint", "steps": 2, "lr": 1e-3}]
    train(recipe_of(tiny_data, stages=stages), tmp_path / "run")
    stages = [{"name": "joint", "steps": 4, "lr": 1e-4}]
    changed = recipe_of(tiny_data, stages=stages, optimizer={"clip": 0.5})
    train(changed, tmp_path / "run", resume=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows if "lr" in row] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "images/scene-00.png").unlink() or (root / "labels/scene-00.png").unlink(), "pairs = 9"),
        (
            lambda root: [(root / name / "scene-00.png").rename(root / name / "other.png") for name in FOLDERS],
            "other pairs: their number is the same",
        ),
        (
            lambda root: edit(root / "classes.json", '"car"', '"lorry"'),
            "other classes: 'car' is gone and 'lorry' is new",
        ),
    ],
)
def test_other_data_is_not_gone_on_with(tiny_data: Path, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    stages = [{"name": "joint", "steps": 2}]
    first = tiny_data / "splits.json"
    keys = [f"scene-{k:02d}" for k in range(12)]
    first.write_text(json.dumps({"train": keys[:9], "val": keys[9:]}))
    train(recipe_of(tiny_data, stages=stages), tmp_path / "run")
    change(tiny_data)
    keys = sorted(path.stem for path in (tiny_data / "images").iterdir())
    first.write_text(json.dumps({"train": keys[:-3], "val": keys[-3:]}))
    with pytest.raises(RunError, match=message):
        train(recipe_of(tiny_data, stages=stages), tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=message):  # a dry run says the same
        plan(recipe_of(tiny_data, stages=stages), tmp_path / "run")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (["scene-09", "scene-10"], "validation_pairs = 3, now it is 2"),
        (["scene-08", "scene-09", "scene-10"], "other validation pairs: their number is the same"),
        ([], None),  # nothing to compare with
    ],
)
def test_other_validation_pairs_are_not_gone_on_with(
    tiny_data: Path, tmp_path: Path, validation: list[str], message: str | None
) -> None:
    recipe, splits = recipe_of(tiny_data, stages=[{"name": "joint", "steps": 1}]), tiny_data / "splits.json"
    training, held_out = ([f"scene-{k:02d}" for k in places] for places in (range(8), range(9, 12)))
    splits.write_text(json.dumps({"train": training, "val": held_out}))
    train(recipe, tmp_path / "run")
    splits.write_text(json.dumps({"train": training, "val": validation}))
    for go_on in (plan, lambda recipe, run: train(recipe, run, resume=True)):
        with contextlib.nullcontext() if message is None else pytest.raises(RunError, match=message):
            go_on(recipe, tmp_path / "run")


def test_other_contents_under_the_same_names_are_told_once(tiny_data: Path, tmp_path: Path) -> None:
    def resumed(steps: int, root: Path = tiny_data) -> tuple[Recipe, str]:
        recipe, said = recipe_of(root, stages=[{"name": "joint", "steps": steps}]), io.StringIO()
        train(recipe, tmp_path / "run", resume=True, console=Console(file=said, width=200))
        return recipe, said.getvalue()

    told = "the contents of training pairs, validation pairs have changed since step 1"
    recipe, said = resumed(1)
    moved = tiny_data.rename(tiny_data.with_name("moved"))
    assert told not in said + resumed(1, moved)[1]
    for path in (moved / "labels/scene-00.png", moved / "labels/scene-11.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    recipe = recipe_of(moved, stages=[{"name": "joint", "steps": 1}])
    assert any(told in row["plan"] for row in plan(recipe, tmp_path / "run"))
    assert told in resumed(2, moved)[1]
    assert "have changed since" not in resumed(3, moved)[1]


FOLDERS = ("images", "labels")


def test_a_checkpoint_that_does_not_note_its_pairs_goes_on_as_before(tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_data, stages=[{"name": "joint", "steps": 1}])
    train(recipe, tmp_path / "run")
    newest = RunFolder(tmp_path / "run").newest()
    assert newest is not None
    state = json.loads((newest / "run.json").read_text())
    (newest / "run.json").write_text(json.dumps({key: state[key] for key in state if key != "pairs_sha256"}))
    splits = json.loads((tiny_data / "splits.json").read_text())
    (tiny_data / "splits.json").write_text(json.dumps({"train": splits["train"][1:] + splits["val"][:1], "val": []}))
    train(recipe, tmp_path / "run", resume=True)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_stage_that_no_longer_holds_the_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_data, stages=[STAGES[0] | {"steps": 4}]), tmp_path / "run")
    with pytest.raises(RunError, match="at step 4 of stage 'adapt', which the recipe does not have"):
        train(recipe_of(tiny_data, stages=[STAGES[0] | {"steps": 3}]), tmp_path / "run", resume=True)
