"""The command line: what it prints, and that a mistake is one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from piti.cli import app as cli
from tests.conftest import ROOT, tiny_recipe
from tests.pipelines.test_pipeline import mask, tiny_pipeline


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout


def mistake(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said of a command that fails, in one line."""
    monkeypatch.setattr("sys.argv", ["piti", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


@pytest.fixture
def recipe(tiny_data: Path, tmp_path: Path) -> Path:
    values = tiny_recipe(tiny_data)
    values["data"] = {"size": 16}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_translate(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "masks").mkdir()
    for k in range(3):
        mask(k).save(tmp_path / f"masks/m{k}.png")
    arguments = ["translate", tmp_path / "masks", "--model", tmp_path / "model", "--num", 1, "--steps", 2]
    code, said = run(*arguments, "--guidance", 0, "--sampler", "ddim", "--out", tmp_path / "out")
    assert code == 0
    assert "3 images made" in said
    assert (tmp_path / "out/sheet.png").is_file()
    assert "0 images made, 3 kept" in run(*arguments, "--out", tmp_path / "out")[1]


def test_models_are_listed() -> None:
    code, said = run("models")
    assert code == 0
    assert "street" in said
    assert "mask" in said


def test_train_with_data_and_changes_on_the_line(recipe: Path, tiny_data: Path, tmp_path: Path) -> None:
    odd = tmp_path / "2024 #1 [set]"
    tiny_data.rename(odd)
    out = tmp_path / "run"
    code, said = run("train", recipe, "--data", odd, "--out", out, "--set", "stages.0.steps=2")
    assert code == 0
    assert "the model is in" in said
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["step"] == 2
    assert run("models")[0] == 0


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("sketch", "SKETCH.png"),
        ("geometry", "DEPTH.png"),
        ("street", "MASK.png"),
        ("prior-scenes", '--text "…"'),
        ("street-several", "--given PART=FILE"),
    ],
)
def test_how_to_translate_names_what_the_model_takes(
    recipe: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piti.training.train", lambda parsed, folder, resume, log: folder / "model")
    code, said = run("train", ROOT / f"recipes/{recipe}.yaml", "--out", tmp_path / "run")
    assert code == 0
    assert said.strip().endswith(f"translate with it: piti translate {given} --model {tmp_path / 'run'}")


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipe: Path, tiny_data: Path, tmp_path: Path) -> None:
    code, said = run("train", recipe, "--data", tiny_data, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    for words in ("9 training and 3 validation pairs", "encoder and unet, 8 steps", "32 of one process", "new"):
        assert words in said
    assert not (tmp_path / "run").exists()


def test_mistakes(recipe: Path, tiny_data: Path, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    def said(*arguments: object) -> str:
        return mistake(monkeypatch, capfd, *arguments)

    assert "there is no model 'nothing'" in said("translate", "no.png", "--model", "nothing")
    assert "add --data FOLDER" in said("train", recipe)
    assert "[odd].yaml: cannot be read" in said("train", tmp_path / "[odd].yaml")
    assert "did you mean 'batch'" in said("train", recipe, "--data", tiny_data, "--set", "bach=2")
    (tmp_path / "file").write_text("")
    assert "file" in said("train", recipe, "--data", tiny_data, "--out", tmp_path / "file")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    assert "--device nonsense" in said("translate", "no.png", "--model", tmp_path / "model", "--device", "nonsense")
    assert "no.png" in said("translate", "no.png", "--model", tmp_path / "model", "--out", tmp_path / "out")
    (tmp_path / "model/base/config.json").unlink()
    assert "model" in said("translate", "no.png", "--model", tmp_path / "model")
