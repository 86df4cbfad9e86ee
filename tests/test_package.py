"""Contents of an installed piti: pyproject.toml lists all non-Python files of the package."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.conftest import ROOT


def test_package_data_covers_every_file() -> None:
    tracked = subprocess.run(["git", "ls-files", "piti"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so files of the package cannot be told from others")
    files = {line.removeprefix("piti/") for line in tracked.stdout.splitlines() if not line.endswith(".py")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    globs = settings["tool"]["setuptools"]["package-data"]["piti"]
    packed = {str(path.relative_to(ROOT / "piti")) for glob in globs for path in (ROOT / "piti").glob(glob)}
    assert "recipes/baselines/spade.yaml" in files
    assert files <= packed


def test_extras_that_are_named_exist_and_are_quoted() -> None:
    """`pip install piti[ui]` finds no such file in zsh, which takes the brackets for a pattern."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    sources += [path for kind in ("*.py", "*.yaml", "*.md") for path in (ROOT / "piti").rglob(kind)]
    for path in sources:
        for before, named in re.findall(r"(.?)\b(?:\./)?piti\[(\w[\w,]*)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras.keys(), path
            assert before in ("'", '"', "/"), path


def test_its_page_tells_how_many_models_it_holds() -> None:
    page = (ROOT / "PACKAGE.md").read_text(encoding="utf-8")
    assert len(list((ROOT / "piti/assets").glob("*/model_index.json"))) == 5  # as the page counts them
    words = " ".join(page.split())
    assert (
        "the prior, one model for street masks, one for sketches, and a fast version of each of the last two" in words
    )


def test_versions_of_python_agree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", x) for x in settings["project"]["classifiers"]]
    versions = [found[1] for found in named if found]
    assert settings["project"]["requires-python"] == f">={versions[0]}"
    assert settings["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"
    assert settings["tool"]["pyright"]["pythonVersion"] == versions[0]
    container = re.search(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert container is not None
    assert container[1] in versions


def test_make_clean_leaves_what_commands_made() -> None:
    """README and guides let them write into out/ and runs/."""
    made = re.search(r"^clean:.*\n\trm -rf (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert made is not None
    assert set(made[1].split()) == {"$(VENV)", "out/demo", "out/site", "build", "*.egg-info"}
