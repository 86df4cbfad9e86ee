"""Commands and Python code of README and documentation: all are parsed, and the essential ones run."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.cli.studio import LimitFlags
from piti.models.perceptual import NETWORKS, PerceptualNetwork, PerceptualSpec
from piti.pipelines.pipeline import bundled_models
from piti.studio.service.schema import EditRequest, ErrorAnswer, PictureAnswer, ResultAnswer, TranslateRequest
from piti.studio.service.service import Studio
from piti.training import read_recipe
from tests.conftest import ROOT
from tests.released import tiny_weights
from tests.studio.serving import answering

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "PACKAGE.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
HTTP = (ROOT / "docs/guides/http.md").read_text(encoding="utf-8")
STUDIO = "http://127.0.0.1:7860/"
TRAINING = [
    "log_every=1", "workers=0", "batch=1", "stages.0.steps=1", "stages.1.steps=1",
    "preview.every=2", "preview.count=1", "preview.judged=1", "preview.steps=1",
]  # fmt: skip
ESSENTIAL = [
    "import base_mask.pt --upsampler upsample_mask.pt --out models/piti-mask",
    "translate mask.png --model models/piti-mask --num 1 --out out/piti",
    "export models/piti-mask --out released",
    "import base.pt --upsampler upsample.pt --out models/glide --tokenizer gpt2",
    "prepare folder my-data --check",
    "prepare sketch my-photographs my-sketches",
    "prepare shards my-data my-shards",
    "prepare shards my-shards --verify",
]
"""Commands of the guides that cost little and that no other test runs from the command line to its files."""


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
    (root / "splits.json").write_text(json.dumps({"train": ["0", "1"], "val": ["2", "3"]}))
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
    if words[0] == "train" and "--dry-run" not in words:
        return [*words, *(part for change in TRAINING for part in ("--set", change))]
    if words[:2] == ["prepare", "sketch"]:
        return [*words, "--processes", "1"]
    if words[0] == "evaluate":
        return [*words, "--bootstrap", "0"]
    if words[0] == "translate" and "--like" not in words:
        return [*words, "--steps", "1", "--base-only"]
    return words


def run(commands: list[str]) -> None:
    for command in commands:
        done = CliRunner().invoke(app, in_a_hurry(shlex.split(command)))
        assert done.exit_code == 0, (command, done.output, done.exception)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("my_data")
def test_the_commands_of_the_readme_run_in_their_order(here: Path) -> None:
    network = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1"))
    torch.save(network.state_dict(), here / "squeezenet1_1-b8a52dc0.pth")
    commands = [line.removeprefix("piti ") for line in lines_of(README, ("bash",)) if line.startswith("piti ")]
    assert len(commands) == 7
    run(commands)
    assert (here / "runs/mine/model/model_index.json").is_file()
    assert (here / "out/again/avenue_1.png").is_file()
    assert all((here / "out" / name / "sheet.png").is_file() for name in ("street", "sketch", "mine"))


@pytest.mark.usefixtures("my_data", "downloads")
def test_the_essential_commands_of_the_guides_run(here: Path) -> None:
    stated = {command for page in PAGES for command in commands_of(page)}
    assert set(ESSENTIAL) <= {shlex.join(shlex.split(command, comments=True)) for command in stated}
    run(ESSENTIAL)
    for made in ("models/glide/model_index.json", "released/base.pt", "my-sketches/sketches", "my-shards/shards.json"):
        assert (here / made).exists(), made


def test_the_python_of_the_readme_runs(here: Path) -> None:
    (code,) = blocks_of(README, ("python",))
    quick = code.replace("generator=generator", "generator=generator, steps=2")
    assert quick != code
    exec(compile(quick, "README.md", "exec"), {})
    with Image.open(here / "photograph.png") as image:
        assert image.size == (341, 256)  # 4:3, as the mask


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_python_parses_and_imports_what_there_is(page: Path) -> None:
    for code in blocks_of(page.read_text(encoding="utf-8"), ("python",)):
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), page.name, "exec"), {})  # pyright: ignore[reportArgumentType]


def test_the_studio_is_asked_over_http(here: Path) -> None:
    """By the Python and by the first curl line of the guide, with little work."""
    pytest.importorskip("fastapi_offline", reason="the extra 'ui' is not installed")
    (code,) = blocks_of(HTTP, ("python",))
    line = next(line for line in lines_of(HTTP, ("bash",)) if line.startswith("curl "))
    with answering(Studio(("street",))) as address:
        quick = code.replace(STUDIO, address).replace('"num": 4', '"num": 2, "steps": 1, "upsampler_steps": 1')
        exec(compile(quick, "http.md", "exec"), {})
        if shutil.which("curl") is not None:
            words = shlex.split(line.replace(STUDIO, address))
            subprocess.run([*words, "-sS", "-F", "steps=1", "-F", "upsampler_steps=1"], check=True)
            with Image.open(here / "avenue.png") as image:
                assert image.size == (341, 256)
    assert sorted(path.name for path in here.glob("avenue_*.png")) == ["avenue_0.png", "avenue_1.png"]


def test_the_http_guide_has_every_field_and_every_flag_of_a_limit() -> None:
    told = set(re.findall(r"`(?:--)?([\w-]+)`", HTTP))
    for schema in (TranslateRequest, EditRequest, ResultAnswer, PictureAnswer, ErrorAnswer):
        named = told | set(re.findall(r'"(\w+)":', HTTP))
        assert schema.model_fields.keys() <= named, (schema.__name__, schema.model_fields.keys() - named)
    assert {flag.replace("_", "-") for flag in LimitFlags.__dataclass_fields__} <= told


def blocks_of(text: str, languages: tuple[str, ...]) -> list[str]:
    """A page's fenced blocks in one of these languages; "" is none."""
    fences = text.split("```")[1::2]
    return [block for language, _, block in (fence.partition("\n") for fence in fences) if language in languages]


def lines_of(text: str, languages: tuple[str, ...]) -> list[str]:
    return [line.strip() for block in blocks_of(text, languages) for line in joined(block).splitlines()]


def commands_of(page: Path) -> list[str]:
    """The arguments of `piti` in a page's blocks and sentences, as they are typed."""
    text = page.read_text(encoding="utf-8")
    lines = lines_of(text, ("", "bash"))
    found = [match[1] for line in lines if (match := re.match(r"(?:.* -m |.*; )?piti (.+)", line))]
    outside = "".join(text.split("```")[::2])
    sentences = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    return found + [code.removeprefix("piti ") for code in sentences if is_whole(code)]


def is_whole(code: str) -> bool:
    """Whether words in a sentence are a command as one types it: not its name alone, and nothing left out."""
    return bool(re.match(r"piti [a-z]+ \S", code)) and not re.search(r"…|COMMAND|prepare NAME", code)


def joined(text: str) -> str:
    """Lines that a backslash continues as one."""
    return text.replace("\\\n", " ")


def parse(command: Any, words: list[str], name: str = "piti") -> None:
    """Parse without running anything. Raises UsageError."""
    context = command.make_context(name, words)
    if hasattr(command, "commands"):
        name, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(chosen, rest, name)


def words_of(page: Path) -> Iterator[list[str]]:
    for command in commands_of(page):
        yield shlex.split(command, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    command = typer.main.get_command(app)
    for words in words_of(page):
        if len(words) > 2 or words[0] in ("models", "studio"):
            parse(command, words)
        assert words[0] != "evaluate" or words[1] in ("images", "model"), f"{words}: an old spelling"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_commands_name_is_there(page: Path) -> None:
    """Recipes and their keys, examples, and models: bundled, made by a command of some page, or a word in capitals."""
    made = {value for one in PAGES for words in words_of(one) for value in values_of(words, "--out")}
    for words in words_of(page):
        if words[0] == "train" and words[1] != "mine.yaml" and not words[1].isupper():
            read_recipe(words[1], values_of(words, "--set"))
        for path in (word for word in words if word.startswith(("examples/", "recipes/", "piti/"))):
            assert (ROOT / path).exists(), path
        models = [*values_of(words, "--model"), *values_of(words, "--upsampler")]
        for model in models if words[0] in ("translate", "edit", "studio", "reproduce") else []:
            assert model in {*bundled_models(), *made} or model.isupper(), model


def test_weights_of_judges_have_the_names_that_torchvision_gives_them() -> None:
    """In pages and in what recipes say of themselves: who downloads them finds them by that name, as errors name it."""
    known = {network.file for network in NETWORKS.values()}
    for page in [*PAGES, *(ROOT / "piti/recipes").glob("*.yaml")]:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:squeezenet|alexnet|vgg)[\w-]*\.(?:pth|safetensors)", text))
        assert named <= known, (page.name, named - known)


def values_of(words: list[str], flag: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == flag]


@pytest.mark.parametrize("page", [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")])
def test_every_path_that_is_named_exists(page: Path) -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short_and_names_make() -> None:
    assert README.count("\n") <= 200
    assert "make demo" in README
    assert "make test" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (environment,) = re.findall(r"^VENV := (\S+)$", makefile, re.MULTILINE)
    for page in (README, (ROOT / "docs/start/install.md").read_text(encoding="utf-8")):
        assert f"source {environment}/bin/activate" in page, "what `make` installs is on nobody's path"
