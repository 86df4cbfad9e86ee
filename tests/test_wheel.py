"""The installed package: a wheel that works in an empty folder, offline, without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

MOST_BYTES = 65e6
MOST_WEIGHTS = 63e6  # of which students have 3
BUILD = "import sys; from setuptools.build_meta import *; print(globals()['build_' + sys.argv[1]](sys.argv[2], {}))"
STORED = "{'--build-option': ['--compression=stored']}"  # weights are hardly smaller packed, which takes seconds


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so files of the package cannot be told from others")
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files as a checkout has them; the build writes beside them."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, target)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    code = BUILD.replace("{}", STORED)
    made = subprocess.run([sys.executable, "-c", code, "wheel", "."], cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return source / made.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in tracked() if name.startswith("piti/")}
    assert package <= names
    assert all(name.startswith(("piti/", "piti-")) for name in names)
    assert {"piti/py.typed", "piti/recipes/street.yaml"} <= names
    assert wheel.stat().st_size < MOST_BYTES
    assert sum(path.stat().st_size for path in (ROOT / "piti/assets").rglob("*.safetensors")) < MOST_WEIGHTS


def test_its_page_and_its_facts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        about = Parser().parsestr(archive.read(names["METADATA"]).decode())
        assert b"piti = piti.cli.app:main" in archive.read(names["entry_points.txt"])
        assert "LICENSE" in names
    page = about.get_payload()
    assert isinstance(page, str)
    assert page.startswith("# piti")
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert all(link.startswith("https://arxiv.org/") for link in links)  # what is relative leads nowhere there
    assert about["Description-Content-Type"].startswith("text/markdown")
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Keywords"]
    assert "Typing :: Typed" in about.get_all("Classifier", [])
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {*about.get_all("Provides-Extra", [])} == {*settings["project"]["optional-dependencies"]}


IN_AN_EMPTY_FOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
import piti
from pathlib import Path
from typer.testing import CliRunner
from piti.cli.app import app
assert Path(piti.__file__).is_relative_to(sys.argv[1]), piti.__file__

import piti.studio.http.app as studio
studio.serve = lambda loaded, *rest: print("served", sorted(loaded.models))

def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output

assert piti.__version__ in run("--version")
assert "--install-completion" in run("--help")
mask = Path(piti.__file__).parent / "assets/street/examples/avenue.png"
run("translate", mask, "--steps", 1, "--base-only", "--size", 16, "--guidance", 0, "--out", "out", "--device", "cpu")
assert list(Path("out").glob("*.png"))
run("prepare", "folder", sys.argv[2], "pairs")
assert "adapt" in run("train", "street", "--data", "pairs", "--dry-run")
run("studio", "--port", 0, "--model", "street", "--device", "cpu")
assert "hours" in run("reproduce", "table1", "--data", "pairs", "--dry-run")
"""


def test_it_works_in_an_empty_folder(installed: Path, tmp_path: Path, tiny_data: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in tiny_data.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((80, 64), Image.Resampling.NEAREST).save(path)
    alone = {"PATH": os.environ["PATH"], "HOME": str(empty), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    alone |= {"PITI_ENGINE": "torch"}  # compiling the bundled networks takes longer than all the rest
    done = subprocess.run(
        [sys.executable, "-I", "-c", IN_AN_EMPTY_FOLDER, str(installed), str(tiny_data)],
        cwd=empty, env=alone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_source_distribution_would_hold_the_repository(source: Path) -> None:
    """What MANIFEST.in takes, without packing it."""
    listed = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    taken = set((source / "piti.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    ours = {name for name in tracked() if not (ROOT / name).is_symlink()}
    assert not ours - taken - {".gitignore"}
