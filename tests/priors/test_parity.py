"""Imported tiny pipelines of other families give the same images as diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.samplers import sampling_timesteps
from piti.diffusion.schedule import shifted
from piti.editing.trajectory import Progress, Walk
from piti.models import Translator
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


def points(pipe: PITIPipeline, texts: list[str], generators: list[torch.Generator], **sampling: Any) -> Tensor:
    """What the base samples, before it is decoded. generators: of x_T and of the sampler's noise."""
    resolved = SamplingOptions.from_flat(sampling).resolve(pipe)
    prepared = [pipe.prepare(text, resolved) for text in texts]
    network: Any = pipe.base_network()
    seen: list[Tensor] = []
    batch = Batch(prepared, list(range(len(texts))), generators)
    made = network.sample(batch, resolved.base, lambda done, x0: seen.append(x0))
    return seen[-1] if network.space.spec.latent else made


def both(request: pytest.FixtureRequest, name: str) -> tuple[Any, PITIPipeline]:
    """A fixture's pipeline, theirs and ours."""
    found: tiny.Imported = request.getfixturevalue(name)
    return found.theirs, found.ours


@pytest.mark.parametrize("name", ["stable", "stable_v"])
def test_stable_diffusion_by_ddim(request: pytest.FixtureRequest, name: str) -> None:
    theirs, ours = both(request, name)
    latents = noise(1, 4, 8, 8)
    wanted = theirs(TEXT, num_inference_steps=3, guidance_scale=3.0, latents=latents, output_type="pt").images
    made = ours(TEXT, steps="leading3", guidance={"kind": "plain", "w": 2.0}, latents=latents, output_type="pt").images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["stable", "stable_v"])
def test_stable_diffusion_by_dpm_solver(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    theirs, ours = both(request, name)
    monkeypatch.setattr(theirs, "scheduler", DPMSolverMultistepScheduler.from_config(theirs.scheduler.config))
    latents = noise(1, 4, 8, 8)
    assert ours.schedule is not None
    visited = sampling_timesteps(ours.schedule, "dpm++", 4)[::-1]
    wanted = theirs(TEXT, timesteps=visited, guidance_scale=3.0, latents=latents, output_type="pt").images
    sampling: dict[str, Any] = {"sampler": "dpm++", "steps": 4, "guidance": {"kind": "plain", "w": 2.0}}
    made = ours(TEXT, **sampling, latents=latents, output_type="pt").images
    torch.testing.assert_close(made, wanted, **CLOSE)


def test_sdxl_with_two_text_encoders_and_sizes(sdxl: tiny.Imported) -> None:
    """Two texts at once, without guidance and with it."""
    theirs, ours, latents, texts = sdxl.theirs, sdxl.ours, noise(2, 4, 8, 8), [TEXT, "dogs"]
    for w, steps in ((0.0, 2), (2.0, 3)):
        asked: dict[str, Any] = {"latents": latents, "output_type": "pt"}
        wanted = theirs(texts, num_inference_steps=steps, guidance_scale=1 + w, **asked).images
        made = ours(texts, steps=f"leading{steps}", guidance={"kind": "plain", "w": w}, **asked).images
        torch.testing.assert_close(made, wanted, **CLOSE)


def test_deepfloyd_if_by_its_ancestral_steps_with_learned_variance_and_thresholding(floyd: tiny.Imported) -> None:
    asked: dict[str, Any] = {"clean_caption": False, "output_type": "pt", "generator": seeded()}
    wanted = floyd.theirs("A Cat ab ", num_inference_steps=5, guidance_scale=3.0, **asked).images
    made = points(floyd.ours, ["A Cat ab "], [seeded()], steps="ddim5", guidance={"kind": "plain", "w": 2.0})
    torch.testing.assert_close(made, wanted.clamp(-1, 1), **CLOSE)
    assert floyd.ours.schedule is not None
    assert floyd.ours.schedule.spec.threshold is not None


def test_deepfloyd_if_enlarges_what_it_sees_under_noise(floyd: tiny.Imported, floyd_upsampler: tiny.Imported) -> None:
    ours = PITIPipeline.from_pretrained(floyd.model, upsampler=floyd_upsampler.model)
    small = noise(1, 3, 8, 8).clamp(-1, 1)
    asked: dict[str, Any] = {"clean_caption": False, "output_type": "pt", "generator": seeded()}
    wanted = floyd_upsampler.theirs(TEXT, image=small, num_inference_steps=5, guidance_scale=3.0, **asked).images
    resolved = SamplingOptions.from_flat({"upsampler_steps": "ddim5", "upsampler_guidance": {"kind": "plain", "w": 2}})
    prepared = ours.prepare(TEXT, resolved)
    network = ours.upsampler_network()
    assert network is not None
    assert prepared.sampling.upsampler is not None
    batch = Batch([prepared], [0], [seeded()])
    made = network.sample(batch, prepared.sampling.upsampler, lambda done, x0: None, small)
    torch.testing.assert_close(made, wanted.clamp(-1, 1), **CLOSE)


@pytest.mark.parametrize("sigma", [False, True])
def test_pixart_with_the_ends_of_its_texts(tmp_path: Path, pixart: tiny.Imported, sigma: bool) -> None:
    """A short text and a long one."""
    prior = pixart if sigma else tiny.imported(tiny.pixart, tmp_path)
    theirs, ours, latents = prior.theirs, prior.ours, noise(2, 4, 8, 8)
    visited = sampling_timesteps(ours.schedule, "dpm++", 3)[::-1]
    asked: dict[str, Any] = {"latents": latents, "output_type": "pt"}
    cleaned: dict[str, Any] = {"clean_caption": False, "use_resolution_binning": False}
    texts = ["A Cat ab ", "dogs and cats and dogs"]
    wanted = theirs(texts, timesteps=visited, guidance_scale=3.0, **asked, **cleaned).images
    made = ours(texts, steps=3, guidance={"kind": "plain", "w": 2.0}, **asked).images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_sana_by_the_steps_of_a_flow(monkeypatch: pytest.MonkeyPatch, sana: tiny.Imported, solver: str) -> None:
    """A short text and one that is cut: by Euler's method, which "ddim" is for a flow, and by DPM-Solver++."""
    theirs, ours, latents = sana.theirs, sana.ours, noise(2, 4, 8, 8)
    shares = [(t + 1) / 1000 for t in sampling_timesteps(ours.schedule, solver, 4)[::-1]]
    asked: dict[str, Any] = {"latents": latents, "output_type": "pt"}
    cleaned: dict[str, Any] = {"complex_human_instruction": None, "use_resolution_binning": False}
    if solver == "ddim":
        monkeypatch.setattr(theirs, "scheduler", FlowMatchEulerDiscreteScheduler(shift=3.0))
        cleaned["sigmas"] = shares
    else:
        monkeypatch.setattr(theirs, "scheduler", _flow_by_dpm(theirs.scheduler, shares))
        cleaned["num_inference_steps"] = 4
    s = 3 * shares[0] / (1 + 2 * shares[0])  # the solver begins below 1, where z_t is another multiple of x_t
    texts = ["A Cat ab ", "dogs and cats " * 30]
    begun = {"latents": (s**2 + (1 - s) ** 2) ** 0.5 * latents, "output_type": "pt"}
    wanted = theirs(texts, guidance_scale=3.0, **begun, **cleaned).images
    made = ours(texts, sampler=solver, steps=4, guidance={"kind": "plain", "w": 2.0}, **asked).images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


@pytest.mark.parametrize("t5_too", [True, False])
def test_stable_diffusion_3_with_all_its_text_encoders_and_without_the_largest(
    tmp_path: Path, sd3: tiny.Imported, t5_too: bool
) -> None:
    """A short text and one of which each text encoder reads another part, by Euler's method."""
    prior = sd3 if t5_too else tiny.imported(tiny.stable_diffusion_3, tmp_path, t5_too=False)
    theirs, ours, latents = prior.theirs, prior.ours, noise(2, 4, 8, 8)
    shares = [(t + 1) / 1000 for t in sampling_timesteps(ours.schedule, "ddim", 4)[::-1]]
    s = 3 * shares[0] / (1 + 2 * shares[0])
    begun = {"latents": (s**2 + (1 - s) ** 2) ** 0.5 * latents, "output_type": "pt"}
    texts = ["a cat ab", "dogs and cats " * 30]
    wanted = theirs(texts, guidance_scale=3.0, sigmas=shares, **begun).images
    made = ours(texts, steps=4, guidance={"kind": "plain", "w": 2.0}, latents=latents, output_type="pt").images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


def test_each_text_encoder_of_stable_diffusion_3_reads_a_text_by_its_own_tokenizer(sd3: tiny.Imported) -> None:
    """What CLIP's 12 tokens do not hold reaches the image through T5's 256."""
    theirs, ours = sd3.theirs, sd3.ours
    for text in ("ab", "dogs and cats and more"):
        wanted, _, pooled, _ = theirs.encode_prompt(text, None, None, do_classifier_free_guidance=False)
        tokens = ours.base.encode(ours.read(text)[None])
        torch.testing.assert_close(tokens.sequence, wanted, **CLOSE)
        torch.testing.assert_close(tokens.pooled, pooled, **CLOSE)
    one, other = (ours.base.encode(ours.read(f"dogs and cats {end}")[None]).sequence for end in ("run", "sit"))
    assert torch.equal(one[:, :12], other[:, :12])
    assert not torch.equal(one[:, 12:], other[:, 12:])
    assert ours.condition.cut("dogs and cats and more") == ""
    assert ours.condition.cut("cat " * 90).startswith("only the first 256 of 360 tokens are read")


def levels_of(ours: PITIPipeline, latents: Tensor) -> Tensor:
    """The shares of noise at which 4 steps begin, from the noisiest on."""
    network: Any = ours.base_network()
    visited = network.visited(SamplingOptions.from_flat({"steps": 4}).resolve(ours).base, latents)
    u = (torch.tensor(sampling_timesteps(network.schedule, "ddim", visited)[::-1]) + 1) / 1000
    return shifted(u, network.translator.flow.shift)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 16), (256, 256), (256, 512)])
def test_noise_levels_of_flux_follow_the_size_of_images(flux: tiny.Imported, height: int, width: int) -> None:
    """At the size whose shift it was imported with, and at others, to the nearest of 1000 timesteps."""
    usual = FlowMatchEulerDiscreteScheduler.from_config(flux.theirs.scheduler.config)
    usual.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(height * width // 16))
    levels = levels_of(flux.ours, torch.zeros(1, 4, height // 2, width // 2))
    torch.testing.assert_close(levels, usual.sigmas[:-1], atol=2e-3, rtol=0)


def test_an_edit_of_flux_goes_along_the_noise_levels_of_its_image(flux: tiny.Imported) -> None:
    network: Any = flux.ours.base_network()
    prepared = flux.ours.prepare(TEXT, SamplingOptions.from_flat({"steps": 4, "size": 16}))
    tokens = network.encode(Batch([prepared], [0], [seeded()]), with_null=False)
    walk = Walk(network, prepared.sampling.base, 0, 0.0, noise(1, 4, 8, 8), None, tokens, tokens)
    inverted = walk.invert(Progress(None, 4))
    visited = network.visited(prepared.sampling.base, walk.image)
    assert inverted.trajectory.schedule.timesteps.tolist() == visited
    assert visited != sampling_timesteps(network.schedule, "ddim", 4)


@pytest.mark.parametrize(("size", "w"), [(16, 0.0), (24, 2.0)])
def test_flux_by_eulers_method_with_its_embedded_guidance(
    monkeypatch: pytest.MonkeyPatch, flux: tiny.Imported, size: int, w: float
) -> None:
    """Guided by the empty text too, as by diffusers' `true_cfg_scale`."""
    theirs, ours, texts = flux.theirs, flux.ours, [TEXT, "dogs and cats " * 40]  # longer than T5 reads
    side = size // 2
    latents = noise(2, 4, side, side)
    monkeypatch.setattr(theirs, "scheduler", FlowMatchEulerDiscreteScheduler())  # takes levels as they are
    asked: dict[str, Any] = {"sigmas": levels_of(ours, latents).tolist(), "height": size, "width": size}
    if w:
        asked |= {"negative_prompt": ["", ""], "true_cfg_scale": 1 + w}
    packed = theirs._pack_latents(latents, 2, 4, side, side)
    wanted = theirs(texts, guidance_scale=3.5, latents=packed, output_type="pt", **asked).images
    sampling: dict[str, Any] = {"steps": 4, "guidance": {"kind": "plain", "w": w}, "size": size}
    made = ours(texts, latents=latents, output_type="pt", **sampling).images
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, **CLOSE)


def test_flux_is_sampled_as_diffusers_pipeline_does_by_default(flux: tiny.Imported) -> None:
    """Its network takes 3.5, and w is 0; another scale makes other images."""
    latents, own = noise(1, 4, 8, 8), SamplingOptions.from_flat({}).resolve(flux.ours)
    assert (own.base.sampler, own.base.steps, own.base.guidance.w) == ("ddim", 28, 0.0)
    default = inspect.signature(type(flux.theirs).__call__).parameters["guidance_scale"].default
    assert flux.ours.base.wiring.guidance == default
    tokens = flux.ours.base.encode(flux.ours.read(TEXT)[None])
    found = flux.ours.base(latents, torch.tensor(500), tokens).output
    other = Translator(**dict(flux.ours.base.config) | {"embedded_guidance": 1.0}).eval()
    other.load_state_dict(flux.ours.base.state_dict())
    assert (other(latents, torch.tensor(500), tokens).output - found).abs().max() > 1e-3


def test_a_text_reaches_flux_by_clips_pooled_token_and_t5s_tokens(flux: tiny.Imported) -> None:
    for text in ("ab", "dogs and cats and more"):
        wanted, pooled, _ = flux.theirs.encode_prompt(text)
        tokens = flux.ours.base.encode(flux.ours.read(text)[None])
        torch.testing.assert_close(tokens.sequence, wanted, **CLOSE)
        torch.testing.assert_close(tokens.pooled, pooled, **CLOSE)


def test_an_image_too_large_for_the_growing_shift_of_flux_is_refused(flux: tiny.Imported) -> None:
    with pytest.raises(UserError, match=r"images of 760 x 760: the shift of this model's .* above 100; make"):
        flux.ours(TEXT, size=760, steps=1)


def _flow_by_dpm(scheduler: Any, shares: list[float]) -> DPMSolverMultistepScheduler:
    """Diffusers' own solver of a flow, at these shares of noise before the shift."""
    made = DPMSolverMultistepScheduler.from_config(scheduler.config)
    whole = made.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None, **_: Any) -> None:
        whole(num_inference_steps, device=device)
        u = torch.tensor(shares, dtype=torch.float64)
        sigmas = 3 * u / (1 + 2 * u)
        made.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
        made.timesteps = 1000 * sigmas.float()

    made.set_timesteps = set_timesteps  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_a_transformer_is_told_where_a_text_ends(pixart: tiny.Imported) -> None:
    x_t, t, ours = noise(1, 4, 8, 8), torch.tensor(500), pixart.ours
    tokens = ours.base.encode(ours.read(TEXT)[None])
    assert tokens.mask is not None
    assert tokens.mask.sum() == len(TEXT) + 1
    told, untold = (ours.base(x_t, t, given).output for given in (tokens, tokens._replace(mask=None)))
    assert (told - untold).abs().max() > 1e-3  # what fills a text up would change the image


def test_pixart_is_told_sizes_and_proportions(tmp_path: Path) -> None:
    """As PixArt-α is at 1024 px: height and width in pixels, and their ratio."""
    sizes: dict[str, Any] = {"attention_head_dim": 12, "cross_attention_dim": 24, "use_additional_conditions": True}
    prior = tiny.imported(tiny.pixart, tmp_path, **sizes)
    x_t, t, ours = noise(1, 4, 8, 12), torch.tensor([500]), prior.ours
    tokens = ours.base.encode(ours.read(TEXT)[None])
    told = {"resolution": torch.tensor([[16.0, 24.0]]), "aspect_ratio": torch.tensor([[16 / 24]])}
    with torch.no_grad():
        wanted = prior.theirs.transformer(
            x_t,
            encoder_hidden_states=tokens.sequence,
            encoder_attention_mask=tokens.mask,
            timestep=t,
            added_cond_kwargs=told,
        ).sample
        found = ours.base(x_t, t, tokens)
    torch.testing.assert_close(torch.cat([found.output, found.variance], dim=1), wanted, **CLOSE)
