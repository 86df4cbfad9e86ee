"""Initialisation and data of an upsampler's run: a base, other weights, photographs in archives; errors before it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from piti.checkpoints.folder import ModelError, ModelFolder
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.data import DataError
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, plan, train
from piti.training.recipe import RecipeError
from tests.training.upsamplers import MODEL, PLAIN, STAGE, WEIGHTS, upsampler_recipe


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
    with pytest.raises(RecipeError, match=r"images of 16 px, but the upsampler takes 'model.low_res' 8 px"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_upsampler_is_no_base(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    train(upsampler_recipe(tiny_data, features, stages=[PLAIN]), tmp_path / "up")
    with pytest.raises(RecipeError, match="contains only an upsampler"):
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


def test_another_schedules_noise_is_not_taken_over_with_the_weights(
    tiny_data: Path, tmp_path: Path, features: Any
) -> None:
    def recipe(betas: str, **changes: Any) -> Recipe:
        schedule = {"prediction": "sample", "betas": betas}
        return upsampler_recipe(
            tiny_data, features, stages=[PLAIN], schedule=schedule, model=MODEL | {"detail": 0.2}, **changes
        )

    train(recipe("linear"), tmp_path / "linear")
    console = Console(record=True, width=200)
    train(recipe("squaredcos_cap_v2", init=str(tmp_path / "linear")), tmp_path / "cosine", console=console)
    said = " ".join(console.export_text().split())
    assert "were trained with another schedule (betas linear there, here squaredcos_cap_v2)" in said
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
    with pytest.raises(DataError, match=r"needs one of 64 .*raise data.crop_scale, or lower data.size"):
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
        ({"model": MODEL | {"low_res": 12}}, "'low_res' 12 does not fit 'image_size' 32"),
        ({"model": MODEL | {"low_res": 32}}, "'low_res' 32 does not fit"),
        ({"model": MODEL | {"encoder": {}}}, "'encoder' and 'unet.token_width' go together"),
        ({"condition": {"kind": "mask"}}, "goes with 'model.encoder' null"),
        ({"data": {"root": ".", "size": 30}}, "multiples of 4 up to 32"),
        ({"data": {"root": ".", "size": 64}}, "multiples of 4 up to 32"),
        ({"stages": [STAGE | {"trains": ["encoder"]}]}, "trains an encoder, which the model does not have"),
        ({"stages": [STAGE | {"perceptual": {"noise": [0.5, 0.6]}}]}, "would skip whole batches of 4"),
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
