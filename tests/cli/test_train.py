"""`piti train`: a recipe by name or path, with changes; its plan; use of its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import mistake, run


def test_with_data_and_changes_on_the_line(recipe: Path, tiny_data: Path, tmp_path: Path) -> None:
    odd = tmp_path / "2024 #1 [set]"
    tiny_data.rename(odd)
    out = tmp_path / "run"
    said = run("train", recipe, "--data", odd, "--out", out, "--set", "stages.0.steps=2")
    assert "the model is in" in said
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["step"] == 2
    assert run("models")


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("sketch", "SKETCH.png"),
        ("geometry", "DEPTH.png"),
        ("street", "MASK.png"),
        ("baselines/spade", "MASK.png"),
        ("prior-scenes", '--text "…"'),
        ("street-several", "--given PART=FILE"),
    ],
)
def test_how_to_translate_names_what_the_model_takes(
    recipe: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piti.training.train", lambda parsed, folder, resume, log: folder / "model")
    said = run("train", recipe, "--out", tmp_path / "run")
    assert said.strip().endswith(f"translate with it: piti translate {given} --model {tmp_path / 'run'}")


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipe: Path, tiny_data: Path, tmp_path: Path) -> None:
    said = run("train", recipe, "--data", tiny_data, "--out", tmp_path / "run", "--dry-run")
    for words in (
        "9 training and 3 validation pairs",
        "encoder and unet (",
        "parameters trained), 4 steps",
        "16 of one process",
        "new",
    ):
        assert words in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_run_without_a_checkpoint_takes_resume(recipe: Path, tiny_data: Path, tmp_path: Path) -> None:
    """As a run leaves it that was killed before its first one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n')
    given = ("train", recipe, "--data", tiny_data, "--out", tmp_path / "run", "--dry-run")
    assert "has no checkpoint: a new run starts" in " ".join(run(*given, "--resume").split())
    assert "already contains a run; add --resume to continue it" in mistake(*given)


def test_of_several_processes_the_first_prints_the_plan(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piti.training.plan", lambda *given: [{"what": "the plan"}])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "the plan" in run("train", recipe, "--dry-run")
    monkeypatch.setenv("RANK", "1")
    assert run("train", recipe, "--dry-run") == ""


def test_a_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piti.training.plan", lambda parsed, folder, gpu, resume: [{"recipe": parsed.name, "gpu": gpu}])
    monkeypatch.chdir(tmp_path)  # where there is no folder of recipes
    said = run("train", "baselines/spade", "--dry-run", "--gpu", "h100")
    assert "spade" in said
    assert "h100" in said
    assert "--gpu applies only to --dry-run" in mistake("train", "baselines/spade", "--gpu", "h100")
    wrong = mistake("train", "stret")
    assert wrong.startswith("stret: there is no such file or recipe")
    assert "did you mean 'street'? known: baselines/oasis," in wrong
