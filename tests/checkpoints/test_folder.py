"""Bundled models by name, and their upsamplers; folders with damaged configurations."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from piti.checkpoints.folder import ModelError, ModelFolder, bundled_models, load_whole
from piti.checkpoints.listing import ModelEntry, list_models
from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import tiny_pipeline


def test_the_upsampler_of_street_takes_one_step_and_no_other() -> None:
    pipeline = PITIPipeline.from_pretrained("street")
    pipeline.set_progress_bar_config(disable=True)
    mask = bundled_models()["street"] / "examples" / "high_street.png"
    generator = torch.Generator().manual_seed(0)
    image = pipeline(mask, steps=1, size=64, generator=generator).images[0]
    assert min(image.size) == 64
    with pytest.raises(UserError, match="trained for one step from noise"):
        pipeline(mask, steps=1, size=64, upsampler_steps=4)


def test_examples_come_along_with_an_upsampler_where_the_condition_is_the_same(tmp_path: Path) -> None:
    index = {"_class_name": "PITIPipeline", "base": ["piti", "Adapted"], "shares_upsampler_of": "street"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("street", "sketch"):
        shutil.copy(bundled_models()[name] / "condition.json", tmp_path)
        found = ModelFolder.open(tmp_path).examples()
        assert found == (ModelFolder.open(bundled_models()["street"]).examples() if name == "street" else [])
    assert len(ModelFolder.open(bundled_models()["street"]).examples()) > 1


def test_an_upsampler_that_sees_masks_is_refused_for_sketches() -> None:
    with pytest.raises(ModelError, match="its upsampler reads another condition than the base"):
        PITIPipeline.from_pretrained("sketch", upsampler="street")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_allows(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        tiny_pipeline().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


BASE, SCHEDULER, INDEX = "base/config.json", "scheduler/scheduler_config.json", "model_index.json"
ANEW = "save the model again, or download it again"
WHOLE = "is not a whole number; give one, such as 4"
DAMAGED: list[tuple[str, tuple[str, ...], Any, str]] = [
    (BASE, ("image_size",), "x", f"base/config.json: 'image_size' = 'x': {WHOLE}"),
    (BASE, ("image_size",), None, f"base/config.json: 'image_size' = None: {WHOLE}"),
    (BASE, ("encoder_spec",), [1] * 50, r"base/config.json: 'encoder_spec' = \[1, 1.*\]: is not a mapping; give keys"),
    (
        BASE,
        ("encoder_spec", "layers"),
        10**30,
        r"base/config.json: 'encoder_spec\.layers' = 10+: is too large; .*512$",
    ),
    (
        BASE,
        ("encoder_spec", "channels"),
        "x",
        r"base/config.json: 'encoder_spec\.channels' = 'x': is not a list; write",
    ),
    (BASE, ("unet_spec", "channels"), [10**30, 10**30], f"/base: .*; {ANEW}$"),  # what PyTorch says
    (BASE, ("unet_spec", "layers"), 10**6, r"base/config.json: 'unet_spec\.layers' = 1000000: is too large; .* 512$"),
    (BASE, ("patch_size",), {}, f"base/config.json: 'patch_size' = {{}}: {WHOLE}"),
    (SCHEDULER, ("num_train_timesteps",), 10**12, f"{SCHEDULER}: 'steps' = 10+: is too large; give at most 100000$"),
    (
        SCHEDULER,
        ("prediction_type",),
        None,
        f"{SCHEDULER}: 'prediction' = None: is not 'epsilon', 'v_prediction'",
    ),
    (SCHEDULER, ("num_train_timesteps",), "x", f"{SCHEDULER}: 'steps' = 'x': {WHOLE}"),
    (SCHEDULER, ("_class_name",), "Evil", f"{SCHEDULER}: Evil: unsupported scheduler; known: DDPMScheduler, "),
    ("condition.json", ("kind",), ["mask"], r"condition.json: unknown condition '\['mask'\]'; did you mean 'mask'\?"),
    ("condition.json", ("classes",), [1] * 50, r"condition.json: 'classes' = \[1, 1.*\]: is not a mapping; give keys"),
    (INDEX, ("defaults",), "x", f"model_index.json: 'defaults': expected an object, got str; {ANEW}$"),
    (
        INDEX,
        ("defaults",),
        {"steps": [1]},
        r"the model's defaults: 'steps' = \[1\]: is not a whole number, and is not",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "keys", "value", "wanted"), DAMAGED)
def test_a_damaged_configuration_is_an_error_that_names_file_and_key(
    whole: Path, name: str, keys: tuple[str, ...], value: Any, wanted: str
) -> None:
    path = whole / name
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        with pytest.raises(UserError) as caught:
            PITIPipeline.from_pretrained(whole)
    finally:
        path.write_text(before, encoding="utf-8")
    said = " ".join(str(caught.value).split())
    assert re.search(wanted, said), said


@pytest.mark.parametrize("name", ["condition.json", INDEX])
def test_files_of_a_model_may_be_edited(whole: Path, tmp_path: Path, name: str) -> None:
    """Messages ask for it, and editors of Windows put a byte order mark before JSON."""
    shutil.copytree(whole, tmp_path / "m")
    path = tmp_path / "m" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    PITIPipeline.from_pretrained(tmp_path / "m")
    path.write_text(text[:-2], encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{name}: not valid JSON .*; correct it there"):
        PITIPipeline.from_pretrained(tmp_path / "m")


def test_a_configuration_of_fewer_weights_than_there_are_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    path = folder / "base/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["encoder_spec"]["layers"] += 1
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"weights of .* do not match this configuration: 'encoder.blocks"):
        PITIPipeline.from_pretrained(folder)


@pytest.mark.parametrize("form", [{"variant": "fp16"}, {"safe_serialization": False}], ids=["variant", "pickles"])
def test_weights_in_other_files_that_lack_one_are_refused(tmp_path: Path, form: dict[str, Any]) -> None:
    tiny_pipeline().save_pretrained(tmp_path, **form)
    (path,) = (tmp_path / "base").glob("diffusion_pytorch_model.*")
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    del tensors["unet.conv_out.bias"]
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(tensors, path)
    with pytest.raises(ModelError, match=r"base: its weights lack 'unet\.conv_out\.bias'"):
        PITIPipeline.from_pretrained(tmp_path, variant=form.get("variant"))


@pytest.mark.parametrize("left", [None, "diffusion_pytorch_model.safetensors.index.json"], ids=["none", "an index"])
def test_a_folder_without_weights_is_told_which_file_it_lacks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], left: str | None
) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "base/diffusion_pytorch_model.safetensors").unlink()
    if left is not None:
        (tmp_path / "base" / left).write_text("{}")
    with pytest.raises(
        ModelError, match=r"base: contains no weights, such as diffusion_pytorch_model.safetensors; .* download"
    ):
        PITIPipeline.from_pretrained(tmp_path)
    assert "unsafe" not in capfd.readouterr().err


def test_a_variant_that_was_not_asked_for_is_named(tmp_path: Path) -> None:
    """diffusers says that a .bin is missing."""
    tiny_pipeline().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ModelError, match=r"base: its weights exist only as variant 'fp16'; .* variant='fp16'\)"):
        PITIPipeline.from_pretrained(tmp_path)


def test_a_model_that_cannot_be_saved_over_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_cascade()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model/README.md").write_text("mine")
    was = {path: path.read_bytes() for path in sorted((tmp_path / "model").rglob("*")) if path.is_file()}
    with torch.no_grad():
        pipe.base.unet.conv_in.weight.zero_()
    with monkeypatch.context() as patch:
        patch.setattr(pipe.upsampler, "save_pretrained", full)
        with pytest.raises(OutputError, match=r"model: cannot be written \(No space left on device\); nothing was ch"):
            pipe.save_pretrained(tmp_path / "model")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "model").rglob("*")) if path.is_file()} == was
    pipe.save_pretrained(tmp_path / "model")
    again = PITIPipeline.from_pretrained(tmp_path / "model")
    assert not again.base.unet.conv_in.weight.any()
    assert (tmp_path / "model/README.md").read_text() == "mine"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_of_the_hub_is_listed_once_as_its_id_means_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--me--mine/snapshots"
    for k, revision in enumerate(("b" * 40, "c" * 40, "a" * 40)):
        tiny_pipeline().save_pretrained(snapshots / revision)
        for path in (snapshots / revision).rglob("*"):
            os.utime(path, (1e9 + k, 1e9 + k))
    (snapshots / ("a" * 40) / "condition.json").unlink()  # fetched in part
    (tmp_path / "models--me--mine/refs").mkdir()
    (tmp_path / "models--me--mine/refs/main").write_text("b" * 40)
    found = [(one.name, one.folder.name) for one in list_models() if one.where != "bundled"]
    assert found == [("me/mine", "b" * 40)]
    (tmp_path / "models--me--mine/refs/main").unlink()
    assert [one.folder.name for one in list_models() if one.where != "bundled"] == ["c" * 40]


def test_listing_a_model_whose_shared_upsampler_is_not_here_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One such model in the cache ended `piti models` without a connection, and downloaded the other with one."""
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8")) | {"shares_upsampler_of": "me/other"}
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def cache(name: str, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only, f"{name} is downloaded"
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", cache)
    row = ModelEntry("me/mine", "hub cache", tmp_path).row()
    assert row["image"] == "16 -> ? px"
    assert row["weights"].endswith("needs me/other")


def test_an_autoencoder_whose_configuration_is_odd_is_an_error_in_words(tmp_path: Path) -> None:
    """diffusers raises whatever comes to it."""
    blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(**blocks, block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for odd in ("x", []):
        (tmp_path / "config.json").write_text(json.dumps(config | {"block_out_channels": odd}), encoding="utf-8")
        with pytest.raises(ModelError, match=f"{tmp_path.name}: .*; {ANEW}$"):
            load_whole(AutoencoderKL, tmp_path)
