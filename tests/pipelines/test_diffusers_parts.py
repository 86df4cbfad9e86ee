"""diffusers' common tests of pipeline components: their types and devices, saving, loading and pushing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.checkpoints.folder import ModelError
from piti.core.errors import UserError
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.calling import CLOSE, KINDS, called, networks
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask, tiny_pipeline

WEIGHTS = "diffusion_pytorch_model"


def loaded(folder: Path, **options: Any) -> PITIPipeline:
    pipe = PITIPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade's folder."""
    folder = tmp_path_factory.mktemp("cascade")
    tiny_cascade().save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_one_file_replace_several_and_the_other_way_round(variant: str | None, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    for size in (None, "200KB", None):
        with torch.no_grad():
            for parameter in pipe.base.parameters():
                parameter.add_(0.01)
        pipe.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
        several = len(list((tmp_path / "base").glob("*-of-*"))) > 1
        whole = list((tmp_path / "base").glob("diffusion_pytorch_model*.safetensors"))
        assert several == (size is not None)
        assert several == (len(whole) > 1)
        assert all("-of-" in path.name for path in whole) == several
        assert np.array_equal(called(loaded(tmp_path, variant=variant)), called(pipe))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pickles_in_several_files_are_found(variant: str | None, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False, variant=variant, max_shard_size="200KB")
    assert len(list((tmp_path / "base").glob("*-of-*.bin"))) > 1
    assert np.array_equal(called(loaded(tmp_path, variant=variant)), called(pipe))


@pytest.mark.parametrize("safe", [True, False])
def test_the_other_form_of_weights_than_is_there_is_refused_by_its_name(safe: bool, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=safe)
    other = "safetensors" if safe else "pickles"
    with pytest.raises(ModelError, match=rf"base: use_safetensors {not safe}: its weights are only {other}; leave it"):
        loaded(tmp_path, use_safetensors=not safe)


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
        ({"torch_dtype": {"unet": torch.float16}}, "there is no component 'unet'"),
        ({"device_map": "everywhere"}, "device_map 'everywhere': is not a device"),
        ({"device_map": "meta"}, "device_map 'meta': is not a device"),
        (
            {"device_map": "cuda:99"},
            r"device_map 'cuda:99': is not available \(.*\); give one such as 'cpu', 'balanced'",
        ),
        ({"device_map": 99}, "device_map 99: is no"),
        ({"device_map": {"base": "cpu"}}, "device_map: expected a device for each of base, upsampler"),
        ({"safety_checker": None}, "unknown argument safety_checker; known are"),
        ({"base_only": True, "upsampler_scheduler": object()}, "upsampler_scheduler: there is no network that it"),
    ],
)
def test_what_cannot_be_loaded_so(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(saved, **options)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), "balanced", {"base": "cpu", "upsampler": "cpu"}])
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


@pytest.fixture
def by_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What diffusers' own loader makes of a folder."""
    from diffusers.utils import dynamic_modules_utils

    from piti.pipelines import custom

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = {"custom_pipeline": custom.__file__, "trust_remote_code": True}
    return lambda folder, **options: DiffusionPipeline.from_pretrained(folder, **own, **options)


@pytest.mark.parametrize("shared", [False, True])
def test_diffusers_own_loader_gives_it(
    saved: Path, shared: bool, tmp_path: Path, by_diffusers: Callable[..., Any]
) -> None:
    from piti.checkpoints.joining import share_upsampler

    folder = saved
    if shared:
        folder = tmp_path / "borrows"
        tiny_pipeline().save_pretrained(folder)
        share_upsampler(folder, str(saved))
    pipe = by_diffusers(folder)
    assert isinstance(pipe, PITIPipeline)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.defaults == loaded(folder).defaults
    assert np.array_equal(called(pipe), called(loaded(folder)))


def test_diffusers_own_loader_refuses_a_lent_upsampler_that_changed(
    tmp_path: Path, by_diffusers: Callable[..., Any]
) -> None:
    from piti.checkpoints.joining import join_upsampler

    tiny_pipeline().save_pretrained(tmp_path / "borrows")
    tiny_cascade().save_pretrained(tmp_path / "lender")
    join_upsampler(tmp_path / "borrows", tmp_path / "lender", str(tmp_path / "lender"))
    assert by_diffusers(tmp_path / "borrows").upsampler is not None
    path = tmp_path / "lender/upsampler" / f"{WEIGHTS}.safetensors"
    save_file({name: 0.5 * x for name, x in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=r"has changed since .*borrows was saved with it; restore the original"):
        by_diffusers(tmp_path / "borrows")


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
    with pytest.raises(UserError, match="private: has no effect without push_to_hub"):
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
