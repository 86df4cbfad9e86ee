"""The code of CONTRIBUTING.md runs unchanged; related files are well formed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from PIL import Image

from piti import EditSettings, PITIPipeline, __version__, edit
from piti.conditions import CONDITIONS
from piti.core.errors import UserError
from piti.diffusion.samplers import SAMPLERS
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.computing import Computing
from piti.studio.service.models import described
from piti.studio.service.schema import Limits, TranslateRequest
from piti.studio.service.service import Studio
from piti.training import Recipe, train
from tests.conftest import ROOT, make_tiny_data, tiny_recipe
from tests.generation.recreating import FAST, again
from tests.pipelines.test_pipeline import tiny_pipeline

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = {
    section.partition("\n")[0]: code
    for section in TEXT.split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


def test_there_is_a_recipe_for_each_kind_of_extension() -> None:
    assert list(RECIPES) == ["Add a condition", "Add a layout", "Add a sampler"]


@contextmanager
def followed(title: str, folder: Path) -> Iterator[None]:
    """What a recipe adds is there within the block."""
    before = set(CONDITIONS), set(SAMPLERS)
    try:
        exec(compile(RECIPES[title], "CONTRIBUTING.md", "exec"), {"folder": folder, "__name__": __name__})
        yield
    finally:
        for registry, known in zip((CONDITIONS, SAMPLERS), before, strict=True):
            for key in set(registry) - known:
                del registry[key]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(title: str, tmp_path: Path) -> None:
    with followed(title, tmp_path):
        pass


def test_a_condition_that_is_added_goes_from_a_recipe_to_images_edits_and_the_studio(tmp_path: Path) -> None:
    root = make_tiny_data(tmp_path)
    data = {"root": str(root), "size": 16, "conditions": "labels", "crop_scale": [0.5, 0.6]}
    recipe = tiny_recipe(root, condition={"kind": "grey"}, data=data, stages=[{"name": "joint", "steps": 2}])
    with followed("Add a condition", tmp_path):
        pipeline = PITIPipeline.from_pretrained(train(Recipe.parse(recipe, "test"), tmp_path / "run"))
        pipeline.set_progress_bar_config(disable=True)
        before, after = Image.linear_gradient("L").resize((20, 16)), Image.new("L", (20, 16), 200)
        before.save(tmp_path / "heat.png")
        first = tmp_path / "first"
        translate_files(pipeline, TranslationFiles([tmp_path / "heat.png"], first), FAST, "tiny")
        again(pipeline, first / "heat_2.png", tmp_path / "again")
        assert (tmp_path / "again" / "heat_2.png").read_bytes() == (first / "heat_2.png").read_bytes()
        settings = EditSettings.from_flat(steps=2)
        assert edit(pipeline, first / "heat_2.png", after, from_=before, settings=settings).share > 0.9
        model = str(tmp_path / "run")
        studio = Studio((model,), computing=Computing("cpu", engine="torch"))
        raw = studio.read_condition(model, (tmp_path / "heat.png").read_bytes(), "heat.png")
        made = studio.translate(TranslateRequest.parse({"model": model, "num": 1, "steps": 2}, "request"), raw)
        assert len(asyncio.run(made.result()).pictures) == 1
        studio.close()


def test_a_sampler_that_is_added_is_taken_by_the_studio_and_by_requests(tmp_path: Path) -> None:
    asked = {"model": "tiny", "sampler": "dpm++3"}
    with followed("Add a sampler", tmp_path):
        assert TranslateRequest.parse(asked, "request").options().sampling.base.sampler == "dpm++3"
        assert "dpm++3" in str(TranslateRequest.model_json_schema()["properties"]["sampler"])
        assert "dpm++3" in described("tiny", tiny_pipeline(), Limits()).samplers
    with pytest.raises(UserError, match=r"'dpm\+\+3': is not a sampler; did you mean 'dpm\+\+'"):
        TranslateRequest.parse(asked, "request")


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
