"""A prior of another family is adapted to masks in the latents of its autoencoder: in two stages, or by adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file

from piti.checkpoints.lora import ADAPTER_FILE
from piti.checkpoints.priors import import_prior, recognised
from piti.core.errors import UserError
from piti.diffusion.losses import diffusion_loss
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.editing import edit
from piti.models import Space, SpaceSpec
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RecipeError, plan, train
from piti.training.latent_cache import CachedSpace
from tests.conftest import TINY_MODEL, tiny_recipe
from tests.priors import tiny

pytest.importorskip("transformers")

WEIGHTS = "model/base/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model imported from a tiny Stable Diffusion."""
    folder = tmp_path_factory.mktemp("prior")
    tiny.stable_diffusion(folder)
    import_prior(folder / "diffusers", folder / "model")
    return folder


def recipe_of(prior: Path, data: Path, **changes: Any) -> Recipe:
    found = recognised(prior / "diffusers")
    values = tiny_recipe(
        data,
        prior=str(prior / "model"),
        schedule=found.schedule.to_dict(),
        model={
            "image_size": 16,
            "learned_variance": False,
            "encoder": {**TINY_MODEL["encoder"], "sequence_width": 16, "pooled": 0},  # type: ignore[dict-item]
            "unet_config": found.unet,
            "space": found.space.to_dict(),
        },
        stages=[
            {"name": "adapt", "trains": ["encoder"], "steps": 2, "lr": 1e-3},
            {"name": "joint", "trains": ["encoder", "unet"], "steps": 1, "lr": 1e-3},
        ],
    )
    return Recipe.parse(values | changes, "test")


def test_two_stages_then_images_and_an_edit(prior: Path, tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(prior, tiny_data, latent_cache=str(tmp_path / "latents"))
    train(recipe, tmp_path / "run")
    assert list((tmp_path / "latents").rglob("*.safetensors"))
    pipe = PITIPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    masks = sorted((tiny_data / "labels").glob("*.png"))
    made = pipe(masks[0], steps=3, sampler="ddim", generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == (20, 16)  # of the mask's proportions
    edited = edit(pipe, made, masks[1], masks[0], num_images=1)
    assert edited.images[0].size == made.size


def test_what_is_frozen_stays_as_it_is_to_the_bit(prior: Path, tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "adapt", "trains": ["encoder"], "steps": 2, "lr": 1e-2}]
    train(recipe_of(prior, tiny_data, stages=stages, checkpointing=True), tmp_path / "run")
    ours, theirs = load_file(tmp_path / "run" / WEIGHTS), load_file(prior / WEIGHTS)
    unet = [name for name in theirs if name.startswith("unet.")]
    assert all(torch.equal(ours[name], theirs[name]) for name in unet)
    assert not any("models" in name for name in ours)


def test_adapters_take_the_autoencoder_of_their_prior(prior: Path, tiny_data: Path, tmp_path: Path) -> None:
    stages = [{"name": "joint", "trains": ["encoder", "lora"], "steps": 1, "lr": 1e-2}]
    train(recipe_of(prior, tiny_data, stages=stages, lora={"rank": 2}), tmp_path / "run")
    assert (tmp_path / "run/model/base" / ADAPTER_FILE).is_file()
    assert not (tmp_path / "run/model/vae").exists()
    assert PITIPipeline.from_pretrained(tmp_path / "run").space.spec == SpaceSpec(channels=4, factor=2)


def test_the_plan_tells_costs_and_another_unet_is_refused(prior: Path, tiny_data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(prior, tiny_data)
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run", "rtx4090")}
    assert "weights of its UNet taken" in rows["begins"]
    assert "4090" in rows["speed"]
    model = recipe.model.to_dict()
    model["unet_config"] = {**model["unet_config"], "flip_sin_to_cos": False}
    with pytest.raises(RecipeError, match=r"'model.unet_config' is not that of .*flip_sin_to_cos: True there, False"):
        plan(recipe_of(prior, tiny_data, model=model), tmp_path / "run")


def test_losses_on_pixels_are_refused_in_latents(prior: Path, tiny_data: Path) -> None:
    stage = {"name": "joint", "steps": 1, "lr": 1e-3, "perceptual": {"weight": 1.0}}
    with pytest.raises(UserError, match="look at pixels, and this model makes latents"):
        recipe_of(prior, tiny_data, stages=[stage])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_own_training(prediction: Any) -> None:
    """As its scripts have it: noise is added by the scheduler, and the squared error of its target is averaged."""
    scheduler = DDPMScheduler(**_betas(), prediction_type=prediction)
    spec = ScheduleSpec(betas="scaled_linear", beta_range=(0.00085, 0.012), prediction=prediction, clip=False)
    schedule = NoiseSchedule(spec)
    unet = tiny.unet(in_channels=4, out_channels=4, **tiny.ATTENDS)
    torch.manual_seed(0)
    latents, noise, tokens = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 16)
    t = torch.tensor([3, 500, 999])
    noisy: Any = scheduler.add_noise(latents, noise, t)  # pyright: ignore[reportArgumentType]
    target: Any = noise
    if prediction == "v_prediction":
        target = scheduler.get_velocity(latents, noise, t)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        wanted = F.mse_loss(unet(noisy, t, tokens).sample, target)
        x_t = schedule.q_sample(latents, t, noise)
        output = unet(x_t, t, tokens).sample
    ours = diffusion_loss(output, None, latents, x_t, t, noise, schedule).total
    assert abs(float(ours - wanted)) < 1e-6


def _betas() -> dict[str, Any]:
    return {key: tiny.STABLE[key] for key in ("beta_start", "beta_end", "beta_schedule")}


def test_latents_are_those_of_the_autoencoder_and_kept_by_their_contents(tmp_path: Path) -> None:
    autoencoder = tiny.autoencoder()
    space = Space(SpaceSpec(channels=4, factor=2), autoencoder)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        noise = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(
            space.drawn(space.moments(images), noise), 0.18215 * (posterior.mean + posterior.std * noise)
        )
        decoded = autoencoder.decode(posterior.mean).sample.clamp(-1, 1)  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(space.images(space.points(images)), decoded, atol=1e-5, rtol=0)
    cached = CachedSpace(space, tmp_path)
    first = cached.moments(images)
    autoencoder.encode = None  # type: ignore[assignment]
    torch.testing.assert_close(cached.moments(images), first, atol=0, rtol=0)
    with pytest.raises(UserError, match="one autoencoder belongs to this space, none was given"):
        Space(SpaceSpec(channels=4, factor=2))
