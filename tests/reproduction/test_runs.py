"""Dependencies of finished work besides its files: weights of networks given by name, and a run's initial weights."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.conditions import ClassTable, MaskCondition
from piti.core.files import file_hash
from piti.evaluation import pretrained
from piti.evaluation.features import FILES
from piti.evaluation.result import Evaluation
from piti.reproduction import make, runs
from piti.reproduction.checks import Checker
from piti.reproduction.files import DatasetFiles
from piti.reproduction.make import Results
from piti.reproduction.rows import Training
from piti.reproduction.runs import Judges, Workspace, trained
from piti.training import RunError, RunFolder
from tests.pipelines.test_pipeline import tiny_pipeline
from tests.reproduction.tiny import PLAN, QUIET, judged_by_nobody


def test_another_file_behind_a_networks_name_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub/checkpoints" / FILES["alexnet"]
    weights.parent.mkdir(parents=True)
    condition = MaskCondition(ClassTable(names=("sky",), ids=(0,), colours=((0, 0, 0),)))
    here = tmp_path / "data"
    chosen = DatasetFiles(condition, here, here, here, (), 0)

    def fake(*rest: object) -> Evaluation:
        return Evaluation((), {"networks": [{"name": "alexnet", "sha256": file_hash(weights)}]})

    monkeypatch.setattr(runs, "evaluate_files", fake)

    def judged_by(content: bytes) -> Evaluation:
        weights.write_bytes(content)
        space = Workspace(tmp_path, judges=Judges(("alexnet",)))
        return runs.evaluated(tmp_path / "row-0", {"models": "these"}, 64, space, chosen, QUIET)

    first = judged_by(b"one")
    written = Workspace(tmp_path).result("row-0").stat().st_mtime_ns
    assert judged_by(b"one") == first
    assert Workspace(tmp_path).result("row-0").stat().st_mtime_ns == written
    assert judged_by(b"another") != first


def test_another_revision_behind_a_judges_name_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hub repositories the weights that are in the cache now."""
    folders = {"someone/clip": tmp_path / "clip", "someone/segmenter": tmp_path / "segmenter"}
    for folder in folders.values():
        folder.mkdir()
        for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
            (folder / name).write_bytes(b"one")
    monkeypatch.setattr(pretrained, "hub_folder", lambda repository, *rest: folders[repository])
    condition = MaskCondition(ClassTable(names=("sky",), ids=(0,), colours=((0, 0, 0),)))
    here = tmp_path / "data"
    chosen, made = DatasetFiles(condition, here, here, here, (), 0), []

    def fake(*rest: object) -> Evaluation:
        made.append(rest)
        first, second = ({"sha256": file_hash(folder / "model.safetensors")} for folder in folders.values())
        return Evaluation((), {"networks": [first], "judges": [second, {"of": "objects"}]})

    monkeypatch.setattr(runs, "evaluate_files", fake)

    def times_judged() -> int:
        space = Workspace(tmp_path, judges=Judges(("someone/clip",), "someone/segmenter"))
        runs.evaluated(tmp_path / "row-0", {"models": "these"}, 64, space, chosen, QUIET)
        return len(made)

    assert [times_judged(), times_judged()] == [1, 1]
    for count, folder in enumerate(folders.values(), 2):
        (folder / "model.safetensors").write_bytes(f"another {count}".encode())
        assert [times_judged(), times_judged()] == [count, count]


def test_photographs_are_judged_anew_with_other_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_by_nobody(monkeypatch)
    for folder in ("photographs", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / folder / "a.png")
    condition = MaskCondition(ClassTable(names=("sky", "road"), ids=(0, 1), colours=((0, 0, 0), (9, 9, 9))))
    space = Workspace(tmp_path / "out", judges=Judges(()))

    def judged_at() -> int:
        """When the result was written that is found with these masks."""
        folders = (tmp_path / "masks", tmp_path / "photographs", tmp_path / "photographs")
        make._judge_photographs(PLAN, "camvid", DatasetFiles(condition, *folders, ("a",), 1), space, QUIET, Results())
        return space.result("photographs-camvid").stat().st_mtime_ns

    first = judged_at()
    assert judged_at() == first
    Image.new("L", (4, 4), 1).save(tmp_path / "masks/a.png")
    assert judged_at() > first


def test_a_run_that_began_from_other_weights_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    tiny_pipeline().save_pretrained(prior)
    adapted = Training("adapted", "tiny", "camvid", (f"prior={prior}",))
    run = trained(PLAN, adapted, 0, workspace, QUIET)
    newest = RunFolder(run).newest()
    assert newest is not None
    assert trained(PLAN, adapted, 0, workspace, QUIET) == run
    weights = prior / "base/diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    said = r"step-00000004 was trained with other initial weights than its recipe's prior"
    assert re.search(said, Checker(PLAN, workspace).problem(adapted, 0))
    for train in (True, False):
        with pytest.raises(RunError, match=said):
            trained(PLAN, adapted, 0, replace(workspace, train=train), QUIET)
    values = json.loads((newest / "run.json").read_text())
    (newest / "run.json").write_text(json.dumps(values | {"begun_sha256": None}))  # of a version that noted nothing
    assert trained(PLAN, adapted, 0, workspace, QUIET) == run
    (newest / "run.json").write_text(json.dumps(values))
    shutil.rmtree(prior)
    assert trained(PLAN, adapted, 0, workspace, QUIET) == run
