"""Errors for options that do not apply to latent models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from piti.baselines import BaselineNetwork
from piti.checkpoints.compatibility import check_cascade
from piti.checkpoints.joining import join_base
from piti.checkpoints.prior_folders import recognised
from piti.checkpoints.writing import write_model_folder
from piti.core.errors import UserError
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.training.build import find_base
from tests.pipelines.test_pipeline import tiny_pipeline
from tests.priors import tiny
from tests.priors.test_adapt import recipe_of

pytest.importorskip("transformers")

TEXT = "a cat"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"low_res": 8}, "'low_res' is for networks that work on pixels"),
        ({"patch_size": 2}, "'patch_size' is for networks that work on pixels"),
        ({"inpaint": True}, "'inpaint' is for networks that work on pixels"),
        ({"low_res": 8, "detail": 0.1}, "'low_res' is for networks that work on pixels"),
        ({"detail": 0.1}, "'detail'.* upsampler"),
        ({"image_size": 17}, "not a multiple of 'space_spec.factor' 2"),
    ],
)
def test_networks_of_latents(stable: tiny.Imported, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why), torch.device("meta"):
        Translator(**recognised(stable.folder).arguments() | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"low_res": 8}, "'space' needs 'unet_config', without 'patch_size' and 'low_res'"),
        ({"patch_size": 2}, "'space' needs 'unet_config', without 'patch_size' and 'low_res'"),
        ({"detail": 0.1}, "'detail' is for upsamplers"),
    ],
)
def test_models_of_recipes(stable: tiny.Imported, tiny_data: Path, changes: dict[str, Any], why: str) -> None:
    model = recipe_of(stable, tiny_data).model.to_dict() | changes
    with pytest.raises(UserError, match=why):
        recipe_of(stable, tiny_data, model=model)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prior": None}, "'model.space' needs a 'prior' or 'init' with an autoencoder"),
        ({"generated": {"root": "nowhere"}}, "'generated' is for upsamplers"),
    ],
)
def test_recipes_of_latents(stable: tiny.Imported, tiny_data: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        recipe_of(stable, tiny_data, **changes)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 4, 16, 16), (2, 4, 8, 8)])
def test_noise_is_of_the_latents_shape(stable: tiny.Imported, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected standard normal noise \[1, 4, 8, 8\].*got \["):
        stable.ours(TEXT, latents=torch.zeros(shape))


def test_latents_are_no_output(stable: tiny.Imported) -> None:
    with pytest.raises(UserError, match="latents are decoded, and cannot be returned"):
        stable.ours(TEXT, output_type="latent")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_own_loader_takes_the_autoencoder(
    stable: tiny.Imported, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.utils import dynamic_modules_utils

    from piti.pipelines import custom

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe: Any = DiffusionPipeline.from_pretrained(
        stable.model, custom_pipeline=custom.__file__, trust_remote_code=True, torch_dtype=dtype
    )
    pipe.set_progress_bar_config(disable=True)
    own = PITIPipeline.from_pretrained(stable.model, torch_dtype=dtype)
    assert own.vae is not None
    assert (pipe.base.dtype, pipe.vae.dtype) == (dtype, own.vae.dtype) == (dtype, torch.float32)  # which it asks for
    assert not any(one.requires_grad for one in pipe.vae.parameters())
    if dtype is torch.float32:
        asked: dict[str, Any] = {"steps": 2, "output_type": "pt", "latents": torch.ones(1, 4, 8, 8)}
        assert torch.equal(pipe(TEXT, **asked).images, stable.ours(TEXT, **asked).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sanas_autoencoder_stays_in_float32_where_float16_is_asked_for(
    sana: tiny.Imported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
) -> None:
    """In which it overflows: by both loaders."""
    from diffusers.utils import dynamic_modules_utils

    from piti.pipelines import custom

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    own: Any = PITIPipeline.from_pretrained(sana.model, torch_dtype=dtype)
    pipe: Any = DiffusionPipeline.from_pretrained(
        sana.model, custom_pipeline=custom.__file__, trust_remote_code=True, torch_dtype=dtype
    )
    exact = torch.float32 if dtype is torch.float16 else dtype
    assert (own.base.dtype, own.vae.dtype, pipe.base.dtype, pipe.vae.dtype) == (dtype, exact, dtype, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_autoencoder_that_half_precision_breaks_stays_in_float32_in_a_pipeline_that_is_cast(
    sana: tiny.Imported, sdxl: tiny.Imported, dtype: torch.dtype
) -> None:
    for prior, exact in ((sana, torch.float32 if dtype is torch.float16 else dtype), (sdxl, torch.float32)):
        pipe = copy.deepcopy(prior.ours)
        pipe.vae.register_to_config(force_upcast=True)
        assert pipe.to("cpu", dtype) is pipe
        assert (pipe.base.dtype, pipe.vae.dtype) == (dtype, exact)
        assert {value.dtype for value in pipe.vae.parameters()} == {exact}
        if exact is torch.float32:
            for key, value in prior.ours.vae.state_dict().items():
                assert torch.equal(pipe.vae.state_dict()[key], value), key


@pytest.mark.parametrize("offloaded", [False, True])
def test_an_autoencoder_may_be_on_another_device_than_the_base(
    stable: tiny.Imported, offloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, seen = copy.deepcopy(stable.ours).space, list[torch.device]()
    assert space.autoencoder is not None
    space.autoencoder.to("meta")  # a second device, where no GPU is
    if offloaded:  # which brings the weights to the values
        space.autoencoder._hf_hook = object()  # type: ignore[assignment]

    def computed(values: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        seen.append(values.device)
        return (torch.zeros(1, 3, 8, 8),)

    monkeypatch.setattr(space.autoencoder, "encode", computed)
    monkeypatch.setattr(space.autoencoder, "decode", computed)
    assert space.moments(torch.zeros(1, 3, 8, 8)).device.type == "cpu"
    assert space.images(torch.zeros(1, 4, 4, 4)).device.type == "cpu"
    assert {device.type for device in seen} == {"cpu" if offloaded else "meta"}


def test_the_autoencoder_is_of_the_variant_and_form_that_is_asked_for(stable: tiny.Imported, tmp_path: Path) -> None:
    stable.ours.save_pretrained(tmp_path, variant="fp16")
    again = PITIPipeline.from_pretrained(tmp_path, variant="fp16", use_safetensors=True)
    assert again.vae is not None
    assert all(map(torch.equal, again.vae.parameters(), stable.ours.vae.parameters()))
    again.vae.save_pretrained(tmp_path / "vae", variant="fp16", safe_serialization=False)
    (tmp_path / "vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        PITIPipeline.from_pretrained(tmp_path, variant="fp16", use_safetensors=True)


def test_a_scheduler_that_bounds_latents_is_refused(stable: tiny.Imported) -> None:
    ours = stable.ours
    clipping = scheduler_of(ours.schedule.spec.model_copy(update={"clip": True}))
    with pytest.raises(UserError, match="the base works on latents, but the scheduler clips them"):
        PITIPipeline(ours.base, clipping, vae=ours.vae, condition=ours.condition)(TEXT)


def test_an_upsampler_of_other_small_images_is_refused(stable: tiny.Imported) -> None:
    """Of those that fit it enlarges decoded images."""
    ours, unet = stable.ours, {"channels": [32], "layers": 1, "attention": [False], "token_width": None}
    with torch.device("meta"):
        fits, other = (Translator(unet_spec=unet, image_size=2 * side, low_res=side) for side in (16, 8))
    check_cascade(ours.condition, ours.base, fits)
    with pytest.raises(UserError, match=r"16 px.*8 px|8 px.*16 px|8 -> 16 px"):
        check_cascade(ours.condition, ours.base, other)


def test_a_base_to_enlarge_is_for_upsamplers(stable: tiny.Imported, tiny_data: Path) -> None:
    recipe = recipe_of(stable, tiny_data, base=str(stable.model))
    with pytest.raises(UserError, match="base: is only for upsamplers"):
        find_base(recipe, stable.ours.condition)


def upsampler_alone(folder: Path) -> Path:
    """The folder of an upsampler of 16 px, without a condition."""
    unet = {"channels": [8, 16], "attention": [False, False], "layers": 1, "token_width": None, "norm_groups": 4}
    upsampler = Translator(unet_spec=unet, image_size=32, low_res=16, patch_size=2)
    parts = {"upsampler": upsampler, "upsampler_scheduler": scheduler_of(ScheduleSpec())}
    write_model_folder(folder, parts, {"kind": "none"}, {})
    return folder


def test_an_upsampler_of_what_a_model_of_latents_makes_is_saved_with_its_autoencoder(
    stable: tiny.Imported, tmp_path: Path
) -> None:
    """As a run is whose recipe names such a `base`."""
    join_base(upsampler_alone(tmp_path / "model"), stable.model)
    pipe = PITIPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(TEXT, steps=1, upsampler_steps=1).images[0].size == (32, 32)


def test_an_upsampler_of_what_a_baseline_makes_is_saved_without_a_scheduler(tmp_path: Path) -> None:
    condition = tiny_pipeline().condition
    config = {"kind": "spade", "channels": 8, "hidden": 8, "discriminator_channels": 8, "perceptual": 0}
    base = BaselineNetwork(config, condition.channels, classes=True, image_size=16)
    PITIPipeline(base, None, condition).save_pretrained(tmp_path / "base")
    join_base(upsampler_alone(tmp_path / "model"), tmp_path / "base")
    assert PITIPipeline.from_pretrained(tmp_path / "model").scheduler is None
