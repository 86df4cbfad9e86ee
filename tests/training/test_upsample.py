"""The stage `upsample`: small images, losses on x̂₀, two optimisers, and what the run leaves."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.checkpoints.folder import ModelError, ModelFolder
from piti.conditions import MaskCondition
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.data import DataError
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, plan, read_recipe, train
from piti.training.adversarial import ImageLosses, Predicted, _looked_at
from piti.training.loop import Trainer
from piti.training.losses import PerceptualLossSpec
from piti.training.objectives import DiffusionObjective
from piti.training.preview import Validation
from piti.training.recipe import RecipeError
from piti.training.stages import Stage
from tests.conftest import TINY_MODEL, make_tiny_data, tiny_recipe
from tests.training.stopping import train_and_stop

MODEL = {
    "image_size": 32,
    "low_res": 16,
    "patch_size": 2,
    "encoder": None,
    "unet": {"channels": [16, 32], "attention": [False, False], "layers": 1, "token_width": None, "norm_groups": 8},
}
LOSSES = {"perceptual": {"weight": 0.01, "after": 0}, "adversarial": {"weight": 0.1, "after": 2, "noise": [0.0, 0.75]}}
STAGE = {"name": "upsample", "trains": ["unet"], "steps": 6, "lr": 1e-3, **LOSSES}
WEIGHTS = "model/upsampler/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A perceptual network of two small layers with random weights, in a file."""
    folder = tmp_path_factory.mktemp("features")
    spec = {"network": "squeezenet1_1", "layers": [1, 3]}
    torch.manual_seed(0)
    network = PerceptualNetwork(PerceptualSpec.parse(spec, "test"))
    save_file(network.state_dict(), folder / "features.safetensors")
    return spec | {"weights": str(folder / "features.safetensors")}


def upsampler_recipe(root: Path, features: dict[str, Any], **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": MODEL,
        "condition": {"kind": "none"},
        "data": {"root": str(root), "size": 32, "crop_scale": [1.0, 1.0]},
        "perceptual": features,
        "discriminator": {"channels": [4, 8]},
        "stages": [STAGE],
        "condition_dropout": 0.0,
    }
    return Recipe.parse(tiny_recipe(root, **(values | changes)), "test")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a base for masks, on data beside it."""
    folder = tmp_path_factory.mktemp("base")
    recipe = tiny_recipe(make_tiny_data(folder), stages=[{"name": "joint", "steps": 1}])
    train(Recipe.parse(recipe, "test"), folder / "base")
    return folder / "base"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_an_upsampler_metrics_and_previews(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    preview = {"every": 4, "count": 2, "steps": 2}
    model = train(upsampler_recipe(tiny_data, features, log_every=1, preview=preview), tmp_path / "run")
    upsampler = Translator.from_pretrained(model / "upsampler")
    assert (upsampler.low_res, upsampler.scale, upsampler.encoder) == (16, 2, None)
    logged = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert all(row["perceptual"] > 0 for row in logged)
    assert ["adversarial" in row for row in logged] == [False, False, True, True, True, True]
    assert ["discriminator" in row for row in logged] == ["adversarial" in row for row in logged]
    weighted = logged[0]["simple"] + logged[0]["vb"] + 0.01 * logged[0]["perceptual"]
    assert logged[0]["loss"] == pytest.approx(weighted, rel=1e-4)
    picture = Image.open(tmp_path / "run/previews/step-00000004.png")
    assert picture.size == (2 * 36 + 4, 3 * 36 + 4)  # small image, sample and photograph for two pairs


def test_both_networks_learn_and_the_perceptual_one_does_not(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: Any) -> Any:
        result = step(self, *args)
        state = {f"d.{k}": v.clone() for k, v in self.objective.discriminator.state_dict().items()}  # type: ignore[union-attr]
        state |= {f"g.{k}": v.clone() for k, v in self.translator.state_dict().items()}
        state |= {f"p.{k}": v.clone() for k, v in self.run.perceptual.state_dict().items()}  # type: ignore[union-attr]
        assert all(p.grad is None for p in self.run.perceptual.parameters())  # type: ignore[union-attr]
        assert all(p.grad is None for p in self.objective.discriminator.parameters())  # type: ignore[union-attr]
        seen.append(state)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        train(upsampler_recipe(tiny_data, features), tmp_path / "run")

    def moved(a: int, b: int, which: str) -> bool:
        return any(not torch.equal(seen[a][k], seen[b][k]) for k in seen[a] if k.startswith(which))

    assert moved(0, 1, "g.")
    assert not moved(0, 1, "d.")  # the adversary waits for two steps
    assert moved(1, 2, "d.")
    assert moved(4, 5, "d.")
    assert not moved(0, 5, "p.")


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "wgan_gp"])
def test_every_adversarial_loss_trains(tiny_data: Path, tmp_path: Path, features: Any, kind: str) -> None:
    stage = STAGE | {"adversarial": {"kind": kind, "after": 0, "noise": [0.0, 1.0]}, "steps": 2}
    train(upsampler_recipe(tiny_data, features, stages=[stage], log_every=1, precision="bf16"), tmp_path / "run")
    assert all(row["discriminator"] == row["discriminator"] for row in rows(tmp_path / "run") if "loss" in row)


PLAIN = {"name": "diffusion", "trains": ["unet"], "steps": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, features: Any) -> tuple[Recipe, Path]:
    """A recipe of two stages, the second with an adversary that acts from step 5 on, and its run to step 6."""
    folder = tmp_path_factory.mktemp("whole")
    stages = [PLAIN | {"steps": 2}, STAGE | {"steps": 4}]
    recipe = upsampler_recipe(make_tiny_data(folder), features, stages=stages, accumulation=2, log_every=1)
    train(recipe, folder / "whole")
    return recipe, folder / "whole"


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_resumed_is_as_if_never_stopped(whole: tuple[Recipe, Path], tmp_path: Path, stop_after: int) -> None:
    """Stopped between the stages, before the adversary acts and while it learns."""
    recipe, uncut = whole
    train_and_stop(recipe, tmp_path / "parts", stop_after)
    train(recipe, tmp_path / "parts", resume=True)
    whole_weights, parts = load_file(uncut / WEIGHTS), load_file(tmp_path / "parts" / WEIGHTS)
    assert all(torch.equal(whole_weights[key], parts[key]) for key in whole_weights)
    for name in ("model_1.safetensors", "optimizer_1.bin"):  # the discriminator and its optimiser
        a, b = (run / "checkpoints/step-00000006" / name for run in (uncut, tmp_path / "parts"))
        assert a.is_file()
        assert _tensors(a) == _tensors(b)


def _tensors(path: Path) -> list[Any]:
    values = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["state"]
    return [
        {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
        if isinstance(entry, dict)
        else entry.tolist()
        for _, entry in sorted(values.items())
    ]


def test_the_range_of_noise_decides_which_rows_are_judged(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    from piti.training import adversarial

    seen = []
    real = adversarial.acts_at

    def watched(t: torch.Tensor, steps: int, share: tuple[float, float]) -> torch.Tensor:
        rows = real(t, steps, share)
        seen.append((t, rows))
        return rows

    stage = STAGE | {"perceptual": {"noise": [0.25, 0.5], "after": 0}, "adversarial": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "acts_at", watched)
        train(upsampler_recipe(tiny_data, features, stages=[stage]), tmp_path / "run")
    batches = [(t, rows) for t, rows in seen if len(t) == 4]  # the recipe counts all timesteps beforehand
    assert len(batches) == 6
    for t, judged in batches:
        assert judged.tolist() == [250 <= int(x) < 500 for x in t]
        assert judged.any()


def test_with_a_base_the_run_is_a_whole_model(tiny_data: Path, tmp_path: Path, features: Any, base: Path) -> None:
    recipe = upsampler_recipe(tiny_data, features, base=str(base), stages=[PLAIN])
    model = train(recipe, tmp_path / "run")
    assert ModelFolder.open(model).condition.kind == "mask"
    pipeline = PITIPipeline.from_pretrained(tmp_path / "run")
    pipeline.set_progress_bar_config(disable=True)
    mask = next((tiny_data / "labels").iterdir())
    assert pipeline(mask, steps=2, upsampler_steps=2).images[0].size == (40, 32)


def test_a_base_of_another_size_is_refused_before_anything(
    tiny_data: Path, tmp_path: Path, features: Any, base: Path
) -> None:
    recipe = upsampler_recipe(tiny_data, features, base=str(base), model=MODEL | {"low_res": 8})
    with pytest.raises(RecipeError, match=r"images of 16 px, the upsampler enlarges images of 'model.low_res' 8 px"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_upsampler_is_no_base(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    train(upsampler_recipe(tiny_data, features, stages=[PLAIN]), tmp_path / "up")
    with pytest.raises(RecipeError, match="holds an upsampler alone"):
        train(upsampler_recipe(tiny_data, features, base=str(tmp_path / "up")), tmp_path / "run")
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        train(upsampler_recipe(tiny_data, features, base="nowhere"), tmp_path / "run")


def test_a_base_with_an_upsampler_of_its_own_keeps_its_settings_to_itself(
    tiny_data: Path, tmp_path: Path, features: Any, base: Path
) -> None:
    def recipe(of: Path) -> Recipe:
        return upsampler_recipe(tiny_data, features, base=str(of), stages=[PLAIN | {"steps": 1}])

    model = train(recipe(base), tmp_path / "first")
    index = json.loads((model / "model_index.json").read_text())
    index["defaults"] = {"steps": 3, "upsampler_steps": 4}
    (model / "model_index.json").write_text(json.dumps(index))
    again = train(recipe(tmp_path / "first"), tmp_path / "second")
    assert json.loads((again / "model_index.json").read_text())["defaults"] == {"steps": 3}


def test_the_gradient_penalty_is_exact_whatever_the_precision(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    from piti.training import adversarial

    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    inside = [False]
    penalty, conv2d = adversarial.gradient_penalty, torch.nn.functional.conv2d

    def convolved(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = conv2d(*args, **kwargs)
        dtypes[inside[0]].add(out.dtype)
        return out

    def watched(*args: Any) -> torch.Tensor:
        inside[0] = True
        value = penalty(*args)
        inside[0] = False
        return value

    stage = STAGE | {"adversarial": {"kind": "wgan_gp", "after": 0, "noise": [0.0, 1.0]}, "steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "gradient_penalty", watched)
        patch.setattr(torch.nn.functional, "conv2d", convolved)
        train(upsampler_recipe(tiny_data, features, stages=[stage], precision="bf16"), tmp_path / "run")
    assert dtypes[True] == {torch.float32}
    assert torch.bfloat16 in dtypes[False]


def test_begins_from_another_runs_weights(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    train(upsampler_recipe(tiny_data, features, stages=[PLAIN]), tmp_path / "first")
    first = load_file(tmp_path / "first" / WEIGHTS)
    still = STAGE | {"lr": 1e-30, "steps": 1}
    train(upsampler_recipe(tiny_data, features, init=str(tmp_path / "first"), stages=[still]), tmp_path / "second")
    second = load_file(tmp_path / "second" / WEIGHTS)
    assert all(torch.allclose(first[key], second[key]) for key in first)
    wider = MODEL | {"unet": MODEL["unet"] | {"channels": [16, 48]}}  # type: ignore[operator]
    with pytest.raises(RecipeError, match=r"weights of .*first.* do not fit this recipe's model"):
        train(upsampler_recipe(tiny_data, features, init=str(tmp_path / "first"), model=wider), tmp_path / "third")


def test_the_condition_reaches_an_upsampler_through_its_own_encoder(
    tiny_data: Path, tmp_path: Path, features: Any
) -> None:
    model = TINY_MODEL | {"image_size": 32, "low_res": 16, "encoder": TINY_MODEL["encoder"] | {"size": 32}}  # type: ignore[operator]
    recipe = upsampler_recipe(tiny_data, features, model=model, condition={"kind": "mask"}, condition_dropout=0.2)
    recipe = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"trains": ("encoder", "unet")}),)}
    )
    folder = train(recipe, tmp_path / "run")
    upsampler = Translator.from_pretrained(folder / "upsampler").eval()
    x, t, small = torch.randn(1, 3, 32, 32), torch.tensor([500]), torch.randn(1, 3, 16, 16)
    a, b = (
        upsampler(x, t, condition, small).output
        for condition in torch.eye(3).view(3, 1, 3, 1, 1).expand(-1, -1, -1, 32, 32)[:2]
    )
    assert not torch.equal(a, b)


def test_a_preconditioned_upsampler_knows_its_noise(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    schedule = {"prediction": "sample", "betas": "linear"}
    changes = {"model": MODEL | {"detail": 0.2}, "schedule": schedule, "loss": {"weighting": "detail"}}
    folder = train(upsampler_recipe(tiny_data, features, stages=[PLAIN], **changes), tmp_path / "run")
    upsampler, scheduler = ModelFolder.open(folder).load("upsampler", torch.float32)
    assert upsampler.preconditioning is not None
    alphas_cumprod = scheduler.alphas_cumprod.double()
    expected = 0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()
    torch.testing.assert_close(upsampler.preconditioning.log_noise.double(), expected, atol=1e-3, rtol=1e-4)


def test_another_schedules_noise_is_not_taken_over_with_the_weights(
    tiny_data: Path, tmp_path: Path, features: Any
) -> None:
    def recipe(betas: str, **changes: Any) -> Recipe:
        schedule = {"prediction": "sample", "betas": betas}
        return upsampler_recipe(
            tiny_data, features, stages=[PLAIN], schedule=schedule, model=MODEL | {"detail": 0.2}, **changes
        )

    train(recipe("linear"), tmp_path / "linear")
    train(recipe("squaredcos_cap_v2", init=str(tmp_path / "linear")), tmp_path / "cosine")
    levels = [load_file(tmp_path / run / WEIGHTS)["preconditioning.log_noise"] for run in ("linear", "cosine")]
    assert not torch.allclose(levels[0], levels[1])


def test_a_dry_run_checks_all_that_training_would(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    assert any("discriminator" in row["plan"] for row in plan(upsampler_recipe(tiny_data, features), tmp_path / "run"))
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        plan(upsampler_recipe(tiny_data, features | {"weights": str(tmp_path / "nowhere.pth")}), tmp_path / "run")
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        plan(upsampler_recipe(tiny_data, features, init="nowhere"), tmp_path / "run")
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        train(upsampler_recipe(tiny_data, features, init="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_see_each_other_are_refused(
    tiny_data: Path, tmp_path: Path, features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match=r"2 processes were started, but each sees 1.*ACCELERATE_USE_CPU=1"):
        train(upsampler_recipe(tiny_data, features), tmp_path / "run")


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def test_photographs_in_a_tar_train_too(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    tar = tar_of(tmp_path / "photos.tar", {f"{k}.jpg": jpeg(40, 36) for k in range(4)} | {"0.txt": b"a caption"})
    data = {"root": str(tiny_data), "size": 32, "crop_scale": [1.0, 1.0], "photographs": [str(tar)]}
    recipe = upsampler_recipe(tiny_data, features, data=data, stages=[PLAIN])
    train(recipe, tmp_path / "run")
    state = json.loads((tmp_path / "run/checkpoints/step-00000003/run.json").read_text())
    assert state["pairs"] == 9 + 4


def test_bad_input_is_named_before_anything_is_written(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    broken = jpeg(40, 36)
    files = {"good.jpg": jpeg(40, 36), "cut.jpg": broken[: len(broken) // 2], "small.jpg": jpeg(30, 36)}
    tar = tar_of(tmp_path / "photos.tar", files)
    data = {"root": str(tiny_data), "size": 32, "crop_scale": [1.0, 1.0], "photographs": [str(tar)]}
    with pytest.raises(DataError) as error:
        train(upsampler_recipe(tiny_data, features, data=data), tmp_path / "run")
    message = str(error.value)
    assert f"{tar}:cut.jpg: damaged or incomplete" in message
    assert f"{tar}:small.jpg: 30 x 36" in message
    assert "good.jpg" not in message
    assert not (tmp_path / "run").exists()


def test_a_crop_is_never_enlarged(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    data = {"root": str(tiny_data), "size": 32, "crop_scale": [0.5, 1.0]}
    with pytest.raises(DataError, match=r"needs 64 .*raise data.crop_scale, or lower data.size"):
        train(upsampler_recipe(tiny_data, features, data=data), tmp_path / "run")


def test_perceptual_weights_with_wrong_keys_stop_before_the_data(
    tiny_data: Path, tmp_path: Path, features: Any
) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    shutil.rmtree(tiny_data / "images")  # it does not come to that
    with pytest.raises(UserError, match=r"wrong.safetensors(?s:.*)features\.0\.weight"):
        train(
            upsampler_recipe(tiny_data, features | {"weights": str(tmp_path / "wrong.safetensors")}), tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": MODEL | {"low_res": 12}}, "'low_res' 12 does not chain with 'image_size' 32"),
        ({"model": MODEL | {"low_res": 32}}, "'low_res' 32 does not chain"),
        ({"model": MODEL | {"encoder": {}}}, "'encoder' and 'unet.token_width' go together"),
        ({"condition": {"kind": "mask"}}, "goes with 'model.encoder' null"),
        ({"data": {"root": ".", "size": 30}}, "multiples of 4 up to 32"),
        ({"data": {"root": ".", "size": 64}}, "multiples of 4 up to 32"),
        ({"stages": [STAGE | {"trains": ["encoder"]}]}, "trains an encoder, which the model does not have"),
        ({"stages": [STAGE | {"perceptual": {"noise": [0.5, 0.6]}}]}, "would leave out whole batches of 4"),
        ({"stages": [STAGE | {"perceptual": {"noise": [0.5, 0.5]}}]}, "0 <= from < below <= 1"),
        ({"stages": [STAGE | {"adversarial": {"kind": "hing"}}]}, "did you mean 'hinge'"),
        ({"model": MODEL | {"detail": 0.2}}, "schedule.prediction: sample"),
        ({"model": MODEL | {"detail": 0.2, "low_res": None}}, "'detail' is for upsamplers"),
        ({"stages": [STAGE, PLAIN]}, "'diffusion' has no adversary, but 'upsample' before it has"),
        (
            {"discriminator": {"channels": [4, 8, 8, 8, 8]}},
            "is less than the 48 px that the 'discriminator' network needs",
        ),
        ({"perceptual": {"network": "vgg19", "layers": [1], "layer_weights": [1, 2]}}, "give one of each"),
        ({"loss": {"weighting": "detail"}}, "is for an upsampler with 'model.detail'"),
        ({"degradation": {"blurr": 1}}, "did you mean 'blur'"),
        ({"perceptual": {"network": "vgg18"}}, "did you mean 'vgg1"),
    ],
)
def test_impossible_recipes(tiny_data: Path, features: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        upsampler_recipe(tiny_data, features, **changes)


# Beyond the paper: a condition at the large size, heads on features, generated small images


ALIGNED = {
    "image_size": 32,
    "low_res": 16,
    "patch_size": 2,
    "aligned": {"size": 32, "channels": [4, 8, 8]},
    "head": {"channels": [8], "layers": 0},
    "learned_variance": False,
    "detail": 0.2,
    "unet": MODEL["unet"],
}
MIXED = {
    "name": "adversarial",
    "trains": ["encoder", "unet"],
    "steps": 4,
    "lr": 1e-3,
    "from_noise": 1.0,
    "diffusion": {"weight": 0.0},
    "pixel": {"weight": 1.0},
    "consistency": {"weight": 0.5},
    "perceptual": {"weight": 0.01, "after": 0, "noise": [0.0, 1.0], "jitter": 3},
    "adversarial": {
        "kind": "hinge", "weight": 0.1, "after": 1, "noise": [0.0, 1.0], "augment": ["colour", "shift"], "r1": 0.1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def generated(base: Path) -> Path:
    """What a base made of the training masks."""
    pipeline = PITIPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    translate_files(
        pipeline,
        TranslationFiles([base.parent / "data/labels"], base.parent / "generated"),
        GenerationOptions.from_flat(steps=2, base_only=True),
        "base",
    )
    return base.parent / "generated"


def mixed_recipe(root: Path, features: dict[str, Any], generated: Path | None, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "condition": {"kind": "mask"},
        "model": ALIGNED,
        "degradation": None,
        "schedule": {"prediction": "sample"},
        "discriminator": {"channels": [4, 8], "condition": True, "features": features, "feature_width": 8},
        "generated": None if generated is None else {"root": str(generated), "share": 0.5},
        "stages": [MIXED],
        "log_every": 1,
        "preview": {"every": 99, "count": 1, "judged": 1, "steps": 1, "guidance": {"w": 0.0}},
    }
    return upsampler_recipe(root, features, **(values | changes))


def test_an_upsampler_learns_from_all_its_losses_at_once(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path, base: Path
) -> None:
    recipe = mixed_recipe(tiny_data, features, generated, base=str(base))
    model = train(recipe, tmp_path / "run")
    logged = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert all("simple" not in row for row in logged)  # eq. 3 has no weight
    for row in logged[1:]:
        parts = row["pixel"] + 0.5 * row["consistency"] + 0.01 * row["perceptual"] + 0.1 * row["adversarial"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
        assert 0 <= row["discriminator_accuracy"] <= 1
    pipeline = PITIPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    mask = next((tiny_data / "labels").iterdir())
    assert pipeline(mask, steps=2).images[0].size == (40, 32)  # one step of the upsampler, unasked
    assert pipeline(mask, steps=2, upsampler_steps=1, upsampler_sampler="ddim").images[0].size == (40, 32)
    with pytest.raises(UserError, match="27 steps: this upsampler was trained for one step from noise"):
        pipeline(mask, steps=2, upsampler_steps="fast27")


def test_a_mixed_run_resumed_is_as_if_never_stopped(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path
) -> None:
    recipe = mixed_recipe(tiny_data, features, generated)
    train(recipe, tmp_path / "whole")
    train_and_stop(recipe, tmp_path / "parts", 2)
    train(recipe, tmp_path / "parts", resume=True)
    whole, parts = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "parts" / WEIGHTS)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def timesteps_of(tiny_data: Path, tmp_path: Path, features: Any, **stage: Any) -> list[int]:
    seen: list[int] = []
    real = DiffusionObjective._timesteps

    def watched(self: DiffusionObjective, numbers: range, paired: torch.Tensor) -> Any:
        t, counts = real(self, numbers, paired)
        seen.extend(t.tolist())
        return t, counts

    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 10} | stage
    recipe = mixed_recipe(tiny_data, features, None, stages=[plain], batch=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionObjective, "_timesteps", watched)
        train(recipe, tmp_path / "run")
    return seen


def test_a_share_of_samples_begins_from_noise(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    t = timesteps_of(tiny_data, tmp_path, features, from_noise=0.75)
    last = sum(x == 999 for x in t) / len(t)
    assert last == pytest.approx(0.75, abs=0.02)
    others = [x for x in t if x < 999]
    assert min(others) < 40
    assert max(others) > 950
    assert sum(others) / len(others) == pytest.approx(500, abs=40)


def test_what_knows_the_last_timestep_alone_is_validated_there(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 1}
    seen: dict[float, set[int]] = {}
    for share in (0.5, 1.0):
        real = Validation.loss

        def watched(self: Validation, predict: Any, share: float = share, real: Any = real) -> float:
            seen[share] = set(self.levels)
            return real(self, predict)

        recipe = mixed_recipe(tiny_data, features, None, stages=[plain | {"from_noise": share}])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Validation, "loss", watched)
            train(recipe, tmp_path / f"run-{share}")
    assert seen == {0.5: {62, 187, 312, 437, 562, 687, 812, 937}, 1.0: {999}}


def test_eq_3_acts_in_its_range_with_its_weight(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    stage = {key: MIXED[key] for key in ("name", "trains", "lr")} | {"steps": 1}
    for name, diffusion in (("whole", {}), ("half", {"weight": 0.5}), ("low", {"noise": [0.0, 0.5]})):
        recipe = mixed_recipe(tiny_data, features, None, stages=[stage | {"diffusion": diffusion}])
        train(recipe, tmp_path / name)
    whole, half, low = (rows(tmp_path / name)[0] for name in ("whole", "half", "low"))
    assert half["loss"] == pytest.approx(0.5 * whole["loss"], rel=1e-4)
    assert half["simple"] == pytest.approx(whole["simple"], rel=1e-4)
    assert 0 < low["loss"] < whole["loss"]


def test_what_a_loss_clips_gets_no_gradient_beyond_the_range() -> None:
    x0_hat = torch.tensor([-1.5, 0.5]).view(2, 1, 1, 1).requires_grad_()
    for clip, gradient in ((True, [0.0, 1.0]), (False, [1.0, 1.0])):
        (found,) = torch.autograd.grad(_looked_at(x0_hat, PerceptualLossSpec(clip=clip)).sum(), x0_hat)
        assert found.flatten().tolist() == gradient
    assert _looked_at(x0_hat, PerceptualLossSpec(clip=True)).min() == -1


def test_a_stage_drops_as_many_conditions_as_it_says(
    tiny_data: Path, tmp_path: Path, features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    real = MaskCondition.dropped

    def watched(self: MaskCondition, encoded: Any, uniform: Any, share: float) -> Any:
        shares.append(share)
        return real(self, encoded, uniform, share)

    monkeypatch.setattr(MaskCondition, "dropped", watched)
    plain = {key: MIXED[key] for key in ("trains", "lr")} | {"steps": 1}
    stages = [plain | {"name": "own", "condition_dropout": 0.3}, plain | {"name": "recipe's"}]
    recipe = mixed_recipe(tiny_data, features, None, stages=stages, condition_dropout=0.1)
    train(recipe, tmp_path / "run")
    assert [share for share in shares if share] == [0.3, 0.1]


def test_the_released_upsamplers_losses() -> None:
    """As in its code: all t, on what is clipped, 0.004 and 0.01, from step 100 on."""
    recipe = read_recipe("released-upsampler")
    (stage,) = recipe.stages
    perceptual, adversarial = stage.perceptual, stage.adversarial
    assert perceptual is not None
    assert adversarial is not None
    assert (perceptual.weight, perceptual.error, perceptual.noise, perceptual.after) == (0.004, "squared", (0, 1), 100)
    assert (adversarial.weight, adversarial.kind, adversarial.noise, adversarial.lr) == (0.01, "wgan_gp", (0, 1), 1e-5)
    assert perceptual.clip
    assert adversarial.clip
    assert recipe.perceptual.chosen_layers == (7,)  # conv2_2
    assert [s.condition_dropout for s in read_recipe("released-base").stages] == [0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"discriminator": {"features": {"network": "vgg16", "layers": [30]}}}, "'data.size' 16 is less than the"),
        ({"data": {"condition_size": 16}}, "'model.aligned' needs both"),
        ({"condition": {"kind": "none"}}, "'model.encoder' null"),
        ({"stages": [MIXED | {"adversarial": {"kind": "wgan_gp", "noise": [0.0, 1.0]}}]}, "mixes each image with its"),
        (
            {"stages": [MIXED | {"from_noise": 0.5, "adversarial": {"kind": "hinge", "noise": [0, 0.9]}}]},
            "must reach 1",
        ),
        ({"stages": [MIXED | {"adversarial": {"augment": ["colors"]}}]}, "did you mean 'colour'"),
    ],
)
def test_recipes_that_cannot_be(tiny_data: Path, features: Any, changes: dict[str, Any], says: str) -> None:
    data = {"root": str(tiny_data), "size": 32, "crop_scale": [1.0, 1.0]} | changes.get("data", {})
    if "features" in changes.get("discriminator", {}):
        data["size"] = 16
    with pytest.raises(SpecError, match=says):
        mixed_recipe(tiny_data, features, Path("generated"), **(changes | {"data": data}))


@pytest.mark.parametrize(("pool", "wanted"), [(1, 0.5), (2, 0.0)])
def test_a_pooled_consistency_lets_a_grid_of_the_small_image_go(pool: int, wanted: float) -> None:
    values = {"name": "x", "trains": ["unet"], "steps": 1, "lr": 1e-3, "consistency": {"pool": pool}}
    losses = ImageLosses(Stage.model_validate(values), 1000, Accelerator(cpu=True), seed=0, clean=True)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    grid = (board - 0.5).expand(1, 3, 16, 16)
    grey, always = torch.zeros(1, 3, 32, 32), torch.ones(1, dtype=torch.bool)
    found = losses.of(Predicted(grey, grey, torch.tensor([999]), range(1), grid, torch.empty(1, 0, 0, 0), always), 0)
    assert found.total.item() == pytest.approx(wanted, abs=1e-6)


def test_consistency_needs_clean_small_images(tiny_data: Path, features: Any) -> None:
    with pytest.raises(SpecError, match="'consistency' holds images to clean small ones"):
        mixed_recipe(tiny_data, features, None, degradation={})


def test_generated_images_of_another_condition_end_before_the_first_step(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path
) -> None:
    classes = json.loads((tiny_data / "classes.json").read_text())
    classes["classes"][0]["name"] = "ceiling"
    (tiny_data / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(DataError, match="another condition than this recipe's"):
        train(mixed_recipe(tiny_data, features, generated), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_upsampler_with_a_condition_needs_one(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 1}
    model = train(mixed_recipe(tiny_data, features, None, stages=[plain]), tmp_path / "run")
    upsampler = Translator.from_pretrained(model / "upsampler")
    with pytest.raises(UserError, match=r"expects a condition of shape \[B, 3, H, W\]"):
        upsampler(torch.zeros(1, 3, 32, 32), torch.tensor(5), torch.zeros(1, 0, 0, 0), torch.zeros(1, 3, 16, 16))
