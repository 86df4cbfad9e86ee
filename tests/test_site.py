"""The documentation's site: generated pages are complete, and all pages and pictures are linked."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    """What the hook defines."""
    return runpy.run_path(str(ROOT / "tools/site_pages.py"))


@pytest.fixture(scope="module")
def pages(site: dict[str, Any]) -> dict[str, str]:
    return site["pages"]()


def test_the_command_line_page_has_every_command_and_option(site: dict[str, Any], pages: dict[str, str]) -> None:
    page = pages["reference/command-line.md"]
    commands = dict(site["commands"]())
    assert {"piti translate", "piti study count", "piti prepare coco-stuff"} <= set(commands)
    for words, command in commands.items():
        _, _, section = page.partition(f"# `{words}`\n")
        section = re.split(r"\n##", section)[0]
        assert section, words
        if not hasattr(command, "commands"):
            for option in (one for one in command.params if one.name not in site["SKIPPED"]):
                assert (option.opts[0] if option.opts[0].startswith("-") else option.name.upper()) in section


def test_the_recipe_page_has_every_key_once(site: dict[str, Any], pages: dict[str, str]) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", pages["reference/recipe.md"], re.MULTILINE)
    listed = [key for key in rows if not key.startswith(("condition.", "baseline."))]
    assert set(listed) == site["keys"]()
    assert len(listed) == len(set(listed))
    assert {"stages.N.adversarial.augment", "model.unet.channels", "data.shard_cache", "seed"} <= set(listed)


def test_the_recipe_page_explains_every_key(pages: dict[str, str]) -> None:
    """In its row, or under its name in the words above the table."""
    of_recipes, _, _ = pages["reference/recipe.md"].partition("## `condition`, by kind")
    sections = [section.partition("| key |") for section in of_recipes.split("\n## ")[1:]]
    for words, _, table in sections:
        silent = re.findall(r"^\| `[\w.]*?(\w+)` \|  \|", table, re.MULTILINE)
        unknown = [key for key in silent if not re.search(rf"\b{key}\b", words)]
        assert not unknown, (words.splitlines()[0], unknown)
    assert "NETWORKS" not in of_recipes, "a name in the code says nothing to who writes YAML"


def test_the_recipe_page_has_the_keys_of_every_recipe(pages: dict[str, str]) -> None:
    rows = set(re.findall(r"^\| `([\w.]+)` \|", pages["reference/recipe.md"], re.MULTILINE))
    for recipe in (ROOT / "piti/recipes").glob("*.yaml"):
        for key in keys_in(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
            known = (
                key in rows
                or key == "condition.kind"
                or re.match(r"condition\.|data\.conditions\.|model\.unet_config\.", key)
            )
            assert known, f"{recipe.name}: {key}"


def keys_in(values: object, path: str = "") -> set[str]:
    """Dotted keys of a recipe's data, `N` for places in a list."""
    if isinstance(values, list):
        return {key for one in values for key in keys_in(one, f"{path}.N")}
    if not isinstance(values, dict):
        return set()
    inner = {name: f"{path}.{name}".lstrip(".") for name in values}
    return set(inner.values()).union(*(keys_in(values[name], key) for name, key in inner.items()))


def test_the_errors_page_has_messages_as_they_are_raised(pages: dict[str, str]) -> None:
    page = pages["reference/errors.md"]
    assert "unknown sampler '…'; …" in page
    assert "every class needs a name, an id and a colour: got …" in page  # part of a specification's
    assert page.count("\n| `") > 400


@pytest.mark.parametrize(
    ("page", "heading", "least"),
    [("guides/several-gpus.md", "## When it fails", 6), ("start/install.md", "## When something fails", 2)],
)
def test_messages_that_a_page_explains_are_in_the_sources(page: str, heading: str, least: int) -> None:
    _, _, failing = (DOCS / page).read_text(encoding="utf-8").partition(heading)
    rows = [row for row in re.findall(r"^\| (`.*?) \|", failing, re.MULTILINE) if not re.search(_OTHERS_SAY, row)]
    assert len(rows) >= least
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "piti").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"|\{[^{}"]*(?:"[^"]*"[^{}"]*)*\}', "", sources)  # lines joined, without values
    for message in re.findall(r"`([^`]*)`", " ".join(rows)):
        if "_USE_" not in message:
            for words in re.split(r"…| \w+ = .*|\b\d+\b|NODE", message):
                assert words.strip(" ,") in sources, message


_OTHERS_SAY = "EADDRINUSE|Connection closed|command not found|ensurepip|different Python|zsh"  # not piti


def test_templates_keep_words_and_leave_values_out(site: dict[str, Any], tmp_path: Path) -> None:
    raised = """DataError(f"{x}: is {option('size')}, " + "too small", remedy="raise it", option="size")"""
    (tmp_path / "one.py").write_text(f"raise {raised}\n")
    assert list(site["messages_of"](tmp_path / "one.py")) == [("DataError", "size: …: is size, too small; raise it")]


def test_pages_of_the_repository_link_within_the_site(pages: dict[str, str]) -> None:
    assert "](../architecture.md)" in pages["project/contributing.md"]
    assert "](changelog.md)" in pages["project/contributing.md"]


def test_the_navigation_has_every_page(pages: dict[str, str]) -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", settings, re.MULTILINE)
    assert sorted(named) == sorted([*(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")), *pages])


def test_every_picture_is_shown() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *DOCS.rglob("*.md")])
    for picture in (DOCS / "pictures").glob("*.jpg"):
        assert f"pictures/{picture.name})" in texts, picture.name


def test_nothing_is_fetched() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings
    assert not re.search(r"https?://", settings)
