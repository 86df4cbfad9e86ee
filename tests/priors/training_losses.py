"""Losses of the training loop, and of diffusers' training scripts with diffusers' classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from piti.core.seeding import derive_seed, noise_for
from piti.diffusion.timesteps import timesteps_for
from piti.models import Tokens
from piti.training.objectives import DiffusionObjective


@dataclass(frozen=True)
class Step:
    """What one training step was given and drew, and the losses that the loop made of it."""

    images: Tensor
    t: Tensor
    seed: int
    numbers: range
    tokens: Tokens
    total: float
    simple: float
    vb: float

    def noise(self, purpose: str | None, shape: tuple[int, ...]) -> Tensor:
        """What was drawn: of x_t, or for a purpose."""
        return noise_for(self.seed if purpose is None else derive_seed(self.seed, purpose), self.numbers, shape)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Gets every step that the training loop takes from now on."""
    steps: list[Step] = []
    losses = DiffusionObjective.losses

    def keeping(self: DiffusionObjective, model: Any, batch: Any, numbers: range, within: int) -> Any:
        with torch.no_grad():
            tokens = model.encode(self.condition.encode(batch.condition))
        found = losses(self, model, batch, numbers, within)
        simple, vb = (found.metrics[name].total / found.metrics[name].over for name in ("simple", "vb"))
        seed = self.recipe.seed
        t = timesteps_for(numbers, len(self.schedule), seed)
        steps.append(Step(batch.image, t, seed, numbers, tokens, found.total.item(), simple, vb))
        return found

    monkeypatch.setattr(DiffusionObjective, "losses", keeping)
    return steps


@torch.no_grad()
def losses_of_diffusers(folder: Path, step: Step) -> tuple[float, float]:
    """The squared error as `train_text_to_image`, `train_text_to_image_sdxl` and for IF `train_dreambooth` have it, and
    the variational bound of Nichol & Dhariwal 2021, eq. 16, in bits a dimension: 0 without learned variance.

    folder: of diffusers; the UNet's weights are those there.
    """
    network = _network(folder)
    if isinstance(network, FluxTransformer2DModel):
        return _loss_of_flux(network, folder, step), 0.0
    if isinstance(network, SanaTransformer2DModel | SD3Transformer2DModel):
        return _loss_of_a_flow(network, folder, step), 0.0
    scheduler: Any = DDPMScheduler.from_pretrained(folder / "scheduler")
    x0 = _points(folder, step)
    noise = step.noise(None, tuple(x0.shape[1:]))
    noisy = scheduler.add_noise(x0, noise, step.t)
    given = {"timestep": step.t, "encoder_hidden_states": step.tokens.sequence}
    output = network(noisy, **given, **_beside(network, step)).sample
    target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x0, noise, step.t)
    bound = 0.0
    if output.shape[1] == 2 * x0.shape[1]:
        output, variance = output.chunk(2, dim=1)
        bound = _bound(scheduler, step.t, x0, noisy, output, variance)
    return F.mse_loss(output.float(), target.float(), reduction="mean").item(), bound


def _loss_of_a_flow(network: SanaTransformer2DModel | SD3Transformer2DModel, folder: Path, step: Step) -> float:
    """As `train_dreambooth_lora_sana` and `train_dreambooth_sd3` have it, every timestep alike."""
    given: dict[str, Any] = {}
    if isinstance(network, SD3Transformer2DModel):
        x0, given = _points(folder, step), {"pooled_projections": step.tokens.pooled}
    else:
        vae = AutoencoderDC.from_pretrained(folder / "vae")
        x0 = vae.encode(step.images).latent * vae.config["scaling_factor"]  # pyright: ignore[reportAttributeAccessIssue]
    noise = step.noise(None, tuple(x0.shape[1:]))
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)  # whose levels come from the noisiest on
    sigmas = scheduler.sigmas.flip(0)[step.t].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    assert step.tokens.residuals is not None
    maps = [one.flatten(2).transpose(1, 2) for one in step.tokens.residuals]
    given |= {"controlnet_block_samples" if not given else "block_controlnet_hidden_states": maps}
    given |= {"encoder_hidden_states": step.tokens.sequence, "timestep": 1000 * sigmas.flatten()}
    return F.mse_loss(network(noisy, **given).sample, noise - x0).item()


def _loss_of_flux(network: FluxTransformer2DModel, folder: Path, step: Step) -> float:
    """As `train_dreambooth_lora_flux` has it with a guidance scale of 1, every timestep alike, at the noise levels of
    images of this size; maps are added as those of its ControlNets."""
    pack, unpack = FluxPipeline._pack_latents, FluxPipeline._unpack_latents
    x0 = _points(folder, step)
    count, channels, height, width = x0.shape
    noise = step.noise(None, tuple(x0.shape[1:]))
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    uniform = [k / 1000 for k in range(1, 1001)]
    scheduler.set_timesteps(sigmas=uniform, mu=calculate_shift(height * width // 4))
    sigmas = scheduler.sigmas[step.t].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    assert step.tokens.residuals is not None
    maps = [one.flatten(2).transpose(1, 2) for one in step.tokens.residuals]
    kind: dict[str, Any] = {"device": x0.device, "dtype": x0.dtype}
    out = network(
        hidden_states=pack(noisy, count, channels, height, width),
        timestep=sigmas.flatten(),
        guidance=torch.ones(count),
        pooled_projections=step.tokens.pooled,
        encoder_hidden_states=step.tokens.sequence,
        txt_ids=torch.zeros(step.tokens.sequence.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **kind),
        controlnet_block_samples=maps[:2],  # of 3 double blocks
        controlnet_single_block_samples=maps[2:],
    ).sample
    pixels = step.images.shape[-1] // width
    return F.mse_loss(unpack(out, height * pixels, width * pixels, pixels), noise - x0).item()


def _points(folder: Path, step: Step) -> Tensor:
    """The images, or their latents, drawn from the autoencoder's posterior."""
    if not (folder / "vae").is_dir():
        return step.images
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    posterior = vae.encode(step.images).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
    noise = step.noise("latents", tuple(posterior.mean.shape[1:]))
    latents = posterior.mean + posterior.std * noise
    return (latents - (vae.config["shift_factor"] or 0.0)) * vae.config["scaling_factor"]


def _network(
    folder: Path,
) -> (
    UNet2DConditionModel
    | PixArtTransformer2DModel
    | SanaTransformer2DModel
    | SD3Transformer2DModel
    | FluxTransformer2DModel
):
    index = (folder / "model_index.json").read_text(encoding="utf-8")
    if "Sana" in index:
        return SanaTransformer2DModel.from_pretrained(folder / "transformer")
    if "Flux" in index:
        return FluxTransformer2DModel.from_pretrained(folder / "transformer")
    if "SD3" in index:
        return SD3Transformer2DModel.from_pretrained(folder / "transformer")
    if (folder / "transformer").is_dir():
        return PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def _beside(network: UNet2DConditionModel | PixArtTransformer2DModel, step: Step) -> dict[str, Any]:
    """The network's arguments beside x_t, t and tokens: SDXL's sizes, and the maps of the aligned path."""
    if isinstance(network, PixArtTransformer2DModel):
        return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    given: dict[str, Any] = {}
    if network.config["addition_embed_type"] == "text_time":
        height, width = step.images.shape[-2:]
        ids = torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(step.t), 1)
        given["added_cond_kwargs"] = {"text_embeds": step.tokens.pooled, "time_ids": ids}
    assert step.tokens.residuals is not None
    *down, mid = step.tokens.residuals
    return given | {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}


def _bound(scheduler: Any, t: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, variance: Tensor) -> float:
    """KL(q(x_{t−1}|x_t, x₀) ‖ p(x_{t−1}|x_t)) by DDPM's eq. 6 and 7 in float64, of t above 0."""
    assert t.min() > 0
    betas = scheduler.betas.double()
    products = (1 - betas).cumprod(0)
    a, before, beta = (one.view(-1, 1, 1, 1) for one in (products[t], products[t - 1], betas[t]))
    x0, x_t, noise, share = x0.double(), x_t.double(), noise.double(), (variance.double() + 1) / 2

    def mean(clean: Tensor) -> Tensor:
        return (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - a)

    posterior = beta * (1 - before) / (1 - a)
    learned = (share * beta.log() + (1 - share) * posterior.log()).exp()  # Nichol & Dhariwal 2021, eq. 15
    predicted = mean((x_t - (1 - a).sqrt() * noise) / a.sqrt())
    nats = kl_divergence(Normal(mean(x0), posterior.sqrt().expand_as(x0)), Normal(predicted, learned.sqrt()))
    return nats.mean().item() / torch.tensor(2.0, dtype=torch.float64).log().item()
