"""What finished work depends on beside its own files: weights of judges by name, and those that a run began from."""

from __future__ import annotations

from pathlib import Path

import pytest

from piti.conditions import ClassTable, MaskCondition
from piti.core.files import file_hash
from piti.evaluation.features import FILES
from piti.evaluation.result import Evaluation
from piti.reproduction import runs
from piti.reproduction.files import DatasetFiles
from piti.reproduction.runs import Judges, Workspace
from tests.reproduction.tiny import QUIET


def test_another_file_behind_a_networks_name_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub/checkpoints" / FILES["alexnet"]
    weights.parent.mkdir(parents=True)
    condition = MaskCondition(ClassTable(names=("sky",), ids=(0,), colours=((0, 0, 0),)))
    chosen = DatasetFiles(condition, tmp_path, tmp_path, tmp_path, (), 0)

    def fake(*rest: object) -> Evaluation:
        return Evaluation((), {"networks": [{"name": "alexnet", "sha256": file_hash(weights)}]})

    monkeypatch.setattr(runs, "evaluate_files", fake)

    def judged_by(content: bytes) -> Evaluation:
        weights.write_bytes(content)
        space = Workspace(tmp_path, judges=Judges(("alexnet",)))
        return runs.judged(tmp_path / "row-0", {"images": "these"}, 64, space, chosen, QUIET)

    first = judged_by(b"one")
    written = Workspace(tmp_path).result("row-0").stat().st_mtime_ns
    assert judged_by(b"one") == first
    assert Workspace(tmp_path).result("row-0").stat().st_mtime_ns == written
    assert judged_by(b"another") != first
