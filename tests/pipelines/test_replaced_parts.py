"""Replaced components of a pipeline: compiled, copied, with another scheduler; sampling and saving."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from piti.baselines import BaselineNetwork
from piti.core.compiled import uncompiled, unwrapped
from piti.core.errors import UserError
from piti.diffusion.guidance import Guidance
from piti.pipelines.cascade import OnePass
from piti.pipelines.marks import weights_mark
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import ModelError, PITIPipeline
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline


def made(pipeline: PITIPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return arrays(pipeline(mask(1), generator=seeded()).images)


def compiled(module: Any) -> Any:
    """As `torch.compile` wraps it; its calls are not traced."""
    return torch.compile(module, backend="eager")


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("part", ["base", "unet", "encoder"])
def test_a_compiled_part_changes_neither_settings_nor_images_nor_files(tmp_path: Path, part: str) -> None:
    pipeline = tiny_pipeline()
    before, settings, mark = made(pipeline), SamplingOptions().resolve(pipeline), weights_mark(pipeline)
    owner = pipeline if part == "base" else pipeline.base
    setattr(owner, part, compiled(getattr(owner, part)))
    assert SamplingOptions().resolve(pipeline) == settings
    assert weights_mark(pipeline) == mark
    assert np.array_equal(made(pipeline), before)
    pipeline.save_pretrained(tmp_path)
    assert getattr(owner, part) is not unwrapped(getattr(owner, part))  # it is still compiled
    assert np.array_equal(made(PITIPipeline.from_pretrained(tmp_path)), before)


def test_a_compiled_baseline_still_makes_its_images_in_one_pass() -> None:
    torch.manual_seed(0)
    config = {"kind": "spade", "channels": 8, "hidden": 8, "discriminator_channels": 8, "perceptual": 0}
    pipeline = tiny_pipeline()
    base = BaselineNetwork(config, pipeline.condition.channels, classes=True, image_size=16).eval()
    baseline = PITIPipeline(base, None, pipeline.condition)
    baseline.base = compiled(base)
    assert isinstance(baseline.base_network(), OnePass)
    assert SamplingOptions().resolve(baseline).base.steps == 1
    assert baseline.draws_noise() == bool(base.baseline.noise_shape)


def test_uncompiled_puts_everything_back_also_after_an_error() -> None:
    base = tiny_pipeline().base
    base.unet = compiled(base.unet)

    def fails() -> None:
        with uncompiled(compiled(base)) as plain:
            assert plain is base
            assert not any("_orig_mod" in key for key in plain.state_dict())
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert base.unet is not unwrapped(base.unet)


def test_a_deep_copy_makes_the_same_images() -> None:
    pipeline = tiny_pipeline()
    assert np.array_equal(made(copy.deepcopy(pipeline)), made(pipeline))


SCHEDULERS: list[tuple[type[Any], dict[str, Any], str]] = [
    (DDPMScheduler, {}, "ddpm"),
    (DDIMScheduler, {}, "ddim"),
    (DDIMScheduler, {"prediction_type": "epsilon"}, "ddim"),
    (DPMSolverMultistepScheduler, {}, "dpm++"),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, "dpm++sde"),
    (UniPCMultistepScheduler, {}, "unipc"),
]


@pytest.mark.parametrize(("kind", "settings", "sampler"), SCHEDULERS)
def test_a_scheduler_that_replaces_the_model_s_is_what_samples_and_what_is_saved(
    tmp_path: Path, kind: type[Any], settings: dict[str, Any], sampler: str
) -> None:
    pipeline = tiny_pipeline()
    own: Any = pipeline.scheduler
    pipeline.scheduler = kind.from_config(own.config, **settings)
    assert SamplingOptions().resolve(pipeline).base.sampler == sampler
    pipeline.save_pretrained(tmp_path)
    again = PITIPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is kind
    assert np.array_equal(made(again), made(pipeline))
    if not settings:
        asked = arrays(tiny_pipeline()(mask(1), sampler=sampler, generator=seeded()).images)
        assert np.array_equal(made(pipeline), asked)


def test_a_scheduler_says_the_sampler_where_the_defaults_do_not_and_the_defaults_win(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    own: Any = pipeline.scheduler
    scheduler: Any = DDIMScheduler.from_config(own.config)
    silent = PITIPipeline(pipeline.base, scheduler, pipeline.condition, defaults={"steps": 2})
    assert silent.defaults.base.sampler == "ddim"
    said = PITIPipeline(pipeline.base, scheduler, pipeline.condition, defaults={"steps": 2, "sampler": "ddpm"})
    assert said.defaults.base.sampler == "ddpm"
    said.save_pretrained(tmp_path)
    assert PITIPipeline.from_pretrained(tmp_path).defaults.base.sampler == "ddpm"


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (EulerDiscreteScheduler, {}, "EulerDiscreteScheduler: unsupported scheduler; .* known: DDPMScheduler, DDIM"),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, "with timestep_spacing = 'trailing' is not .* from_config"),
        (
            DDIMScheduler,
            {"rescale_betas_zero_snr": True},
            "its betas are not those of its beta_schedule 'squaredcos_cap_v2'",
        ),
        (DDIMScheduler, {"beta_schedule": "scaled_linear"}, "differs from the noise schedule that"),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, "with use_karras_sigmas = True"),
    ],
)
def test_a_scheduler_that_would_not_be_followed_is_refused_at_once(
    kind: type[Any], settings: dict[str, Any], why: str
) -> None:
    pipeline = tiny_pipeline()
    before: Any = pipeline.scheduler
    with pytest.raises(UserError, match=why):
        pipeline.scheduler = kind.from_config(before.config, **settings)
    assert pipeline.scheduler is before


def test_parts_that_do_not_fit_are_refused() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ModelError, match=r"pipe.base: expected a network .* got DataParallel"):
        pipeline.base = torch.nn.DataParallel(pipeline.base)  # pyright: ignore[reportAttributeAccessIssue]
    pipeline.scheduler = None
    with pytest.raises(ModelError, match="a translator needs its scheduler"):
        pipeline(mask(1))


def test_defaults_that_are_set_may_leave_options_out(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.defaults = SamplingOptions.from_flat({"steps": 2})
    assert pipe.defaults.base.guidance == Guidance(w=1.0)
    images = made(pipe)
    pipe.save_pretrained(tmp_path)
    assert np.array_equal(made(PITIPipeline.from_pretrained(tmp_path)), images)
    with pytest.raises(UserError, match="size: is an option of single calls, not a default of the model"):
        pipe.defaults = SamplingOptions(size=32)
    with pytest.raises(UserError, match="square: is an option of single calls"):
        PITIPipeline(**pipe.components, defaults={"square": True})


@pytest.mark.parametrize("whole", [False, True])
def test_adapters_of_pefts_are_merged_before_a_model_is_saved(whole: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipe, config = tiny_pipeline(), peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    if whole:
        pipe.base = peft.get_peft_model(pipe.base, config)
    else:
        other = tiny_pipeline().base.unet
        other.add_adapter(config)
        other.save_lora_adapter(tmp_path, weight_name="lora.safetensors")
        pipe.base.unet.load_lora_adapter(str(tmp_path), prefix=None, weight_name="lora.safetensors")
        (tmp_path / "lora.safetensors").unlink()
    adapted = made(pipe)
    assert not np.allclose(adapted, made(tiny_pipeline()))
    with pytest.raises(UserError, match=r"the base has unmerged peft adapters, with .* merge them first"):
        pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    if whole:
        pipe.base = pipe.base.merge_and_unload()
    else:
        pipe.base.unet.fuse_lora()
        pipe.base.unet.unload_lora()
    pipe.save_pretrained(tmp_path)
    assert np.allclose(made(PITIPipeline.from_pretrained(tmp_path)), adapted, atol=1)
