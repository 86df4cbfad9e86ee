"""From captions to a prior, and from a prior to a task: pretraining, adaptation, low-rank adapters."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from piti.checkpoints.folder import ModelError
from piti.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_FILE, LoraSpec, inject, merged, product
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.data import DataError
from piti.diffusion.schedule import ScheduleSpec
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RecipeError, RunError, plan, train
from tests.conftest import TINY_MODEL, tiny_recipe

COLOURS = {"a photo of the sea": (40, 80, 200), "a photo of a forest": (30, 120, 40)}
TEXT_MODEL = {key: value for key, value in TINY_MODEL.items() if key != "encoder"}
TEXT_MODEL["text"] = {"width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 12 flat pictures with captions, as WebDataset names them."""
    path = tmp_path_factory.mktemp("scenes") / "scenes.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for k in range(12):
            caption, colour = list(COLOURS.items())[k % 2]
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "JPEG")
            for name, data in ((f"{k:04d}.jpg", picture.getvalue()), (f"{k:04d}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def prior_recipe(scenes: Path, **changes: object) -> Recipe:
    values = tiny_recipe(
        scenes,
        condition={"kind": "text", "context": 24},
        model=TEXT_MODEL,
        data={"photographs": [str(scenes)], "size": 16},
        stages=[{"name": "pretrain", "steps": 4, "lr": 1e-3}],
    )
    return Recipe.parse(values | changes, "test")


@pytest.fixture(scope="module")
def prior(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a prior."""
    folder = tmp_path_factory.mktemp("prior") / "prior"
    train(prior_recipe(scenes), folder)
    return folder


@pytest.fixture(scope="module")
def other(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a prior with other weights."""
    folder = tmp_path_factory.mktemp("other") / "prior"
    train(prior_recipe(scenes, seed=1, stages=[{"name": "pretrain", "steps": 1}]), folder)
    return folder


@pytest.fixture
def changing(prior: Path, tmp_path: Path) -> Path:
    """The run of a prior, for a test that changes it."""
    return shutil.copytree(prior, tmp_path / "prior")


def change(prior: Path, other: Path) -> None:
    """The prior's model becomes another run's."""
    shutil.rmtree(prior / "model")
    shutil.copytree(other / "model", prior / "model")


def adapted_recipe(root: Path, unet_of: Path, **changes: object) -> Recipe:
    stages = [
        {"name": "adapt", "trains": ["encoder"], "steps": 2, "lr": 1e-3},
        {"name": "joint", "trains": ["encoder", "lora"], "steps": 3, "lr": 1e-2},
    ]
    values = tiny_recipe(root, stages=stages, lora={"rank": 2}, ema=0.5)  # lora: {} where no stage trains it
    return Recipe.parse(values | {"prior": str(unet_of)} | changes, "test")


def unet_of(run: Path) -> dict[str, torch.Tensor]:
    weights = load_file(run / "model/base/diffusion_pytorch_model.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("unet.")}


class TestPretraining:
    def test_captions_beside_pictures_make_a_prior_that_reads_text(self, prior: Path) -> None:
        pipeline = PITIPipeline.from_pretrained(prior)
        pipeline.set_progress_bar_config(disable=True)
        texts = ["a photo of the sea", "a photo of a forest"]

        def made() -> list[bytes]:
            generator = torch.Generator().manual_seed(0)
            return [image.tobytes() for image in pipeline(texts, steps=2, generator=generator).images]

        assert made() == made()
        assert len(set(made())) == 2

    def test_it_learns_the_colours_of_the_words(self, scenes: Path, tmp_path: Path) -> None:
        """The seed is one with which so small a network learns to read in so few steps; not all are."""
        model = TEXT_MODEL | {"unet": TINY_MODEL["unet"] | {"channels": [16], "attention": [True]}}  # type: ignore[operator]
        changes: dict[str, object] = {
            "model": model,
            "stages": [{"name": "pretrain", "steps": 50, "lr": 1e-2}],
            "schedule": {"prediction": "v_prediction"},
        }
        recipe = prior_recipe(scenes, ema=0.9, batch=8, seed=0, **changes)
        train(recipe, tmp_path / "run")
        pipeline = PITIPipeline.from_pretrained(tmp_path / "run")
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(list(COLOURS), steps=6, sampler="ddim", guidance=1.0, num_images=4).images
        blue = np.array([np.asarray(image).reshape(-1, 3).mean(0)[2] for image in images])
        assert blue[:4].mean() > blue[4:].mean() + 60

    def test_folders_with_captions(self, tmp_path: Path) -> None:
        for folder in ("images", "captions"):
            (tmp_path / folder / "x").mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20)).save(tmp_path / f"images/x/{k}.png")
            (tmp_path / f"captions/x/{k}.txt").write_text("a photo")
        data = {"root": str(tmp_path), "conditions": "captions", "size": 16}
        train(prior_recipe(tmp_path, data=data), tmp_path / "run")
        assert (tmp_path / "run/model/base").is_dir()

    def test_missing_and_empty_captions_are_named(self, tmp_path: Path) -> None:
        photographs = tmp_path / "photographs"
        photographs.mkdir()
        for k in range(3):
            Image.new("RGB", (20, 20)).save(photographs / f"{k}.png")
        (photographs / "0.txt").write_text("a photo")
        (photographs / "1.txt").write_text("  ")
        with pytest.raises(DataError, match=r"(?s)without a caption beside them.*2\.png.*1\.txt: is empty"):
            train(prior_recipe(photographs), tmp_path / "run")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": TINY_MODEL}, "goes with 'model.text'"),
            ({"condition": {"kind": "mask"}}, "goes with 'model.text'"),
            ({"model": TINY_MODEL | {"text": {"width": 16}}}, "a translator has one encoder"),
        ],
    )
    def test_recipes_that_do_not_fit(self, scenes: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            prior_recipe(scenes, **changes)


class TestAdaptation:
    def test_the_unet_is_taken_and_the_encoder_left(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        stages = [{"name": "adapt", "trains": ["encoder"], "steps": 2, "lr": 1e-3}]
        log = io.StringIO()
        console = Console(file=log, width=200)
        train(adapted_recipe(tiny_data, prior, stages=stages, lora={}), tmp_path / "run", console=console)
        before, after = unet_of(prior), unet_of(tmp_path / "run")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert f"{len(before)} weights of its UNet loaded" in log.getvalue()
        assert "of its encoder dropped (encoder.blocks.0" in log.getvalue()

    def test_the_plan_says_so(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        rows = {row["what"]: row["plan"] for row in plan(adapted_recipe(tiny_data, prior), tmp_path / "run")}
        assert "of its encoder dropped" in rows["begins"]

    def test_other_shapes_are_refused_by_name(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        wider = TINY_MODEL | {"unet": TINY_MODEL["unet"] | {"channels": [32, 32]}}  # type: ignore[operator]
        with pytest.raises(RecipeError, match=r"prior: \d+ weights of .* do not fit .*\[16.*there, here \[32"):
            train(adapted_recipe(tiny_data, prior, model=wider), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(("key", "value"), [("head_dim", 16), ("norm_groups", 2)])
    def test_other_settings_of_the_same_shapes_are_refused(
        self, prior: Path, tiny_data: Path, tmp_path: Path, key: str, value: int
    ) -> None:
        own = TINY_MODEL["unet"]
        model = TINY_MODEL | {"unet": own | {key: value}}  # type: ignore[operator]
        with pytest.raises(
            RecipeError, match=rf"with other settings \(model.unet.{key}: {own[key]} there, here {value}\)"
        ):
            plan(adapted_recipe(tiny_data, prior, model=model), tmp_path / "run")

    def test_another_prediction_is_refused(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        recipe = adapted_recipe(tiny_data, prior, schedule={"prediction": "epsilon"})
        with pytest.raises(RecipeError, match=r"\(prediction v_prediction there, here epsilon\); copy its schedule"):
            train(recipe, tmp_path / "run")

    def test_without_data_the_plan_still_checks_the_prior(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        recipe = adapted_recipe(tiny_data, prior)
        blind = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": None})})
        rows = {row["what"]: row["plan"] for row in plan(blind, tmp_path / "run")}
        assert "of its encoder dropped" in rows["begins"]
        gone = plan(blind.model_copy(update={"prior": "nowhere"}), tmp_path / "run")
        assert "not checked: there is no model 'nowhere'" in {row["what"]: row["plan"] for row in gone}["begins"]
        bounded = blind.model_copy(update={"schedule": blind.schedule.model_copy(update={"clip": False})})
        begins = {row["what"]: row["plan"] for row in plan(bounded, tmp_path / "run")}["begins"]
        assert begins.endswith("; it was sampled with other settings (clip True there, here False)")
        other = blind.model_copy(update={"schedule": ScheduleSpec(prediction="epsilon")})
        with pytest.raises(RecipeError, match="trained with another noise schedule"):
            plan(other, tmp_path / "run")

    def test_a_prior_that_is_still_to_be_imported_is_said_how(self, tiny_data: Path, tmp_path: Path) -> None:
        missing = adapted_recipe(tiny_data, tmp_path, prior="./models/glide")
        with pytest.raises(ModelError, match=r"prior: .*'./models/glide' yet") as raised:
            plan(missing, tmp_path / "run")
        assert "piti import BASE.pt --out ./models/glide" in str(raised.value)

    def test_what_is_no_prior(self, tiny_data: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="there is no model 'nowhere'"):
            plan(adapted_recipe(tiny_data, Path("nowhere")), tmp_path / "run")
        with pytest.raises(SpecError, match="'init' and 'prior' are both given"):
            adapted_recipe(tiny_data, Path("a"), init="b")


class TestLora:
    def test_a_small_file_beside_the_priors_name(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        train(adapted_recipe(tiny_data, prior), run)
        folder = run / "model/base"
        assert sorted(p.name for p in folder.iterdir()) == [ADAPTER_CONFIG, ADAPTER_FILE, "config.json"]
        saved = load_file(folder / ADAPTER_FILE)
        adapters = {key: value for key, value in saved.items() if ".lora_" in key}
        assert sum(x.numel() for x in adapters.values()) < 0.1 * sum(x.numel() for x in unet_of(prior).values())
        assert any(value.abs().max() > 0 for key, value in adapters.items() if ".lora_B" in key)
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        assert config["prior"] == str(prior)
        PITIPipeline.from_pretrained(run)
        with pytest.raises(RecipeError, match=r"prior: .*base: has no .*; save the model again"):
            plan(adapted_recipe(tiny_data, run), tmp_path / "another")

    def test_merged_weights_are_what_was_trained(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        """peft's own arithmetic, read from the checkpoint, against ours."""
        run = tmp_path / "run"
        recipe = adapted_recipe(tiny_data, prior, ema=0.0, lora={"rank": 2, "alpha": 3.0, "convolutions": True})
        train(recipe, run)
        pipeline = PITIPipeline.from_pretrained(run)
        newest = sorted((run / "checkpoints").iterdir())[-1]
        wrapped = load_file(newest / "model.safetensors")
        merged, before = pipeline.base.unet.state_dict(), unet_of(prior)
        changed = 0
        for key, up in wrapped.items():
            if ".lora_B" not in key:
                continue
            layer = key.removesuffix(".lora_B.default.weight")
            down = wrapped[f"{layer}.lora_A.default.weight"]
            expected = wrapped[f"{layer}.base_layer.weight"] + 1.5 * product(up, down)
            torch.testing.assert_close(merged[f"{layer}.weight".removeprefix("unet.")], expected)
            assert torch.equal(wrapped[f"{layer}.base_layer.weight"], before[f"{layer}.weight"])
            changed += 1
        assert changed > 10

    def test_saved_over_itself_it_needs_its_prior_no_more(
        self, changing: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        train(adapted_recipe(tiny_data, changing, lora={"rank": 2}), run)
        pipeline, mine = PITIPipeline.from_pretrained(run), run / "model"
        torch.nn.init.zeros_(pipeline.base.unet.conv_out.weight)
        pipeline.save_pretrained(mine, variant="fp16")
        assert PITIPipeline.from_pretrained(mine).base.unet.conv_out.weight.any()
        assert not PITIPipeline.from_pretrained(mine, variant="fp16").base.unet.conv_out.weight.any()
        pipeline.save_pretrained(mine)
        shutil.rmtree(changing)
        assert not PITIPipeline.from_pretrained(mine).base.unet.conv_out.weight.any()

    def test_the_merged_network_computes_what_pefts_does(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        translator = PITIPipeline.from_pretrained(prior).base
        before = {key: value.clone() for key, value in translator.state_dict().items()}
        spec = LoraSpec(rank=3, alpha=6.0, convolutions=True)
        inject(translator, spec)
        with torch.no_grad():
            for name, parameter in translator.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.1)
        x, t, text = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.zeros(2, 1, 1, 24, dtype=torch.int32)
        theirs = translator(x, t, text).output
        adapter = {key: value for key, value in translator.state_dict().items() if ".lora_" in key}
        whole = PITIPipeline.from_pretrained(prior).base
        whole.load_state_dict(merged(before, adapter, spec), strict=False)
        ours = whole(x, t, text).output
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        whole.load_state_dict(before)
        assert (whole(x, t, text).output - theirs).abs().max() > 1e-3

    def test_a_prior_that_changed_is_refused(
        self, changing: Path, other: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        stages = [{"name": "joint", "trains": ["encoder", "lora"], "steps": 1}]
        train(adapted_recipe(tiny_data, changing, stages=stages), tmp_path / "run")
        change(changing, other)
        with pytest.raises(ModelError, match=r"its weights have changed since"):
            PITIPipeline.from_pretrained(tmp_path / "run")
        longer = adapted_recipe(tiny_data, changing, stages=[stages[0] | {"steps": 2}])
        with pytest.raises(RunError, match="was trained with prior_sha256 = "):
            train(longer, tmp_path / "run", resume=True)

    def test_adapters_whose_prior_is_gone_say_so_and_where_it_is_named(
        self, changing: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        stages = [{"name": "joint", "trains": ["encoder", "lora"], "steps": 1}]
        train(adapted_recipe(tiny_data, changing, stages=stages), tmp_path / "run")
        moved = changing.rename(changing.with_name("moved"))
        config = tmp_path / "run/model/base" / ADAPTER_CONFIG
        with pytest.raises(ModelError, match=rf"adapters of {config.parent} were trained on it; .* in {config}"):
            PITIPipeline.from_pretrained(tmp_path / "run")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"prior": str(moved)}))
        PITIPipeline.from_pretrained(tmp_path / "run")

    def test_a_prior_in_half_precision_keeps_what_was_learnt(self) -> None:
        half = {"unet.a.weight": torch.randn(64, 64).half()}
        down, up = 0.01 * torch.randn(1, 64), 0.01 * torch.ones(64, 1)
        adapter = {"unet.a.lora_A.default.weight": down, "unet.a.lora_B.default.weight": up}
        whole = merged(half, adapter, LoraSpec(rank=1))["unet.a.weight"]
        torch.testing.assert_close(whole - half["unet.a.weight"].float(), up @ down, rtol=0, atol=1e-6)

    def test_adapters_that_do_not_fit_are_named(self) -> None:
        adapter = {"unet.a.lora_A.default.weight": torch.ones(1, 4), "unet.a.lora_B.default.weight": torch.ones(3, 1)}
        with pytest.raises(UserError, match=r"the adapter of unet\.a does not fit"):
            merged({"unet.a.weight": torch.ones(4, 4)}, adapter, LoraSpec(rank=1))

    def test_resumed_as_if_never_stopped(self, prior: Path, tiny_data: Path, tmp_path: Path) -> None:
        train(adapted_recipe(tiny_data, prior), tmp_path / "whole")
        stages = [
            {"name": "adapt", "trains": ["encoder"], "steps": 2, "lr": 1e-3},
            {"name": "joint", "trains": ["encoder", "lora"], "steps": 1, "lr": 1e-2},
        ]
        train(adapted_recipe(tiny_data, prior, stages=stages), tmp_path / "parts")
        train(adapted_recipe(tiny_data, prior), tmp_path / "parts", resume=True)
        whole, parts = (load_file(tmp_path / run / "model/base" / ADAPTER_FILE) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stages": [{"trains": ["unet"]}]}, "'lora' is set, but no stage trains it"),
            ({"prior": None}, "'lora' adapts the UNet of a prior"),
            ({"stages": [{"trains": ["lora"]}, {"trains": ["unet"]}]}, "trains the whole UNet and another adapts it"),
        ],
    )
    def test_recipes_that_do_not_fit(self, tiny_data: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            adapted_recipe(tiny_data, Path("prior"), **changes)
