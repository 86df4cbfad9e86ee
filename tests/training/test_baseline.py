"""Baselines in the training loop and the pipeline of translators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from piti.baselines import BaselineNetwork
from piti.core.spec import SpecError
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipelines.pipeline import ModelError, PITIPipeline
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from piti.training import Recipe, RunFolder, baseline, loop, plan, train
from piti.training.baseline import BaselineObjective
from piti.training.build import Run
from piti.training.loop import Trainer
from tests.conftest import make_tiny_data, tiny_recipe
from tests.training.stopping import train_and_stop

WEIGHTS = "model/base/diffusion_pytorch_model.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "pix2pixhd": {"channels": 4, "blocks": 1, "downsamplings": 1, "layers": 1, "discriminator_channels": 4},
    "spade": {"channels": 2, "start": 4, "hidden": 4, "layers": 2, "discriminator_channels": 4},
    "oasis": {"channels": 2, "start": 4, "hidden": 4, "noise": 4, "discriminator_channels": 4},
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of the perceptual network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "squeezenet.safetensors"
    save_file(PerceptualNetwork(PerceptualSpec(network="squeezenet1_1")).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def quick_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of averaged weights are taken of few images."""
    monkeypatch.setattr(baseline, "SETTLING", 16)


def recipe_of(root: Path, kind: str, features: Path, **changes: Any) -> Recipe:
    values = tiny_recipe(root) | {
        "baseline": {"kind": kind, **KINDS[kind]},
        "model": {"image_size": 32},
        "data": {"root": str(root), "size": 32},
        "perceptual": {"network": "squeezenet1_1", "weights": str(features), "layers": [1, 4]},
        "stages": [{"name": "adversarial", "trains": ["generator"], "steps": 4, "lr": 1e-3, "decay": 0.5}],
        "ema": 0.5,
    }
    for key in ("condition_dropout", "schedule", "loss", "prior", "init"):
        values.pop(key, None)
    return Recipe.parse(values | changes, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, features: Path) -> tuple[Path, Path]:
    """(data, the run of a pix2pixhd on it)"""
    folder = tmp_path_factory.mktemp("trained")
    data = make_tiny_data(folder)
    recipe = recipe_of(data, "pix2pixhd", features, stages=[{"trains": ["generator"], "steps": 1}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "SETTLING", 16)
        train(recipe, folder / "run")
    return data, folder / "run"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / WEIGHTS)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_is_trained_resumed_and_translates(
    tiny_data: Path, tmp_path: Path, features: Path, kind: str
) -> None:
    """Stopped after two steps and resumed, it is the run that was never stopped; its images depend on seed and mask."""
    stages = [{"name": "adversarial", "trains": ["generator"], "steps": 3, "lr": 1e-3, "decay": 0.5}]
    recipe = recipe_of(tiny_data, kind, features, log_every=1, stages=stages)
    train(recipe, tmp_path / "whole")
    train_and_stop(recipe, tmp_path / "parts", after=1)
    train(recipe, tmp_path / "parts", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert len(logged) == 3
    assert all(row["discriminator"] > 0 and row["grad_norm"] > 0 for row in logged)

    pipeline = PITIPipeline.from_pretrained(tmp_path / "whole")
    mask = next((tiny_data / "labels").glob("*.png"))
    first, again = (pipeline(mask, 2, generator=torch.Generator().manual_seed(1)).images for _ in range(2))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert min(first[0].size) == 32
    assert (first[0].tobytes() != first[1].tobytes()) == (kind == "oasis")  # the others take no noise
    pipeline.save_pretrained(tmp_path / "copy")
    saved = PITIPipeline.from_pretrained(tmp_path / "copy")(mask, 2, generator=torch.Generator().manual_seed(1)).images
    assert [image.tobytes() for image in saved] == [image.tobytes() for image in first]


def test_both_networks_learn(tiny_data: Path, tmp_path: Path, features: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    rates: list[float] = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: Any) -> Any:
        result = step(self, *args)
        assert isinstance(self.objective, BaselineObjective)
        assert self.objective.opponent is not None
        rates.append(self.objective.opponent.optimizer.param_groups[0]["lr"])
        state = {f"d.{k}": v.clone() for k, v in self.objective.discriminator.named_parameters()}
        seen.append(state | {f"g.{k}": v.clone() for k, v in self.translator.named_parameters()})
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        train(recipe_of(tiny_data, "spade", features), tmp_path / "run")
    for which in ("d.", "g."):
        assert any(not torch.equal(seen[0][k], seen[1][k]) for k in seen[0] if k.startswith(which))
    assert rates[0] == pytest.approx(4e-4)
    assert rates[-1] < rates[1]  # it decays as the generator's does


def test_averaged_weights_get_their_own_statistics(tiny_data: Path, tmp_path: Path, features: Path) -> None:
    """Those that are saved are of the averaged weights; the training's own go on untouched."""
    live: list[dict[str, torch.Tensor]] = []
    write = loop.write_run_model

    def watched(target: Path, run: Run, objective: Any) -> None:
        write(target, run, objective)
        live.append({k: v.clone() for k, v in run.translator.state_dict().items() if "running_mean" in k})

    before: list[dict[str, torch.Tensor]] = []
    save = Trainer.save

    def saved(self: Trainer) -> None:
        before.append({k: v.clone() for k, v in self.translator.state_dict().items() if "running_mean" in k})
        save(self)
        after = {k: v for k, v in self.translator.state_dict().items() if "running_mean" in k}
        assert before[-1]
        assert equal(before[-1], after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_run_model", watched)
        patch.setattr(Trainer, "save", saved)
        train(recipe_of(tiny_data, "oasis", features), tmp_path / "run")
    assert any(not torch.equal(before[-1][key], live[-1][key]) for key in before[-1])
    assert all(torch.equal(value, weights(tmp_path / "run")[key]) for key, value in live[-1].items())


def test_statistics_are_taken_of_shards_as_bad_as_the_recipe_allows(
    tiny_data: Path, tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "SETTLING", 64)  # one of nine is bad, and 1% of 500 are five
    pack_shards(PackJob(tiny_data, tmp_path / "packed", samples=2))
    tar = next((tmp_path / "packed").glob("*train-000001.tar"))
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"XXXX", 1))
    data = {"size": 32, "shards": [str(tmp_path / "packed")], "shard_cache": str(tmp_path / "cache"), "max_bad": 0.5}
    stages = [{"trains": ["generator"], "steps": 1}]
    recipe = recipe_of(tiny_data, "oasis", features, data=data, stages=stages)
    assert (train(recipe, tmp_path / "run") / "model_index.json").is_file()


def test_without_an_average_the_training_s_statistics_are_kept(tiny_data: Path, tmp_path: Path, features: Path) -> None:
    train(recipe_of(tiny_data, "spade", features, ema=0), tmp_path / "run")
    newest = RunFolder(tmp_path / "run").newest()
    assert newest is not None
    trained = load_file(newest / "model.safetensors")
    assert equal(trained, weights(tmp_path / "run"))


def test_a_baseline_has_no_guidance_steps_or_sampler(trained: tuple[Path, Path]) -> None:
    data, run = trained
    pipeline = PITIPipeline.from_pretrained(run)
    mask = next((data / "labels").glob("*.png"))
    for setting in ({"guidance": 2.0}, {"steps": 5}, {"sampler": "ddim"}):
        with pytest.raises(ValueError, match="in one pass; leave them out"):
            pipeline(mask, **setting)  # type: ignore[arg-type]


def test_images_that_cannot_differ_are_told(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    pipeline = PITIPipeline.from_pretrained(run)
    masks = [data / "labels/scene-00.png"]
    notes = [
        translate_files(
            pipeline, TranslationFiles(masks, tmp_path / f"out-{num}"), GenerationOptions.from_flat(num=num), "run"
        ).notes
        for num in (1, 2)
    ]
    assert not notes[0]
    assert notes[1] == ["this model takes no noise, so all images of a condition are the same (num 1 generates one)"]
    assert not pipeline.draws_noise()


def test_it_is_no_prior(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    values = tiny_recipe(data) | {"prior": str(run)}
    with pytest.raises(ModelError, match="BaselineNetwork, not a translator"):
        train(Recipe.parse(values, "test"), tmp_path / "other")


def test_other_channels_than_the_condition_s_are_refused() -> None:
    from piti.checkpoints.compatibility import check_cascade
    from piti.conditions import SketchCondition

    network = BaselineNetwork({"kind": "spade", **KINDS["spade"]}, channels=3, image_size=32)
    with pytest.raises(ModelError, match="reads 3 channels, but the condition 'sketch' has 1"):
        check_cascade(SketchCondition(), network, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_tells_sizes_and_costs(tiny_data: Path, tmp_path: Path, features: Path, kind: str) -> None:
    rows = {row["what"]: row["plan"] for row in plan(recipe_of(tiny_data, kind, features), tmp_path / "run")}
    assert rows["networks"].startswith("generator ")
    assert "discriminator" in rows["networks"]
    assert "GFLOP forward" in rows["FLOPs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": {"kind": "spad"}}, "did you mean 'spade'"),
        ({"baseline": {"kind": "spade", "chanels": 3}}, "did you mean 'channels'"),
        ({"model": {"image_size": 32, "patch_size": 2}}, "'model' of a baseline has only 'image_size'; set"),
        ({"data": {"size": 16}}, "must be equal; change them"),
        ({"stages": [{"trains": ["unet"]}]}, r"'trains' of a baseline must be \[generator\]"),
        ({"stages": [{"trains": ["generator"], "perceptual": {}}]}, "has its own losses"),
        ({"stages": [{"trains": ["generator"], "condition_dropout": 0.1}]}, "'stages.0.condition_dropout' has no"),
        ({"prior": "street"}, "'prior' has no effect for a baseline"),
        ({"schedule": {"steps": 10}}, "'schedule' has no effect for a baseline"),
        ({"condition_dropout": 0.1}, "'condition_dropout' has no effect for a baseline"),
        ({"condition": {"kind": "none"}}, "is not an image"),
    ],
)
def test_what_has_no_meaning_for_a_baseline_is_refused(
    tiny_data: Path, tmp_path: Path, features: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(tiny_data, "spade", features, **changes)


def test_a_translator_trains_no_generator(tiny_data: Path) -> None:
    values = tiny_recipe(tiny_data) | {"stages": [{"trains": ["generator"]}]}
    with pytest.raises(SpecError, match="'trains' of a translator must be some of encoder, unet, lora"):
        Recipe.parse(values, "test")


def test_oasis_takes_masks_alone(tiny_data: Path, tmp_path: Path, features: Path) -> None:
    recipe = recipe_of(tiny_data, "oasis", features, condition={"kind": "sketch"})
    with pytest.raises(ValueError, match="oasis judges images by their classes"):
        train(recipe, tmp_path / "run")
