"""Losses of 20 steps equal the recorded ones, and a run of an earlier version resumes to the same result."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_processes import launched
from tests.unchanged.recordings import (
    WRITTEN,
    assert_same_curve,
    check_rows,
    fingerprint,
    read_rows,
    writing,
)
from tests.unchanged.tiny import base_recipe, pairs, piti, upsampler_recipe

RECIPES = {"base": base_recipe, "upsampler": upsampler_recipe}
NARROW = {"size": 16, "channels": [2, 2, 2], "width": 2, "layers": 1, "heads": 1, "norm_groups": 1}
NARROW_UNET = {"channels": [2, 2], "layers": 1, "attention": [False, True], "head_dim": 2, "token_width": 2}
NARROW_UNET |= {"norm_groups": 1}
BEGUN = {
    "base": {"model": {"image_size": 16, "patch_size": 2, "encoder": NARROW, "unet": NARROW_UNET}},
    "upsampler": {
        "model": {
            "image_size": 32,
            "low_res": 16,
            "patch_size": 2,
            "encoder": None,
            "unet": NARROW_UNET | {"attention": [False, False], "token_width": None},
        },
        "discriminator": {"channels": [2, 2]},
    },
}
STEPS, STOPPED = 12, 8


def train(recipe: dict[str, Any], out: Path, *more: str) -> list[dict[str, Any]]:
    """Train by the command; the metrics."""
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    piti("train", file, "--out", out, *more)
    return read_rows(out)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_of_one_process(name: str, tmp_path: Path) -> None:
    rows = train(RECIPES[name](pairs(tmp_path / "data")), tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
    check_rows(f"losses-{name}", rows)


def test_losses_of_two_processes(tmp_path: Path) -> None:
    data = pairs(tmp_path / "data")
    jobs = [{"recipe": RECIPES[name](data, batch=2), "out": str(tmp_path / name)} for name in RECIPES]
    status, _, said = launched(jobs, tmp_path)
    assert status == 0, said
    for name in RECIPES:
        check_rows(f"losses-{name}-two-processes", read_rows(tmp_path / name))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_begun_before_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[name](pairs(Path("data")), STEPS, checkpoint={"every": STOPPED, "keep": 2}, **BEGUN[name])
    archive = WRITTEN / f"run-{name}.tar.xz"
    if writing():
        write(name, recipe, tmp_path / "whole", archive)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "run", filter="data")
    wanted = json.loads((WRITTEN / f"run-{name}.json").read_text(encoding="utf-8"))
    begun = read_rows(tmp_path / "run")
    assert begun == wanted["rows"][: len(begun)]
    assert begun[-1]["step"] == STOPPED
    rows = train(recipe, tmp_path / "run", "--resume")
    assert_same_curve(name, rows, wanted["rows"])
    if fingerprint() == wanted["fingerprint"]:
        assert rows == wanted["rows"], f"{name}: losses differ in their last bits"


def write(name: str, recipe: dict[str, Any], out: Path, archive: Path) -> None:
    """Train to the end, note the losses, and keep what a run killed at its checkpoint leaves."""
    rows = train(recipe, out)
    WRITTEN.mkdir(exist_ok=True)
    text = json.dumps({"rows": rows, "fingerprint": fingerprint()}, indent=1, sort_keys=True)
    archive.with_name(f"run-{name}.json").write_text(text + "\n", encoding="utf-8")
    for last in (f"checkpoints/step-{STEPS:08d}", "model", "previews"):
        shutil.rmtree(out / last)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= STOPPED]
    (out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(out.iterdir()):
            tar.add(path, path.name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """An archive's member without who wrote it, and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
