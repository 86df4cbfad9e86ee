"""A run's folder in use: locking, a full disk, no validation, and resuming after a change."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from weakref import WeakSet

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError

from piti.checkpoints.folder import INDEX_FILE
from piti.core.errors import count_of
from piti.training import Recipe, RunError, RunFolder, distributed, plan, run_lock, train
from piti.training.run_lock import LOCK_FILE, RunLock, RunLockedError
from piti.training.run_state import condition_changes
from tests.conftest import tiny_recipe

ONE = [{"name": "joint", "steps": 1}]
HOLD = """
import fcntl, json, os, socket, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def recipe_of(root: Path, **changes: object) -> Recipe:
    return Recipe.parse(tiny_recipe(root, **changes), "test")


def test_a_program_draws_what_it_would_have_drawn_without_the_training(tiny_data: Path, tmp_path: Path) -> None:
    def seeded() -> None:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(7)

    def drawn() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.random(), random.random()

    seeded()
    expected = drawn(), drawn()
    seeded()
    train(recipe_of(tiny_data, stages=ONE), tmp_path / "run")
    found = drawn()
    train(recipe_of(tiny_data, stages=[{"name": "joint", "steps": 2}]), tmp_path / "run", resume=True)
    assert (found, drawn()) == expected


def test_one_pair_is_told_as_one(tiny_data: Path, tmp_path: Path) -> None:
    keys = [f"scene-{k:02d}" for k in range(12)]
    (tiny_data / "splits.json").write_text(json.dumps({"train": keys[:9], "val": keys[9:10]}))
    rows = {row["what"]: row["plan"] for row in plan(recipe_of(tiny_data), tmp_path / "run")}
    assert rows["data"] == "9 training and 1 validation pair"
    assert "not used, since they are in no split of splits.json: 2 pairs" in rows["shows"].splitlines()
    assert [count_of(number, "pair") for number in (0, 1, 2000)] == ["0 pairs", "1 pair", "2,000 pairs"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup": 3}, "4 steps at 0.001"),
        ({"warmup": 7}, "4 steps at 0.001; the warm-up of 7 steps only reaches 0.0005"),
        ({"warmup": 3, "decay": 0.5}, "4 steps at 0.001; the warm-up of 3 steps only reaches 0.00075"),
        ({"decay": 1.0}, "4 steps at 0.001"),
    ],
)
def test_the_plan_says_where_the_warm_up_is_never_over(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "none", stages=[{"name": "joint", "steps": 4, "lr": 1e-3, **given}])
    bare = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": None})})
    rows = {row["what"]: row["plan"] for row in plan(bare, tmp_path / "run")}
    assert rows["stage joint"].endswith(said)


def test_a_run_within_the_pictures_that_it_reads_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    images, labels = tiny_data / "images", tiny_data / "labels"
    for out in (images, images / "runs/a", labels / "a"):
        with pytest.raises(
            RunError, match=r"lies inside .*(images|labels), a folder of training data.*; give another out"
        ):
            plan(recipe_of(tiny_data), out)
    alone = recipe_of(tiny_data, data={"size": 16, "photographs": [str(tmp_path)]})
    with pytest.raises(RunError, match="lies inside"):
        RunFolder(tmp_path / "run").check(alone, resume=False)
    RunFolder(tiny_data / "run").check(recipe_of(tiny_data), resume=False)


def test_what_a_run_did_not_leave_is_not_cleared_away(tiny_data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    mine = [tmp_path / "film.partial/a", tmp_path / "film.old.partial/a", tmp_path / "a.partial"]
    left = [run.root / "model.partial/a", run.checkpoints / "step-00000001.partial/a"]
    for path in (*mine, *left, run.checkpoints / "step-00000002.old.partial/a", run.root / "model.old.partial/a"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run.begin(recipe_of(tiny_data))
    run.lock.release()
    assert all(path.exists() for path in mine)
    assert not any(path.parent.exists() for path in left)
    assert (run.model / "a").exists()
    assert (run.checkpoints / "step-00000002/a").exists()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002"]


def test_losses_are_not_divided_by_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(1, requires_grad=True)
    distributed.build_accelerator(recipe_of(tmp_path, accumulation=2)).backward(weight.sum())
    assert weight.grad == 1


def test_sharding_without_the_gpus_for_it_says_what_there_is(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    here = Mock(num_processes=1, distributed_type=DistributedType.NO)
    why = distributed._why_not(here, recipe_of(tiny_data), 1)
    assert why is not None
    assert f"(processes here: 1, GPUs: {torch.cuda.device_count()}); start one per GPU" in why


def test_a_second_process_is_refused_and_a_dead_one_s_lock_taken_over(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run / LOCK_FILE)], **pipes)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = rf"another process \(pid {holder.pid}, on {socket.gethostname()}\) is training in {run}"
        for begin in (train, plan):
            with pytest.raises(RunLockedError, match=said):
                begin(recipe_of(tiny_data), run)
    finally:
        holder.kill()
        holder.communicate()
    assert (run / LOCK_FILE).exists()
    train(recipe_of(tiny_data, stages=ONE), run)
    assert not (run / LOCK_FILE).exists()


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(RunLockedError, match=r"\(pid 7, on elsewhere\).*remove that file"):
        RunLock(tmp_path).check()
    for cut in ("", "{", "[1]"):
        (tmp_path / LOCK_FILE).write_text(cut)
        lock = RunLock(tmp_path)
        lock.take()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        lock.release()


@pytest.mark.parametrize("then", ["removed", "taken"])
def test_a_lock_that_was_released_while_it_was_opened_is_not_the_folders(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened lies there no more, or another process has locked a new one."""
    assert run_lock.fcntl is not None
    path, real = tmp_path / LOCK_FILE, run_lock.fcntl.lockf
    path.touch()
    opened: list[Any] = []
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    others: list[subprocess.Popen[str]] = []

    def late(file: Any, how: int) -> None:
        opened.append(file)
        if len(opened) == 1:
            path.unlink()  # its holder's last act
            if then == "taken":
                others.append(subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes))
                assert others[0].stdout is not None
                others[0].stdout.readline()
        real(file, how)

    monkeypatch.setattr(run_lock.fcntl, "lockf", late)
    lock = RunLock(tmp_path)
    try:
        if then == "taken":
            with pytest.raises(RunLockedError, match=r"another process \(pid [0-9]+, on ") as caught:
                lock.take()
            assert f"pid {others[0].pid}," in str(caught.value)
        else:
            lock.take()
            assert json.loads(path.read_text())["pid"] == os.getpid()
            assert os.path.samestat(os.fstat(opened[-1].fileno()), path.stat())
            lock.release()
    finally:
        for one in others:
            one.kill()
            one.communicate()
    assert len(opened) == 2
    assert opened[0].closed


def test_where_files_are_not_told_apart_or_locked_the_folder_is_taken_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*rest: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    for locks in (True, False):
        if not locks:
            monkeypatch.setattr(run_lock.fcntl, "lockf", refused)
        lock = RunLock(tmp_path)
        lock.take()
        assert (tmp_path / LOCK_FILE).exists()
        lock.release()
        RunLock(tmp_path).check()


def test_a_lock_that_is_released_while_it_is_looked_at_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / LOCK_FILE, Path.open
    path.touch()

    def gone(self: Path, *rest: Any, **more: Any) -> Any:
        path.unlink(missing_ok=True)
        return real(self, *rest, **more)

    monkeypatch.setattr(Path, "open", gone)
    RunLock(tmp_path).check()
    assert not path.exists()


def test_a_lock_of_this_process_is_neither_taken_again_nor_lost(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path / "../" / tmp_path.name)
    first.take()
    for refused in (second.check, second.take):
        with pytest.raises(RunLockedError, match=rf"this process \(pid {os.getpid()}\) is already training in"):
            refused()
    first.check()
    tried = f"import fcntl; fcntl.lockf(open({str(first.path)!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    ended = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in ended.stderr
    first.release()
    RunLock(tmp_path).take()  # not released, but gone
    first.take()
    first.release()


def test_without_record_locks_a_file_beside_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where nobody reads what another has locked, and no open file is removed."""
    monkeypatch.setattr(run_lock, "fcntl", None)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    monkeypatch.setattr(run_lock, "_HELD", WeakSet())  # as seen by another process
    for refused in (second.check, second.take):
        with pytest.raises(RunLockedError, match=rf"another process \(pid {os.getpid()}, on .* is training in"):
            refused()
    first.release()
    second.check()
    first.take()
    first.release()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_full_disk_names_what_is_whole_and_how_to_go_on(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = Accelerator.save_state, []

    def full(self: Accelerator, output_dir: str, *rest: Any) -> Any:
        count.append(output_dir)
        if len(count) > 1:
            Path(output_dir).mkdir()
            (Path(output_dir) / "half").write_bytes(b"x")
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise SafetensorError("Error while serializing") from None
        return save(self, output_dir, *rest)

    recipe = recipe_of(tiny_data, stages=[{"name": "joint", "steps": 2}], checkpoint={"every": 1, "keep": 2})
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        said = r"step 2 cannot be written \(No space left .*step-00000001; free disk space, then continue with resume"
        with pytest.raises(RunError, match=said):
            train(recipe, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run / LOCK_FILE).exists()
    assert (train(recipe, run, resume=True) / INDEX_FILE).is_file()


def test_a_full_disk_is_told_alike_of_previews_and_of_what_is_logged(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, write = recipe_of(tiny_data, stages=[{"name": "joint", "steps": 1}]), Path.write_text
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_text(self: Path, *rest: Any, **more: Any) -> int:
        if self.name.startswith("metrics"):
            raise full
        return write(self, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=full))
        said = (
            r"the preview of step 1 cannot be written \(No space left .*step-00000001; free disk space, then "
            "continue with"
        )
        with pytest.raises(RunError, match=said):
            train(recipe, tmp_path / "run")
    RunFolder(tmp_path / "run").log({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        with pytest.raises(RunError, match=r"metrics.jsonl cannot be written .*step-00000001; free disk space"):
            RunFolder(tmp_path / "run").forget_after(1)


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def fails(error: Exception) -> None:
        with folder.writing("the model"):
            raise error

    with pytest.raises(RuntimeError, match="shapes"):
        fails(RuntimeError("shapes differ"))
    for said in (
        "[enforce fail] PytorchStreamWriter failed writing file data/3",
        "[enforce fail at inline_container.cc:672] . unexpected pos 130368 vs 130256",
        "basic_ios::clear: iostream error",
    ):
        with pytest.raises(
            RunError, match=r"the model cannot be written .*there is no complete checkpoint yet; free disk space"
        ):
            fails(RuntimeError(said))


def test_without_validation_pairs_the_plan_and_the_run_say_so(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"scene-{k:02d}" for k in range(12)]
    (tiny_data / "splits.json").write_text(json.dumps({"train": keys, "val": []}))
    recipe = recipe_of(tiny_data, stages=ONE, preview={"every": 1, "count": 1, "steps": 1})
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run")}
    assert rows["data"] == "12 training and 0 validation pairs"
    assert "no validation pairs" in rows["validation"]
    train(recipe, tmp_path / "run")
    assert "no validation pairs" in " ".join(capsys.readouterr().err.split())


TABLE = {"names": ["a", "b", "c"], "ids": [0, 1, 2], "colours": [[0, 0, 1], [0, 0, 2], [0, 0, 3]], "ignore": 255}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ["a", "b", "c", "d"], "ids": [0, 1, 2, 3]}, "other classes: 'd' is new"),
        ({"names": ["a", "c"], "ids": [0, 2]}, "other classes: 'b' is gone"),
        ({"names": ["b", "a", "c"]}, "other classes: in another order, 'a' was class 0, where 'b' is now"),
        ({"ignore": 9}, "another condition: classes.ignore = 255, now it is 9"),
        ({"colours": [[0, 0, 1], [0, 9, 2], [0, 0, 3]]}, "another condition: classes.colours.1 = [0, 0, 2], now"),
    ],
)
def test_changed_classes_are_named(change: dict[str, Any], said: str) -> None:
    old = {"kind": "mask", "classes": TABLE}
    assert condition_changes(old, {"kind": "mask", "classes": TABLE | change}).startswith(said)
