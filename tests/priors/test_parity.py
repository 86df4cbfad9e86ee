"""Tiny pipelines of other families give, imported, the images that diffusers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from piti.checkpoints.priors import import_prior
from piti.diffusion.samplers import sampling_timesteps
from piti.pipelines.cascade import Batch
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline
from tests.priors import tiny

pytest.importorskip("transformers")

TEXT = "a cat ab"
CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 0}


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded())


def imported(folder: Path) -> PITIPipeline:
    import_prior(folder / "diffusers", folder / "model")
    pipe = PITIPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def points(pipe: PITIPipeline, texts: list[str], generators: list[torch.Generator], **sampling: Any) -> Tensor:
    """What the base samples, before it is decoded. generators: of x_T and of the sampler's noise."""
    resolved = SamplingOptions.from_flat(sampling).resolve(pipe)
    prepared = [pipe.prepare(text, resolved) for text in texts]
    network: Any = pipe.base_network()
    seen: list[Tensor] = []
    batch = Batch(prepared, list(range(len(texts))), generators)
    made = network.sample(batch, resolved.base, lambda done, x0: seen.append(x0))
    return seen[-1] if network.space.spec.latent else made


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_by_ddim(tmp_path: Path, prediction: str) -> None:
    theirs, ours = tiny.stable_diffusion(tmp_path, prediction), imported(tmp_path)
    latents = noise(1, 4, 8, 8)
    wanted = theirs(TEXT, num_inference_steps=5, guidance_scale=3.0, latents=latents, output_type="pt").images
    made = ours(TEXT, steps="leading5", guidance={"kind": "plain", "w": 2.0}, latents=latents, output_type="pt").images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_by_dpm_solver(tmp_path: Path, prediction: str) -> None:
    theirs, ours = tiny.stable_diffusion(tmp_path, prediction, width=24), imported(tmp_path)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    latents = noise(1, 4, 8, 8)
    assert ours.schedule is not None
    visited = sampling_timesteps(ours.schedule, "dpm++", 6)[::-1]
    wanted = theirs(TEXT, timesteps=visited, guidance_scale=3.0, latents=latents, output_type="pt").images
    sampling: dict[str, Any] = {"sampler": "dpm++", "steps": 6, "guidance": {"kind": "plain", "w": 2.0}}
    made = ours(TEXT, **sampling, latents=latents, output_type="pt").images
    torch.testing.assert_close(made, wanted, **CLOSE)


def test_sdxl_with_two_text_encoders_and_sizes(tmp_path: Path) -> None:
    """Two texts at once, an image that is no square, and no guidance as well as some."""
    theirs, ours = tiny.sdxl(tmp_path), imported(tmp_path)
    latents = noise(2, 4, 8, 8)
    texts = [TEXT, "dogs"]
    for w in (0.0, 2.0):
        wanted = theirs(texts, num_inference_steps=4, guidance_scale=1 + w, latents=latents, output_type="pt").images
        made = ours(
            texts, steps="leading4", guidance={"kind": "plain", "w": w}, latents=latents, output_type="pt"
        ).images
        torch.testing.assert_close(made, wanted, **CLOSE)


def test_deepfloyd_if_by_its_ancestral_steps_with_learned_variance_and_thresholding(tmp_path: Path) -> None:
    theirs, ours = tiny.floyd(tmp_path), imported(tmp_path)
    asked: dict[str, Any] = {"clean_caption": False, "output_type": "pt", "generator": seeded()}
    wanted = theirs("A Cat ab ", num_inference_steps=5, guidance_scale=3.0, **asked).images
    made = points(ours, ["A Cat ab "], [seeded()], steps="ddim5", guidance={"kind": "plain", "w": 2.0})
    torch.testing.assert_close(made, wanted.clamp(-1, 1), **CLOSE)
    assert ours.schedule is not None
    assert ours.schedule.spec.threshold is not None


def test_deepfloyd_if_enlarges_what_it_sees_under_noise(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    tiny.floyd(first, sample_size=4)
    theirs = tiny.floyd_upsampler(second, sample_size=16)
    import_prior(first / "diffusers", first / "model")
    import_prior(second / "diffusers", second / "model")
    ours = PITIPipeline.from_pretrained(first / "model", upsampler=second / "model")
    small = noise(1, 3, 4, 4).clamp(-1, 1)
    asked: dict[str, Any] = {"clean_caption": False, "output_type": "pt", "generator": seeded()}
    wanted = theirs(TEXT, image=small, num_inference_steps=5, guidance_scale=3.0, **asked).images
    resolved = SamplingOptions.from_flat({"upsampler_steps": "ddim5", "upsampler_guidance": {"kind": "plain", "w": 2}})
    prepared = ours.prepare(TEXT, resolved)
    network = ours.upsampler_network()
    assert network is not None
    assert prepared.sampling.upsampler is not None
    batch = Batch([prepared], [0], [seeded()])
    made = network.sample(batch, prepared.sampling.upsampler, lambda done, x0: None, small)
    torch.testing.assert_close(made, wanted.clamp(-1, 1), **CLOSE)
