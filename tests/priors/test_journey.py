"""A tiny Stable Diffusion from its first step to a server that translates masks by it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from piti.checkpoints.priors import import_prior
from piti.editing import edit
from piti.evaluation import evaluate
from piti.evaluation.generating import Split
from piti.evaluation.options import Options
from piti.generation.options import GenerationOptions
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.http.app import build_app
from piti.studio.service.service import Studio
from piti.training import train
from tests.evaluation.seen import Colours
from tests.priors import tiny
from tests.priors.test_adapt import TWO_STAGES, recipe_of

pytest.importorskip("transformers")

FAST = GenerationOptions.from_flat(num=1, steps=2, sampler="ddim", seed=5)


def pretrained(pipe: Any, steps: int = 8) -> list[float]:
    """Train a pipeline's UNet on one picture and its text, as diffusers' own scripts do; the losses."""
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = pipe.vae.encode(torch.linspace(-1, 1, 256).view(1, 1, 16, 16).expand(4, 3, -1, -1)).latent_dist.mean
        tokens = pipe.text_encoder(pipe.tokenizer(["a cat"] * 4, return_tensors="pt").input_ids)[0]
    losses = []
    for _ in range(steps):
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.tensor([100, 300, 500, 900])
        noisy = pipe.scheduler.add_noise(latents * pipe.vae.config.scaling_factor, noise, t)
        loss = F.mse_loss(pipe.unet(noisy, t, tokens).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def served(model: Path, mask: Path) -> httpx.Response:
    """What the studio answers to a mask."""

    async def asked(app: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860", timeout=60) as client:
            files, data = (
                {"condition": (mask.name, mask.read_bytes())},
                {"model": str(model), "steps": "2", "seed": "5"},
            )
            return await client.post("/api/translate", files=files, data=data, headers={"Accept": "image/png"})

    studio = Studio((str(model),), device="cpu")
    try:
        return asyncio.run(asked(build_app(studio, page=False)))
    finally:
        studio.close()


def test_pretrained_adapted_evaluated_edited_made_again_and_served(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tiny.stable_diffusion(tmp_path)
    losses = pretrained(theirs)
    assert losses[-1] < 0.8 * losses[0]
    theirs.unet.save_pretrained(tmp_path / "diffusers/unet")
    import_prior(tmp_path / "diffusers", tmp_path / "model")
    prior = tiny.Imported(
        theirs, tmp_path / "diffusers", tmp_path / "model", PITIPipeline.from_pretrained(tmp_path / "model")
    )
    train(recipe_of(prior, tiny_data, latent_cache=str(tmp_path / "latents"), stages=TWO_STAGES), tmp_path / "run")
    assert list((tmp_path / "latents").rglob("*.safetensors"))

    pipe = PITIPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    first, second = sorted((tiny_data / "labels").glob("*.png"))[:2]
    name = str(tmp_path / "run")
    (made,) = translate_files(pipe, TranslationFiles([first], tmp_path / "out"), FAST, name).made
    picture = Image.open(made)
    assert picture.size == (20, 16)  # of the mask's proportions

    record = read_record(made)
    settings = record.options(GenerationOptions.from_flat(), {})
    files = TranslationFiles([], tmp_path / "again", like=record)
    (again,) = translate_files(record.applied(pipe), files, settings, name).made
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(picture))

    edited = edit(pipe, picture, second, first, num_images=1)
    assert edited.images[0].size == picture.size

    monkeypatch.setattr(evaluate, "open_features", lambda name, device: Colours(name))
    options = Options(("colours",), bootstrap=0, device="cpu")
    found = evaluate.evaluate_model(name, Split(tiny_data), tmp_path / "judged", options, FAST)
    assert found is not None
    assert {"fd", "kid"} <= {measure.name for measure in found.measures}

    answer = served(tmp_path / "run", first)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
