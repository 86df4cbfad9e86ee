"""The README's commands and its Python run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.cli import app
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipeline import bundled_models
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("piti ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("piti ")
]
QUICK = ["log_every=1", "workers=0", "preview.every=1", "preview.count=1", "preview.steps=1", "batch=3"]
UPSAMPLER = ["stages.1.steps=1", "stages.2.steps=1"]


@pytest.fixture
def my_data(tmp_path: Path) -> Path:
    """Four random pairs, large enough for the recipe, in the classes of the examples."""
    rng = np.random.default_rng(0)
    root = tmp_path / "my-data"
    for folder, shape in (("images", (256, 300, 3)), ("labels", (256, 300))):
        (root / folder).mkdir(parents=True)
        for k in range(4):
            values = rng.integers(0, 11, shape).astype(np.uint8)
            Image.fromarray(values).save(root / folder / f"{k}.png")
    (root / "classes.json").write_bytes((ROOT / "examples/street/classes.json").read_bytes())
    return root


def in_a_hurry(words: list[str]) -> list[str]:
    """The same command with little work."""
    if words[0] == "train":
        changes = [*QUICK, "stages.0.steps=1", *(UPSAMPLER if "upsampler" in words[1] else [])]
        return [*words, *(part for change in changes for part in ("--set", change))]
    if words[0] == "translate" and "--steps" not in words:
        words = [*words, "--steps", "2"]
    base_alone = "runs/mine" in words and "--upsampler" not in words
    if words[0] == "translate" and not base_alone and not {"--base-only", "--upsampler-steps"}.intersection(words):
        words = [*words, "--upsampler-steps", "2"]
    return words


def test_commands_run_in_their_order(my_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(COMMANDS) >= 6
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1"))
    torch.save(network.state_dict(), tmp_path / "squeezenet1_1.pth")
    for command in COMMANDS:
        run = CliRunner().invoke(app, in_a_hurry(shlex.split(command)))
        assert run.exit_code == 0, (command, run.output, run.exception)
    for sheet in ("street", "avenue", "small", "released", "mine", "large", "beside"):
        assert (tmp_path / "out" / sheet / "sheet.png").is_file()


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(tmp_path / "photograph.png") as image:
        assert image.size == (256, 256)


def test_every_path_that_is_named_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    assert "street" in bundled_models()
