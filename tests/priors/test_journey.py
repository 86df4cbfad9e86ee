"""A tiny Stable Diffusion from its first training step to a server that translates masks with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from piti.editing import edit
from piti.evaluation import evaluate
from piti.evaluation.generating import Split
from piti.evaluation.options import Options
from piti.generation.options import GenerationOptions
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.computing import Computing
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.http.app import build_app
from piti.studio.service.service import Studio
from piti.training import Recipe, train
from tests.evaluation.seen import Colours
from tests.priors import tiny
from tests.priors.test_adapt import recipe_of
from tests.priors.training_losses import recorded

pytest.importorskip("transformers")

FAST = GenerationOptions.from_flat(num=1, steps=2, sampler="ddim", seed=5)


CAPTIONS = ("a cat", "a dog")


def photographs(folder: Path) -> Path:
    """Pictures of two shades, each with its caption beside it."""
    folder.mkdir()
    for k in range(4):
        Image.new("RGB", (20, 20), (60 + 120 * (k % 2), 90, 30 * k)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(CAPTIONS[k % 2], encoding="utf-8")
    return folder


def pretraining(start: tiny.Imported, captions: Path) -> Recipe:
    """A new text encoder and the UNet learn from captions, in the latents of the prior's autoencoder."""
    recipe = recipe_of(start, captions).to_dict()
    model = recipe["model"] | {"encoder": None, "text": {"width": 16, "layers": 1, "heads": 2}}
    return Recipe.parse(
        recipe
        | {
            "condition": {"kind": "text", "context": 8},
            "model": model,
            "data": {"photographs": [str(captions)], "size": 16},
            "stages": [{"name": "pretrain", "trains": ["encoder", "unet"], "steps": 10, "lr": 1e-2}],
            "batch": 4,
            "checkpoint": {"every": 10, "keep": 1},
        },
        "test",
    )


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

    studio = Studio((str(model),), computing=Computing("cpu", engine="torch"))
    try:
        return asyncio.run(asked(build_app(studio, page=False)))
    finally:
        studio.close()


def test_pretrained_adapted_evaluated_edited_made_again_and_served(
    stable: tiny.Imported, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = recorded(monkeypatch)
    train(pretraining(stable, photographs(tmp_path / "photographs")), tmp_path / "prior")
    losses = [step.simple for step in steps]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    reads = PITIPipeline.from_pretrained(tmp_path / "prior")
    reads.set_progress_bar_config(disable=True)
    assert reads(CAPTIONS[0], steps=2, sampler="ddim").images[0].size == (16, 16)

    recipe = recipe_of(stable, tiny_data, latent_cache=str(tmp_path / "latents"), prior=str(tmp_path / "prior"))
    train(recipe, tmp_path / "run")
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
