"""A prior that a recipe names by its hub id is imported automatically."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest

from piti.checkpoints.folder import ModelError, ModelFolder, find_model, imported_folder
from piti.checkpoints.priors import import_prior, not_imported
from piti.training import RecipeError, plan
from piti.training.init import load_prior
from piti.training.run import train
from tests.priors import tiny
from tests.priors.test_adapt import TWO_STAGES, recipe_of

NAME = "owner/tiny"


class Hub:
    """Gives the files of a folder that match, and remembers which."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.fetched: set[str] = set()

    def __call__(self, name: str, allow_patterns: list[str], ignore_patterns: list[str] | None = None, **_: Any) -> str:
        assert name == NAME
        for path in sorted(self.folder.rglob("*")):
            inside = str(path.relative_to(self.folder))
            asked, without = (
                any(fnmatch.fnmatch(inside, pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns or [])
            )
            if path.is_file() and asked and not without:
                (self.cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / inside)
                self.fetched.add(inside)
        return str(self.cache)


@pytest.fixture
def hub(stable: tiny.Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(stable.folder, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_a_plan_reads_configurations_and_the_run_imports(
    hub: Hub, stable: tiny.Imported, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(stable, tiny_data, prior=NAME, stages=TWO_STAGES[:1])
    (begins,) = (row["plan"] for row in plan(recipe, tmp_path / "run") if row["what"] == "begins")
    assert begins == (
        f"prior {NAME}: Stable Diffusion, predicts noise, 16 px, tokens of 16; downloaded and imported when the run "
        "starts"
    )
    assert not any(name.endswith(".safetensors") for name in hub.fetched)
    assert not imported_folder(NAME).exists()
    train(recipe, tmp_path / "run")
    assert imported_folder(NAME).parent == tmp_path / "cache/piti/priors"
    assert "safety_checker" not in str(hub.fetched)

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert find_model(NAME) == imported_folder(NAME)  # once is enough
    assert not_imported(NAME) is None
    with pytest.raises(ModelError, match=r"'owner/other', and no model .* from the hub \(no connection\)"):
        plan(recipe_of(stable, tiny_data, prior="owner/other"), tmp_path / "other")
    with pytest.raises(
        ModelError, match=r"no model 'owner/other': .* could not be downloaded from the hub; .*: no connection"
    ):
        find_model("owner/other")


def test_what_does_not_fit_is_refused_before_weights_are_fetched(
    hub: Hub, stable: tiny.Imported, tiny_data: Path
) -> None:
    recipe = recipe_of(stable, tiny_data)
    schedule = recipe.schedule.model_copy(update={"prediction": "v_prediction"})
    with pytest.raises(
        RecipeError, match=r"owner/tiny was trained with another noise schedule .*epsilon there, here v_prediction"
    ):
        load_prior(stable.ours.base, NAME, schedule, only_check=True)  # type: ignore[arg-type]
    assert not any(name.endswith(".safetensors") for name in hub.fetched)
    with pytest.raises(
        ModelError, match="of another family, which is imported in its current revision; leave revision out"
    ):
        find_model(NAME, revision="main")


def test_a_folder_of_diffusers_is_no_model_yet(stable: tiny.Imported) -> None:
    with pytest.raises(ModelError, match=r"diffusers: is a diffusers folder, a StableDiffusionPipeline; import it: "):
        ModelFolder.open(find_model(stable.folder))


@pytest.mark.parametrize(("kept", "fetched"), [(("", "bf16"), ""), (("fp16", "bf16"), "fp16"), (("bf16",), "bf16")])
def test_weights_are_fetched_in_one_precision(hub: Hub, tmp_path: Path, kept: tuple[str, ...], fetched: str) -> None:
    """The full one where there is such; the hub's folders of Sana hold bf16 beside it, or alone."""
    hub.folder = shutil.copytree(hub.folder, tmp_path / "published")
    for path in sorted(hub.folder.glob("unet/*.safetensors")):
        weights = path.read_bytes()
        path.unlink()
        for variant in kept:
            path.with_suffix(f".{variant}.safetensors" if variant else ".safetensors").write_bytes(weights)
    import_prior(NAME, tmp_path / "model")
    middle = f".{fetched}" if fetched else ""
    weights_of_unet = {name for name in hub.fetched if name.startswith("unet/") and name.endswith(".safetensors")}
    assert weights_of_unet == {f"unet/diffusion_pytorch_model{middle}.safetensors"}
