"""Models from the hub, with downloads replaced by copies of local folders."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from piti.checkpoints.folder import bundled_models
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.calling import called
from tests.pipelines.test_pipeline import tiny_pipeline


class Hub:
    """Gives the files of `folders` that match, and remembers with what it was asked for each."""

    def __init__(self, cache: Path, folders: dict[str, Path]) -> None:
        self.cache, self.folders = cache, folders
        self.asked: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, allow_patterns: list[str], **given: Any) -> str:
        self.asked[name], target = given, self.cache / name.replace("/", "--")
        for path in self.folders[name].rglob("*"):
            inside = path.relative_to(self.folders[name])
            if path.is_file() and any(fnmatch.fnmatch(str(inside), one) for one in allow_patterns):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / inside)
        return str(target)


@pytest.mark.parametrize("safe", [True, False])
def test_pickles_are_fetched_where_there_is_nothing_else(
    safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model", safe_serialization=safe)
    (tmp_path / "model/base/training.bin").touch()
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path, {"me/model": tmp_path / "model"}))
    assert np.array_equal(called(PITIPipeline.from_pretrained("me/model")), called(pipe))
    assert len(list((tmp_path / "me--model").rglob("*.bin"))) == (0 if safe else 1)


def test_what_lies_beneath_adapters_is_fetched_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled_models()["street-fast"], tmp_path / "student")
    path = tmp_path / "student/base/adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": "me/teacher"}))
    hub = Hub(tmp_path, {"me/student": tmp_path / "student", "me/teacher": bundled_models()["street"]})
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    given = {"cache_dir": str(tmp_path), "local_files_only": True}
    PITIPipeline.from_pretrained("me/student", revision="v1", base_only=True, **given)
    assert hub.asked == {"me/student": {**given, "revision": "v1"}, "me/teacher": given}
