"""What diffusers asks of every pipeline, on a tiny PITIPipeline: the contract of its common pipeline tests.

What needs an accelerator there (half precision, sequential offloading, moving between devices) is tried here on the
CPU as far as that goes. Of the others these do not apply: `encode_prompt` in isolation (there is no such method), the
VAE of Stable Diffusion, xFormers, layerwise casting (it asks for a `unet` or a `transformer`), DDUF files (diffusers
has dropped them).
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from piti.checkpoints.folder import ModelError
from piti.core.errors import UserError
from piti.diffusion.guidance import Guidance
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline

KINDS = pytest.mark.parametrize("tiny", [tiny_pipeline, tiny_cascade], ids=["base", "cascade"])
CLOSE = 1e-4
WEIGHTS = "diffusion_pytorch_model"


def inputs(pipe: PITIPipeline, **changes: Any) -> dict[str, Any]:
    """As diffusers' tests call a pipeline: a generator, few steps, an array out."""
    given = {"condition": pipe.read(mask(1)), "generator": seeded(), "num_inference_steps": 2, "output_type": "np"}
    return given | changes


def called(pipe: PITIPipeline, **changes: Any) -> np.ndarray:
    return pipe(**inputs(pipe, **changes))[0]  # type: ignore[return-value]


def loaded(folder: Path, **options: Any) -> PITIPipeline:
    pipe = PITIPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def networks(pipe: PITIPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade's folder."""
    folder = tmp_path_factory.mktemp("cascade")
    tiny_cascade().save_pretrained(folder)
    return folder


# Calling


def test_the_call_takes_what_every_pipeline_takes() -> None:
    parameters = inspect.signature(PITIPipeline.__call__).parameters
    names = {"num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"}
    names |= {"guidance_scale", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    assert {name for name in names if parameters[name].default is not inspect.Parameter.empty} == names


@KINDS
def test_outputs_are_images_arrays_tensors_or_tuples(tiny: Any) -> None:
    pipe = tiny()
    array = called(pipe)
    side = array.shape[1]
    assert array.shape == (1, side, side, 3)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    whole = pipe(**inputs(pipe, return_dict=False))
    assert isinstance(whole, tuple)
    assert np.array_equal(whole[0], array)
    tensor = pipe(**inputs(pipe, output_type="pt")).images
    assert torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(array))
    latent = pipe(**inputs(pipe, output_type="latent")).images
    assert torch.allclose(latent / 2 + 0.5, tensor)
    image = pipe(**inputs(pipe, output_type="pil")).images[0]
    assert np.array_equal(np.asarray(image), np.round(array[0] * 255).astype(np.uint8))
    assert np.array_equal(np.asarray(DiffusionPipeline.numpy_to_pil(array)[0]), np.asarray(image))


@KINDS
def test_one_image_alone_is_that_of_a_batch(tiny: Any) -> None:
    pipe = tiny()
    alone, several = called(pipe), called(pipe, num_images_per_prompt=2)
    condition = pipe.read(mask(1))
    batch = called(pipe, condition=[condition] * 3, generator=[seeded(k) for k in range(3)])
    assert len(batch) == 3
    assert np.abs(batch[0] - alone[0]).max() < CLOSE
    assert np.abs(several[0] - alone[0]).max() < CLOSE
    assert np.abs(batch[1] - batch[0]).max() > 0.05


def test_a_generator_moves_on() -> None:
    pipe, generator = tiny_pipeline(), seeded()
    assert np.abs(called(pipe, generator=generator) - called(pipe, generator=generator)).max() > 0.05


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("conditions", [1, 2])
def test_images_per_prompt(count: int, conditions: int) -> None:
    pipe = tiny_pipeline()
    condition = [pipe.read(mask(1))] * conditions
    assert called(pipe, condition=condition, num_images_per_prompt=count).shape == (count * conditions, 16, 16, 3)


def test_diffusers_names_mean_ours() -> None:
    pipe = tiny_pipeline()
    for scale in (1.0, 7.5):
        ours = pipe(mask(1), 2, seeded(), steps=3, guidance=scale - 1)
        theirs = pipe(mask(1), None, seeded(), num_images_per_prompt=2, num_inference_steps=3, guidance_scale=scale)
        assert np.array_equal(arrays(ours.images), arrays(theirs.images))  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 2, "num_inference_steps": 2}, "num_inference_steps: is another name of steps"),
        ({"guidance": Guidance(w=1), "guidance_scale": 2.0}, "guidance_scale: is another name of guidance"),
        ({"num_images": 1, "num_images_per_prompt": 1}, "num_images_per_prompt: is another name of num_images"),
        ({"guidance_scale": 0.5}, r"guidance_scale 0\.5: expected a number of at least 1: it is 1 \+ w"),
        ({"guidance_scale": "2"}, r"guidance_scale '2': expected a number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: expected a whole number"),
        ({"num_images": "2"}, "num_images '2': expected a whole number"),
        ({"batch_size": 0}, "batch_size 0: expected a whole number"),
        ({"height": 64}, "height: has no meaning here; of diffusers' names this .* num_inference_steps.*; give size"),
        ({"condition": None, "prompt": "a street"}, "prompt: .*; give what is .* the first argument, condition"),
        ({"negative_prompt": ""}, "negative_prompt: .* guidance_scale"),
        ({"eta": 0.0}, "eta: .*; give sampler: 'ddim' is eta 0"),
        ({"strength": 0.5}, "strength: .* edit"),
        ({"output_type": "numpy"}, "output_type 'numpy'"),
        ({"condition": [mask(1), mask(1, 32)], "output_type": "np"}, "16 x 16, 32 x 16 px in one array"),
        ({"latents": torch.zeros(2, 3, 16, 16)}, r"expected standard normal noise \[1, 3, 16, 16\]"),
        ({"condition": [mask(1), mask(1, 32)], "latents": torch.zeros(2, 3, 16, 16)}, "latents: needs images of one"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback_on_step_end_tensor_inputs prompt_embeds",
        ),
    ],
)
def test_what_has_no_one_meaning_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_pipeline()(**{"condition": mask(1)} | given)


def test_initial_noise_may_be_given() -> None:
    pipe = tiny_pipeline()
    noise = torch.randn(2, 3, 16, 16, generator=seeded(3))
    pair = called(pipe, latents=noise, num_images_per_prompt=2, sampler="ddim")
    alone = called(pipe, latents=noise[:1], sampler="ddim")
    assert np.abs(pair[0] - alone[0]).max() < CLOSE
    assert np.abs(pair[0] - pair[1]).max() > 0.05


# Callbacks


def test_a_callback_sees_and_changes_every_step() -> None:
    pipe, seen = tiny_cascade(), []

    def watching(pipeline: PITIPipeline, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep, tuple(given)))
        return given

    assert np.array_equal(called(pipe, callback_on_step_end=watching), called(pipe))
    assert [step for step, _, _ in seen] == list(range(pipe.num_timesteps))
    assert seen[0][1:] == (999, ("latents",))
    assert {names for _, _, names in seen} == {tuple(pipe._callback_tensor_inputs)}
    seen.clear()
    called(pipe, callback_on_step_end=watching, callback_on_step_end_tensor_inputs=[])
    assert seen[0][2] == ()

    def blank(pipeline: PITIPipeline, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        last = step == pipeline.num_timesteps - 1
        return {"latents": torch.zeros_like(given["latents"])} if last else given

    made = pipe(**inputs(pipe, callback_on_step_end=blank, output_type="latent"))[0]
    assert made.abs().sum() == 0
    with pytest.raises(UserError, match=r"callback_on_step_end: gave 'latents' of \[1\]"):
        called(pipe, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


def test_a_callback_may_change_the_guidance() -> None:
    pipe = tiny_cascade()

    def stronger(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale += 1.0

    changed = called(pipe, guidance_scale=2.0, callback_on_step_end=stronger)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert np.abs(changed - called(pipe, guidance_scale=2.0)).max() > CLOSE
    assert pipe.guidance_scale == 2.0

    def as_it_is(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 1.0

    off = called(pipe, guidance_scale=1.0)
    assert np.abs(called(pipe, guidance_scale=1.0, callback_on_step_end=as_it_is) - off).max() < CLOSE
    on = called(pipe, guidance_scale=1.0, callback_on_step_end=stronger)
    assert np.abs(on - off).max() > CLOSE


# Parts


@KINDS
def test_components_are_the_arguments(tiny: Any) -> None:
    pipe = tiny()
    assert list(pipe.components) == ["base", "scheduler", "condition", "upsampler", "upsampler_scheduler", "vae"]
    again = PITIPipeline(**pipe.components, **pipe.parameters)
    again.set_progress_bar_config(disable=True)
    assert again.defaults == pipe.defaults
    assert np.array_equal(called(again), called(pipe))
    other = PITIPipeline.from_pipe(pipe)
    assert other.defaults == pipe.defaults
    assert '"_class_name": "PITIPipeline"' in repr(pipe)


def test_dtypes_of_all_parts() -> None:
    pipe = tiny_cascade()
    assert {part.dtype for part in networks(pipe).values()} == {torch.float32}  # type: ignore[union-attr]
    pipe.to(dtype=torch.bfloat16)
    assert {part.dtype for part in networks(pipe).values()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert called(pipe).dtype == np.float32


def test_a_dtype_is_taken_without_a_warning(log: Kept) -> None:
    models = diffusers_logging.get_logger("diffusers.models.modeling_utils")
    models.addHandler(log)
    pipe = tiny_cascade().to(torch.float16)
    pipe.base.to("cpu", dtype=torch.float64)
    models.removeHandler(log)
    assert not log.text
    assert pipe.base.dtype == torch.float64
    assert pipe.upsampler.dtype == torch.float16  # type: ignore[union-attr]


def test_attention_in_slices_changes_nothing() -> None:
    pipe = tiny_pipeline()
    before = called(pipe)
    for size in (1, 2):
        pipe.enable_attention_slicing(slice_size=size)
        assert "Sliced" in type(next(iter(pipe.base.unet.attn_processors.values()))).__name__  # type: ignore[union-attr]
        assert np.abs(called(pipe) - before).max() < CLOSE
    pipe.disable_attention_slicing()
    assert np.abs(called(pipe) - before).max() < CLOSE


def test_offloading_changes_nothing() -> None:
    before, model = called(tiny_cascade()), tiny_cascade()
    for _ in range(2):
        model.enable_model_cpu_offload(device="cpu")
        assert np.abs(called(model) - before).max() < CLOSE
        assert all(type(part._hf_hook).__name__ == "CpuOffload" for part in networks(model).values())
    for kind, more in (("leaf_level", {}), ("block_level", {"num_blocks_per_group": 1})):
        group = tiny_cascade()
        group.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **more)
        assert np.abs(called(group) - before).max() < CLOSE


def test_what_is_offloaded_bit_by_bit_is_not_saved_empty(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert {part.device.type for part in networks(pipe).values()} == {"meta"}  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the base's weights are offloaded"):
        pipe.save_pretrained(tmp_path)
    pipe.remove_all_hooks()
    pipe.save_pretrained(tmp_path)
    assert np.array_equal(called(loaded(tmp_path)), called(tiny_pipeline()))


# On disk


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


@pytest.fixture
def log() -> Iterator[Kept]:
    """What diffusers' pipelines say."""
    logger, kept = diffusers_logging.get_logger("diffusers.pipelines.pipeline_utils"), Kept()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    yield kept
    logger.removeHandler(kept)
    logger.setLevel(level)


@pytest.mark.parametrize("safe", [True, False])
def test_saved_and_loaded_it_is_the_same(safe: bool, tmp_path: Path, log: Kept) -> None:
    pipe = tiny_cascade()
    pipe.save_pretrained(tmp_path, safe_serialization=safe)
    ending = "safetensors" if safe else "bin"
    assert [path.name for path in (tmp_path / "base").glob(f"{WEIGHTS}*")] == [f"{WEIGHTS}.{ending}"]
    again = loaded(tmp_path)
    for name, part in again.components.items():
        assert part is None or f"Loaded {name} as {type(part).__name__}" in log.text
    assert again.name_or_path == str(tmp_path)
    assert np.abs(called(again) - called(pipe)).max() < CLOSE
    assert not again.base.training


def test_weights_in_the_other_form_do_not_stay_to_be_read(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in pipe.base.parameters():
            parameter.add_(0.01)
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert np.array_equal(called(loaded(tmp_path)), called(pipe))


def test_parts_that_may_be_left_out(tmp_path: Path) -> None:
    pipe = tiny_cascade()
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    without = called(pipe)
    pipe.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert all(getattr(again, name) is None for name in pipe._optional_components)
    assert np.abs(called(again) - without).max() < CLOSE


def test_variants(tmp_path: Path, log: Kept) -> None:
    pipe = tiny_cascade()
    pipe.save_pretrained(tmp_path, variant="fp16", safe_serialization=False)
    assert (tmp_path / "base" / f"{WEIGHTS}.fp16.bin").is_file()
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {"base", "upsampler"} <= index.keys()
    again = loaded(tmp_path, variant="fp16")
    for name, network in networks(again).items():
        for one, other in zip(network.parameters(), networks(pipe)[name].parameters(), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=ema`, but"):
        loaded(tmp_path, variant="ema")
    with pytest.raises(ModelError):
        loaded(tmp_path)
    (tmp_path / "upsampler" / f"{WEIGHTS}.fp16.bin").rename(tmp_path / "upsampler" / f"{WEIGHTS}.bin")
    loaded(tmp_path, variant="fp16")
    assert "its upsampler has no variant 'fp16'" in log.text


def test_a_dtype_for_each_part(saved: Path) -> None:
    mixed = loaded(saved, torch_dtype={"base": torch.bfloat16, "default": torch.float16})
    assert (mixed.base.dtype, mixed.upsampler.dtype) == (torch.bfloat16, torch.float16)  # type: ignore[union-attr]
    only = loaded(saved, dtype={"upsampler": "bfloat16"})
    assert (only.base.dtype, only.upsampler.dtype) == (torch.float32, torch.bfloat16)  # type: ignore[union-attr]
    assert called(only).dtype == np.float32
    assert loaded(saved, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16", "torch_dtype": "float16"}, "dtype: is another name of torch_dtype"),
        ({"torch_dtype": "fp16"}, "torch_dtype 'fp16': expected a floating-point"),
        ({"torch_dtype": {"unet": torch.float16}}, "there is no part 'unet'"),
        ({"device_map": "everywhere"}, "device_map 'everywhere': is no device"),
        ({"device_map": {"base": "cpu"}}, "device_map: expected a device for each of base, upsampler"),
        ({"safety_checker": None}, "unknown argument safety_checker; known are"),
    ],
)
def test_what_cannot_be_loaded_so(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(saved, **options)


@pytest.mark.parametrize("device_map", ["cpu", "balanced", {"base": "cpu", "upsampler": "cpu"}])
def test_device_maps(saved: Path, device_map: Any) -> None:
    pipe = loaded(saved, device_map=device_map)
    assert pipe.hf_device_map
    assert {part.device.type for part in networks(pipe).values()} == {"cpu" if device_map != "balanced" else (
        "cuda" if torch.cuda.is_available() else "cpu")}  # type: ignore[union-attr]  # fmt: skip
    assert called(pipe).shape == (1, 32, 32, 3)


def test_parts_that_are_given_are_not_loaded(saved: Path) -> None:
    base, scheduler = tiny_pipeline().base, DDIMScheduler.from_config(tiny_pipeline().scheduler.config)
    pipe = loaded(saved, base=base, scheduler=scheduler)
    assert (pipe.base, pipe.scheduler) == (base, scheduler)
    assert pipe.defaults.base.sampler == "ddim"


@pytest.mark.parametrize("shared", [False, True])
def test_diffusers_own_loader_gives_it(
    saved: Path, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.utils import dynamic_modules_utils

    from piti.checkpoints.joining import share_upsampler
    from piti.pipelines import custom

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = saved
    if shared:
        folder = tmp_path / "borrows"
        tiny_pipeline().save_pretrained(folder)
        share_upsampler(folder, str(saved))
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=custom.__file__, trust_remote_code=True)
    assert isinstance(pipe, PITIPipeline)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.defaults == loaded(folder).defaults
    assert np.array_equal(called(pipe), called(loaded(folder)))


# The hub


def test_pushed_with_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    sent: dict[str, Any] = {}

    class Repo:
        repo_id = "someone/tiny"

    def upload_folder(folder_path: Path, **about: Any) -> str:
        sent.update(
            about, files={p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*.*")}
        )
        return "commit"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **more: Repo)
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *args, **more: False)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    assert tiny_cascade().push_to_hub("tiny", token="secret", variant="fp16") == "commit"
    assert (sent["repo_id"], sent["token"]) == ("someone/tiny", "secret")
    card = sent["files"]["README.md"].decode()
    for said in ("library_name: piti", "`mask`", "16 to 32 px", "0 sky, 1 road, 2 car", '"someone/tiny"', "| F32 |"):
        assert said in card
    assert "secret" not in card
    tiny_pipeline().save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    assert f"base/{WEIGHTS}.safetensors" in sent["files"]
    with pytest.raises(UserError, match="private: has no meaning without push_to_hub"):
        tiny_pipeline().save_pretrained(tmp_path / "mine", private=True)
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *args, **more: True)
    tiny_pipeline().push_to_hub("tiny")
    assert "README.md" not in sent["files"]


def test_the_package_gives_its_pipeline() -> None:
    import piti

    assert piti.PITIPipeline is PITIPipeline
    assert set(piti.__all__) <= set(dir(piti))
    assert all(getattr(piti, name) is not None for name in piti.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = piti.Pipeline
    assert isinstance(tiny_pipeline()(mask(1), steps=1).images[0], Image.Image)
