"""The README's commands and its Python run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipelines.pipeline import bundled_models
from piti.studio.service.service import Studio
from tests.conftest import ROOT
from tests.released import tiny_weights
from tests.studio.serving import answering

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("piti ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("piti ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
STUDIO = "http://127.0.0.1:7860/"
QUICK = ["log_every=1", "workers=0", "preview.every=1", "preview.count=1", "preview.steps=1", "batch=3"]
MADE = [
    "again", "others", "first", "edits", "street", "sketch", "avenue",
    "small", "released", "forest", "scenes", "mine", "drawn", "both", "large", "beside",
    "lora", "piti", "glide",
]  # fmt: skip
BASES = {"runs/mine", "runs/lora", "runs/drawn", "runs/both", "scenes-prior"}
UPSAMPLER = ["stages.1.steps=1", "stages.2.steps=1"]


@pytest.fixture
def my_data(tmp_path: Path) -> Path:
    """Six random pairs, large enough for the recipe, in the classes of the examples."""
    rng = np.random.default_rng(0)
    root = tmp_path / "my-data"
    for folder, shape in (("images", (256, 300, 3)), ("labels", (256, 300))):
        (root / folder).mkdir(parents=True)
        for k in range(6):
            values = rng.integers(0, 11, shape).astype(np.uint8)
            Image.fromarray(values).save(root / folder / f"{k}.png")
    (root / "classes.json").write_bytes((ROOT / "examples/street/classes.json").read_bytes())
    (root / "splits.json").write_text(json.dumps({"train": ["0", "1", "2", "3"], "val": ["4", "5"]}))
    return root


@pytest.fixture
def downloads(tmp_path: Path) -> None:
    """What the commands expect to lie in the working directory: released files, a tokenizer, a mask, captions."""
    released = {
        "base_mask": "piti", "upsample_mask": "piti_up", "base_edge": "sketch", "upsample_edge": "sketch_up",
        "base": "glide", "upsample": "glide_up",
    }  # fmt: skip
    for name, kind in released.items():
        torch.save(tiny_weights(kind), tmp_path / f"{name}.pt")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/vocab.json").write_text(json.dumps({chr(97 + k) if k < 26 else f"<{k}>": k for k in range(40)}))
    (tmp_path / "gpt2/merges.txt").write_text("#version: 0.2\n")
    Image.new("L", (40, 40), 7).save(tmp_path / "mask.png")
    (tmp_path / "my-photographs").mkdir()
    for k in range(30):
        Image.new("RGB", (96, 96), (k, k, k)).save(tmp_path / f"my-photographs/{k}.jpg")
        (tmp_path / f"my-photographs/{k}.txt").write_text("a photo")


def in_a_hurry(words: list[str]) -> list[str]:
    """The same command with little work."""
    if words[0] == "train":
        further = UPSAMPLER if "upsampler" in words[1] else UPSAMPLER[:1]
        further = [] if "prior" in words[1] or "baselines" in words[1] else further
        changes = [*QUICK, "stages.0.steps=1", *further]
        return [*words, *(part for change in changes for part in ("--set", change))]
    if words[:2] == ["evaluate", "model"]:
        words = [*words, "--num", "1", "--steps", "2", "--bootstrap", "0"]
    if words[0] in ("translate", "edit") and "--steps" not in words:
        words = [*words, "--steps", "2"]
    base_alone = BASES.intersection(words) and "--upsampler" not in words
    if (
        words[0] in ("translate", "edit")
        and not base_alone
        and not {"--base-only", "--upsampler-steps"}.intersection(words)
    ):
        words = [*words, "--upsampler-steps", "2"]
    return words


@pytest.mark.usefixtures("my_data", "downloads")
def test_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(COMMANDS) >= 6
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1"))
    torch.save(network.state_dict(), tmp_path / "squeezenet1_1.pth")
    for command in COMMANDS:
        run = CliRunner().invoke(app, in_a_hurry(shlex.split(command)))
        assert run.exit_code == 0, (command, run.output, run.exception)
    assert (tmp_path / "runs/sharded/model/model_index.json").is_file()
    for sheet in MADE:
        assert (tmp_path / "out" / sheet / "sheet.png").is_file()


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = next(code for code in PYTHON if "httpx" not in code)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(tmp_path / "photograph.png") as image:
        assert image.size == (341, 256)  # 4:3, as the mask


def test_the_studio_is_asked_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the Python and by the curl line, with little work."""
    pytest.importorskip("fastapi_offline", reason="the extra 'ui' is not installed")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = next(code for code in PYTHON if "httpx" in code)
    (line,) = re.findall(r"^curl .*", README, re.MULTILINE)
    with answering(Studio(("street",))) as address:
        quick = code.replace(STUDIO, address).replace('"num": 4', '"num": 2, "steps": 2, "upsampler_steps": 2')
        exec(compile(quick, "README.md", "exec"), {})
        if shutil.which("curl") is not None:
            words = shlex.split(line.replace(STUDIO, address))
            subprocess.run([*words, "-sS", "-F", "steps=2", "-F", "upsampler_steps=2"], check=True)
            with Image.open(tmp_path / "avenue.png") as image:
                assert image.size == (341, 256)
    assert sorted(path.name for path in tmp_path.glob("avenue_*.png")) == ["avenue_0.png", "avenue_1.png"]


def commands_of(page: Path) -> list[str]:
    """The arguments of `piti` in a page's blocks, as they are typed."""
    fences = page.read_text(encoding="utf-8").split("\n```")
    blocks = [fence.partition("\n") for fence in fences[1::2]]
    lines = [line for language, _, text in blocks if language in ("", "bash") for line in joined(text).splitlines()]
    return [found[1] for line in lines if (found := re.match(r"(?:.* -m )?piti (.+)", line))]


def joined(text: str) -> str:
    """Lines that a backslash continues as one."""
    return text.replace("\\\n", " ")


def parse(command: Any, words: list[str], name: str = "piti") -> None:
    """Parse without running anything. Raises UsageError."""
    context = command.make_context(name, words)
    if hasattr(command, "commands"):
        name, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(chosen, rest, name)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_command_of_the_documentation_parses(page: Path) -> None:
    for command in commands_of(page):
        words = shlex.split(command, comments=True)
        parse(typer.main.get_command(app), words)
        assert words[0] != "evaluate" or words[1] in ("images", "model"), f"{command}: an old spelling"


def test_every_path_that_is_named_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    assert "street" in bundled_models()
