"""Imported models match the released code: every recorded network, and a whole cascade."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import load_file
from torch import Tensor

from piti.checkpoints.convert import import_release
from piti.diffusion import samplers
from piti.diffusion.guidance import Guidance
from piti.models import TextEncoder, Translator
from piti.pipelines.canvas import Canvas
from piti.pipelines.cascade import Batch, Network, Prepared, sample_cascade
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline
from tests.recorded import manifest_of, recipe_weights, recorded_config

Released = Callable[[str], Path]
Imported = Callable[..., Path]

# Base models by what the recorded code was given: seed of x_t, seed of the condition, its shape.
BASES = {
    "base_s32_nrb1": (100, 101, (2, 3, 256, 256)),
    "base_c64_nrb1": (100, 101, (2, 3, 256, 256)),
    "base_c64_nrb2": (100, 101, (2, 3, 256, 256)),
    "base_c64_nrb1_edge": (110, 111, (1, 1, 256, 256)),
}
ALL = [*BASES, "up_s32_nrb1", "glide_s32", "glide_up_s32"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def within_one(seed: int, *shape: int) -> Tensor:
    return normal(seed, *shape).clamp(-1, 1)


@pytest.fixture(scope="module")
def released(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A recorded model => its file, written as the release writes them."""
    folder = tmp_path_factory.mktemp("released")

    @cache
    def file(model: str) -> Path:
        path = folder / f"{model}.pt"
        torch.save(recipe_weights(recorded_config(manifest_of(golden), model)), path)
        return path

    return file


@pytest.fixture(scope="module")
def imported(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """Recorded models, a base and perhaps an upsampler => the model folder that the import makes of them."""

    @cache
    def folder(base: str, upsampler: str | None = None) -> Path:
        out = tmp_path_factory.mktemp(base) / "model"
        import_release(released(base), out, released(upsampler) if upsampler else None)
        return out

    return folder


def loaded(folder: Path, network: str = "base") -> Translator:
    return Translator.from_pretrained(folder / network, torch_dtype=torch.float32).eval()


@torch.no_grad()
def errors(translator: Translator, want: dict[str, Tensor], x_t: Tensor, t: Tensor, *given: Tensor) -> dict[str, float]:
    """Largest difference of the output, and of the tokens where they are recorded. given: condition, small image."""
    condition, low_res = given if len(given) == 2 else (given[0], None)
    tokens = translator.encode(condition)
    prediction = translator(x_t, t, tokens, low_res)
    assert prediction.variance is not None
    pooled = tokens.pooled
    if isinstance(translator.encoder, TextEncoder):  # recorded behind its projection there
        pooled = translator.unet.get_submodule("class_embedding")(pooled)
    ours = {
        "out": torch.cat([prediction.output, prediction.variance], dim=1),
        "xf_proj": pooled,
        "xf_out": tokens.sequence.transpose(1, 2),
    }
    return {name: (ours[name] - want[name]).abs().max().item() for name in ours if name in want}


@pytest.mark.parametrize("model", ALL)
def test_recipe_weights_are_those_of_the_recording(golden: Path, released: Released, model: str) -> None:
    entry = manifest_of(golden)["models"][model]
    weights = torch.load(released(model), weights_only=True)
    assert len(weights) == entry["n_tensors"]
    assert sum(tensor.numel() for tensor in weights.values()) == entry["n_params"]
    total = sum(tensor.double().abs().sum().item() for tensor in weights.values())
    assert total == pytest.approx(entry["abs_sum_f64"], rel=1e-12)


def test_the_stored_file_is_the_recipe_s(golden: Path, released: Released) -> None:
    stored = torch.load(golden / "base_s32_nrb1.pt", weights_only=True)
    made = torch.load(released("base_s32_nrb1"), weights_only=True)
    assert list(stored) == list(made)
    assert all(torch.equal(stored[name].float(), made[name]) for name in stored)


@pytest.mark.parametrize("model", BASES)
def test_bases_equal_the_recorded_ones(golden: Path, imported: Imported, model: str) -> None:
    x_seed, seed, shape = BASES[model]
    want = load_file(golden / f"{model}.io.safetensors")
    base = loaded(imported(model))
    found = errors(base, want, normal(x_seed, shape[0], 3, 64, 64), want["timesteps"], within_one(seed, *shape))
    assert max(found.values()) < 2e-5, found


def test_the_stored_base_equals_its_recording(golden: Path, tmp_path: Path) -> None:
    """The real `torch.save` file, float16 in it."""
    want = load_file(golden / "base_s32_nrb1.io.safetensors")
    import_release(golden / "base_s32_nrb1.pt", tmp_path / "model")
    file = load_file(tmp_path / "model/base/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in file.values()} == {torch.float16}
    condition = within_one(101, 2, 3, 256, 256)
    assert torch.equal(condition[:, :, 128], want["ref_row128"])
    found = errors(loaded(tmp_path / "model"), want, want["xt"], want["timesteps"], condition)
    assert set(found) == {"out", "xf_proj", "xf_out"}
    assert max(found.values()) < 1e-5, found


def test_the_upsampler_equals_the_recorded_one(golden: Path, imported: Imported) -> None:
    want = load_file(golden / "up_s32_nrb1.io.safetensors")
    folder = imported("base_s32_nrb1", "up_s32_nrb1")
    given = (within_one(131, 1, 3, 256, 256), within_one(132, 1, 3, 64, 64))
    found = errors(loaded(folder, "upsampler"), want, normal(130, 1, 3, 256, 256), want["timesteps"], *given)
    assert max(found.values()) < 1e-5, found


def test_glide_equals_the_recorded_nets(golden: Path, imported: Imported) -> None:
    folder = imported("glide_s32", "glide_up_s32")
    want = load_file(golden / "glide_s32.io.safetensors")
    ids = want["tokens"].masked_fill(~want["mask"], -1)[:, None, None]
    found = errors(loaded(folder), want, want["xt"], want["timesteps"], ids)
    assert set(found) == {"out", "xf_proj", "xf_out"}
    assert max(found.values()) < 1e-5, found
    want = load_file(golden / "glide_up_s32.io.safetensors")
    small = within_one(34, 1, 3, 64, 64)
    found = errors(loaded(folder, "upsampler"), want, normal(33, 1, 3, 256, 256), torch.tensor([77.0]), ids[:1], small)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("width", [192, 33])
def test_timesteps_are_embedded_as_recorded(golden: Path, width: int) -> None:
    want = load_file(golden / "losses_nn.safetensors")
    embed = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)  # as `build_unet` has it
    # sines of up to 1,000, which float32 knows to 3e-5: how it is rounded before differs between processors
    torch.testing.assert_close(embed(want["ts"]), want[f"temb{width}"], atol=6e-5, rtol=0)


# The whole cascade


class Given:
    """Stands in for a condition: what the network sees is what it is given, and ones say nothing."""

    spatial = True
    encode = staticmethod(lambda raw: raw)
    crop_resize = staticmethod(lambda raw, box, size: raw)

    @staticmethod
    def null(batch: int, height: int, width: int, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.ones(batch, 3, height, width, device=device, dtype=dtype)


def inject(monkeypatch: pytest.MonkeyPatch, initial: list[Tensor], steps: dict[int, int]) -> None:
    """Recorded noise instead of drawn: initial ones in their order; for a step of this side, seed + k."""
    counts = dict.fromkeys(steps, 0)

    def step_noise(shape: tuple[int, ...], **_: Any) -> Tensor:
        side = shape[-1]
        batch = 2 if side == 64 else 1  # there, a guided pair was given noise of its own; the first row counts
        noise = normal(steps[side] + counts[side], batch, 3, side, side)[:1]
        counts[side] += 1
        return noise

    monkeypatch.setattr(samplers, "randn_tensor", lambda *_, **__: initial.pop(0))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", step_noise)


def e2e_networks(pipeline: PITIPipeline) -> tuple[Network, Network]:
    assert pipeline.upsampler is not None
    assert pipeline.upsampler_schedule is not None
    assert pipeline.schedule is not None
    assert isinstance(pipeline.base, Translator)
    network = partial(Network, condition=Given(), device=torch.device("cpu"))  # type: ignore[arg-type]
    return network(pipeline.base, pipeline.schedule), network(pipeline.upsampler, pipeline.upsampler_schedule)


@pytest.fixture(scope="module")
def pipeline(imported: Imported) -> PITIPipeline:
    """The recorded cascade, imported."""
    return PITIPipeline.from_pretrained(imported("base_s32_nrb1", "up_s32_nrb1"))


def test_the_cascade_equals_the_recorded_one(
    golden: Path, pipeline: PITIPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As imported but for 20 base steps: plain guidance, ancestral steps, cut to 8 bits, noise by 0.997, fast27."""
    want = load_file(golden / "e2e_sampling.safetensors")
    small = want["low_res_quantised"]
    settings = SamplingOptions.from_flat({"steps": 20}).resolve(pipeline)
    assert settings.base.guidance == Guidance(kind="plain", w=0.3)
    inject(monkeypatch, [normal(600, 1, 3, 64, 64), normal(700, 1, 3, 256, 256)], {64: 1000, 256: 2000})
    steps: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    base, upsampler = e2e_networks(pipeline)
    real = upsampler.translator.forward

    def forward(x_t: Tensor, t: Tensor, given: Any, low_res: Tensor) -> Any:
        seen.append((x_t, low_res))
        return real(x_t, t, given, small)

    monkeypatch.setattr(upsampler.translator, "forward", forward)
    prepared = Prepared(within_one(500, 3, 256, 256), Canvas(256, 256, (64, 64), 4), settings, "")
    batch = Batch([prepared], [0], [torch.Generator()])
    out = sample_cascade(base, upsampler, batch, lambda done, x0: steps.append(x0))
    assert len(steps) == 20 + 27
    torch.testing.assert_close(steps[19], want["base_sample_cond_and_uncond"][:1], atol=1e-3, rtol=0)
    # a value at the edge of two levels falls on either side, as processors round; the upsampler gets the recorded ones
    apart = (seen[0][1] - small).abs()
    assert apart.max() < 2.01 / 255
    assert (apart > 0).float().mean() < 1e-3
    torch.testing.assert_close(seen[1][0], want["up_after_step1"], atol=1e-3, rtol=0)
    torch.testing.assert_close(out, want["up_sample"], atol=1e-3, rtol=0)


def test_the_base_s_ddim_run_equals_the_recorded_one(
    golden: Path, pipeline: PITIPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = load_file(golden / "e2e_sampling.safetensors")["base_ddim_eta0"][:1]
    inject(monkeypatch, [normal(600, 1, 3, 64, 64)], {})
    settings = SamplingOptions.from_flat({"steps": 20, "sampler": "ddim", "base_only": True}).resolve(pipeline)
    prepared = Prepared(within_one(500, 3, 256, 256), Canvas(256, 256, (64, 64), 4), settings, "")
    batch = Batch([prepared], [0], [torch.Generator()])
    out = sample_cascade(e2e_networks(pipeline)[0], None, batch, lambda done, x0: None)
    torch.testing.assert_close(out, want, atol=1e-3, rtol=0)
