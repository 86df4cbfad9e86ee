"""The recipes of CONTRIBUTING.md are run as they stand there; the files beside it are well formed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from piti import __version__
from piti.conditions import CONDITIONS
from piti.diffusion.samplers import SAMPLERS
from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = {
    section.partition("\n")[0]: code
    for section in TEXT.split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


def test_there_is_a_recipe_for_each_kind_of_extension() -> None:
    assert list(RECIPES) == ["Add a condition", "Add a layout", "Add a sampler"]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(title: str, tmp_path: Path) -> None:
    before = set(CONDITIONS), set(SAMPLERS)
    try:
        exec(compile(RECIPES[title], "CONTRIBUTING.md", "exec"), {"folder": tmp_path, "__name__": __name__})
    finally:
        for registry, known in zip((CONDITIONS, SAMPLERS), before, strict=True):
            for key in set(registry) - known:
                del registry[key]


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    names = ["Wang", "Zhang", "Zhang", "Ouyang", "Chen", "Chen", "Wen"]
    assert [one["family-names"] for one in paper["authors"]] == names
    assert all(name in (ROOT / "README.md").read_text(encoding="utf-8") for name in ("Wang, Tengfei", "2205.12952"))


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1].startswith(f"{__version__} - ")


def test_commits_are_checked_by_the_environment_alone() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
