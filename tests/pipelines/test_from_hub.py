"""Models from the hub, with downloads replaced by copies of local folders."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from piti.checkpoints.folder import ModelError, bundled_models
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.calling import called
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import tiny_pipeline


class Hub:
    """Gives the files of `folders` that match, and remembers with what it was asked for each."""

    def __init__(self, cache: Path, folders: dict[str, Path]) -> None:
        self.cache, self.folders = cache, folders
        self.asked: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, allow_patterns: list[str], ignore_patterns: Sequence[str] = (), **given: Any) -> str:
        self.asked[name], target = given, self.cache / name.replace("/", "--")
        target.mkdir(exist_ok=True)
        for path in self.folders[name].rglob("*"):
            inside = path.relative_to(self.folders[name])
            wanted, unwanted = (
                any(fnmatch.fnmatch(str(inside), one) for one in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if path.is_file() and wanted and not unwanted:
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


@pytest.mark.parametrize(
    ("variants", "asked", "fetched"),
    [
        ({None, "fp16"}, None, {None}),
        ({None, "fp16"}, "fp16", {"fp16"}),
        ({"fp16"}, "fp16", {"fp16"}),
    ],
)
def test_of_two_variants_the_one_that_is_loaded_is_fetched(
    variants: set[str | None],
    asked: str | None,
    fetched: set[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both were, which is twice the download or more."""
    pipe, folder = tiny_cascade(), tmp_path / "model"
    for variant in variants:
        pipe.save_pretrained(folder, variant=variant)
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path, {"me/model": folder}))
    assert np.array_equal(called(PITIPipeline.from_pretrained("me/model", variant=asked)), called(pipe))
    names = {None: "diffusion_pytorch_model.safetensors", "fp16": "diffusion_pytorch_model.fp16.safetensors"}
    found = sorted(path.name for path in (tmp_path / "me--model").rglob("*.safetensors"))
    assert found == sorted(names[variant] for variant in fetched for _ in range(2))


def test_a_network_without_the_variant_is_fetched_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, folder = tiny_cascade(), tmp_path / "model"
    for variant in (None, "fp16"):
        pipe.save_pretrained(folder, variant=variant)
    (folder / "upsampler/diffusion_pytorch_model.fp16.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path, {"me/model": folder}))
    assert np.array_equal(called(PITIPipeline.from_pretrained("me/model", variant="fp16")), called(pipe))
    assert not (tmp_path / "me--model/base/diffusion_pytorch_model.safetensors").exists()


def test_a_model_that_has_only_another_variant_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model", variant="fp16")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path, {"me/model": tmp_path / "model"}))
    with pytest.raises(ModelError, match="exist only as variant 'fp16'"):
        PITIPipeline.from_pretrained("me/model")
    with pytest.raises(ModelError, match="has no such weight files"):
        PITIPipeline.from_pretrained("me/model", variant="bf16")


def test_what_lies_beneath_adapters_is_fetched_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled_models()["street-fast"], tmp_path / "student")
    path = tmp_path / "student/base/adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": "me/teacher"}))
    hub = Hub(tmp_path, {"me/student": tmp_path / "student", "me/teacher": bundled_models()["street"]})
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    given = {"cache_dir": str(tmp_path), "local_files_only": True}
    PITIPipeline.from_pretrained("me/student", revision="v1", base_only=True, **given)
    assert hub.asked == {"me/student": {**given, "revision": "v1"}, "me/teacher": given}
