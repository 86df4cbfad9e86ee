"""Estimated cost of a run: parameters, FLOPs, memory, hours on a GPU.

Networks are built and run on the meta device, which has shapes and no numbers: the counts are exact and take seconds at
any size. Speed and memory on a GPU are estimated from them; each function states what it omits. A multiply-add is 2
FLOPs; GFLOP is 10⁹, GiB 2³⁰.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from piti.baselines import BaselineNetwork
from piti.checkpoints.lora import adapter_parameters, inject, matrices
from piti.core.errors import UserError
from piti.core.spec import choices
from piti.diffusion.losses import adversarial_named
from piti.models import AlignedEncoder, LanguageEncoder, SpaceSpec, Translator
from piti.models.discriminator import DiscriminatorEnsemble, PatchDiscriminator, all_logits
from piti.models.perceptual import PerceptualNetwork
from piti.models.text import TextEncoder
from piti.training.flops import Checkpoints, PassCost, count_pass, most_held
from piti.training.losses import AdversarialLossSpec, ImageLossSpec
from piti.training.recipe import Recipe
from piti.training.stages import NETWORKS, Stage, freeze_all_but, parts_named

GIB = 2**30
UTILISATION = 0.35
"""Share of a GPU's peak that training is assumed to reach, including optimiser, data and previews. This holds for
networks large enough to fill a GPU: Dhariwal & Nichol 2021 (arXiv 2105.05233, table 7) report about 30% on V100s for
UNets of this kind. Small ones reach far less."""
SMALL = 2e10
"""FLOPs per image below which a network is assumed to be too small to fill a GPU. Not measured."""
AUTOENCODER = "autoencoder (if of Stable Diffusion's size)"
ADAPTERS = "adapters"
ROOM = 0.9
"""Share of a GPU's memory available to an estimate; fragmentation and cuDNN's workspace need the rest."""


@dataclass(frozen=True)
class GPU:
    """A GPU, from its data sheet."""

    name: str
    peak: float
    """Dense bf16 FLOP/s with float32 accumulation."""
    memory: int
    """Bytes."""


GPUS = {
    "a100": GPU("NVIDIA A100 80GB", 312e12, 80 * GIB),
    "h100": GPU("NVIDIA H100 SXM", 989e12, 80 * GIB),
    "rtx4090": GPU("NVIDIA RTX 4090", 165e12, 24 * GIB),
}
DEFAULT_GPU = "a100"


def gpu_named(name: str) -> GPU:
    """A GPU by its short name. Raises UserError that lists the known ones."""
    if name not in GPUS:
        raise UserError("unknown", remedy=choices(name, GPUS), option="gpu", value=name)
    return GPUS[name]


@dataclass(frozen=True)
class StageCost:
    """Cost of a stage in one process."""

    name: str
    images: int
    """Training images in all steps."""
    flops: float
    """FLOPs of one training image, forward and backward, as a mean over the stage."""
    state: int
    """Bytes that do not depend on the batch: weights, gradients, AdamW's moments, the average."""
    activations: float
    """Bytes saved for the backward pass per image."""
    learning: int = 0
    """Trained parameters."""
    moment: int = 0
    """Bytes needed temporarily without activations: encoding an image, or decoding a preview."""

    def memory(self, batch: int) -> float:
        """Bytes of a training process, without the overhead of the allocator, cuDNN and CUDA."""
        return self.state + max(batch * self.activations, self.moment)

    def rate(self, gpu: GPU) -> float:
        """Estimated images per second on a GPU, at `UTILISATION` of its bf16 peak."""
        return UTILISATION * gpu.peak / self.flops


@dataclass(frozen=True)
class Cost:
    """Cost of a recipe's run."""

    parameters: Mapping[str, int]
    """Parameters of each network."""
    forward: int
    """FLOPs of the translator for one image of the recipe's data, encoder included."""
    stages: tuple[StageCost, ...]

    def memory(self, batch: int) -> float:
        """Bytes of a training process in the stage with the highest need."""
        return max(stage.memory(batch) for stage in self.stages)

    def hours(self, gpu: GPU) -> float:
        """Estimated hours of all stages on one GPU."""
        return sum(stage.images / stage.rate(gpu) for stage in self.stages) / 3600

    def batch_for(self, gpu: GPU, batch: int) -> int | None:
        """The largest divisor of `batch` that fits a GPU; None if not even one image does."""
        fitting = [b for b in range(1, batch + 1) if batch % b == 0 and self.memory(b) <= ROOM * gpu.memory]
        return max(fitting, default=None)


def cost_of(recipe: Recipe, config: Mapping[str, Any]) -> Cost:
    """Cost of a recipe's run. Builds everything on the meta device.

    config: the arguments of its `Translator` or `BaselineNetwork`.
    """
    if recipe.baseline is not None:
        return _cost_of_baseline(recipe, config)
    with torch.device("meta"):
        translator = Translator(**config)
        networks = {name: parts_named(translator, name) for name in NETWORKS}
        parameters = {name: sum(map(_size, parts)) for name, parts in networks.items() if parts}
        if recipe.adapts:
            inject(translator, recipe.lora)
            parameters[ADAPTERS] = sum(one.numel() for one in adapter_parameters(translator, recipe.lora))
    passes: dict[tuple[str, ...], PassCost] = {}
    for trains in dict.fromkeys(stage.trains for stage in recipe.stages):
        passes[trains] = _translator_pass(translator, recipe, trains)
    channels, held = _condition_channels(config), held_bytes(translator, recipe)
    stages = tuple(_stage_cost(recipe, stage, held, passes[stage.trains], channels) for stage in recipe.stages)
    if translator.space_spec.latent:
        latents = _autoencoder_cost(translator.space_spec, recipe)
        parameters[AUTOENCODER] = latents.weights
        stages = tuple(_with_latents(stage, latents) for stage in stages)
    if any(stage.adversarial for stage in recipe.stages):
        parameters["discriminator"] = _size(_discriminator(recipe, channels))
    return Cost(parameters, passes[recipe.stages[0].trains].forward, stages)


# A stage


def held_bytes(translator: Translator, recipe: Recipe) -> int:
    """Bytes of a translator's weights in every stage, with averages and autocast's copies except for frozen ones, and
    with a distillation's teacher."""
    half = 0 if recipe.precision == "no" else 2
    freeze_all_but(translator, recipe.trained, recipe.lora)
    learning = sum(p.numel() for p in translator.parameters() if p.requires_grad)
    low = sum(p.numel() for p in matrices(translator)) if recipe.adapts and half else 0
    teacher = 0 if recipe.distillation is None else (4 + half) * _size(translator)
    return (8 + half) * learning + 4 * (_size(translator) - learning) - 2 * low + teacher


def _stage_cost(recipe: Recipe, stage: Stage, held: int, inner: PassCost, condition_channels: int) -> StageCost:
    """held: see `held_bytes`; inner: the translator's pass. The FLOPs of losses on x̂₀ are weighted by the share of
    images and steps on which they act, their memory by the share of images."""
    half = 0 if recipe.precision == "no" else 2  # autocast's copy of every weight
    flops, activations = float(inner.flops), float(inner.activations)
    state = held + (4 + recipe.optimizer.bytes) * inner.learning  # gradients and two moments
    if recipe.distillation is not None:  # the teacher's guided steps; its weights are in `held`
        flops += recipe.distillation.passes * inner.forward
    for spec, outer in _outer_passes(recipe, stage, condition_channels):
        acting = stage.share_of(spec, recipe.schedule.steps, recipe.visited)
        flops += outer.flops * acting * max(0, stage.steps - spec.after) / stage.steps
        activations += outer.activations * acting
        state += (4 + half) * outer.weights + 12 * outer.learning
    images = stage.steps * recipe.batch * recipe.accumulation
    return StageCost(stage.name, images, flops, state, activations, inner.learning)


_WIDTHS = (128, 256, 512, 512)
"""Channels of the levels of Stable Diffusion's autoencoder, also used by SDXL."""


@dataclass(frozen=True)
class AutoencoderCost:
    """Cost of encoding images to latents and decoding them."""

    weights: int
    """Its parameters."""
    flops: int
    """FLOPs of encoding an image; 0 with cached latents."""
    moment: int
    """Peak bytes of encoding an image or decoding a preview, one image at a time, in float32."""


def _autoencoder_cost(space: SpaceSpec, recipe: Recipe) -> AutoencoderCost:
    """Estimated with an autoencoder of Stable Diffusion's widths, whatever the prior's.

    It runs in TF32, at half the rate of bf16: its FLOPs count twice. If the recipe caches latents, the FLOPs of fixed
    crops, which are encoded once, are not counted.
    """
    levels, side = space.factor.bit_length(), recipe.data.size
    settings: dict[str, Any] = {
        "block_out_channels": (_WIDTHS[0],) * max(0, levels - len(_WIDTHS)) + _WIDTHS[-levels:],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    with torch.device("meta"):
        network = AutoencoderKL(**settings, layers_per_block=2, latent_channels=space.channels)
    network.requires_grad_(False)

    def encode(batch: int) -> Tensor:
        return network.encoder(_images(batch, side).requires_grad_(torch.is_grad_enabled())).sum()

    def decode() -> Tensor:
        return network.decoder(_images(1, side // space.factor, space.channels))

    kept = recipe.latent_cache is not None and recipe.data.crop_scale == (1.0, 1.0)
    flops = 0 if kept else 2 * count_pass(encode, None).forward
    return AutoencoderCost(_size(network), flops, max(most_held(partial(encode, 1)), most_held(decode)))


def _with_latents(stage: StageCost, cost: AutoencoderCost) -> StageCost:
    state = stage.state + 4 * cost.weights
    return replace(stage, flops=stage.flops + cost.flops, state=state, moment=cost.moment)


def _translator_pass(translator: Translator, recipe: Recipe, trains: tuple[str, ...]) -> PassCost:
    """With all weights trained, the FLOPs are three times those of the forward pass: gradients of weights and of their
    inputs cost one each. A frozen UNet behind a trained encoder saves the former."""
    side = recipe.data.size

    def run(batch: int) -> Tensor:
        low_res = None if translator.low_res is None else _images(batch, side // translator.scale)
        t = torch.empty(batch, device="meta", dtype=torch.long)
        space = translator.space_spec
        x_t = _images(batch, side // space.factor, space.channels)
        output, variance = translator(x_t, t, _condition(translator, batch, side), low_res)
        total = output.float().sum()
        return total if variance is None else total + variance.float().sum()

    learning = sum(p.numel() for p in freeze_all_but(translator, trains, recipe.lora))
    checkpoints = Checkpoints() if recipe.checkpointing else None
    if checkpoints is not None:
        translator.unet.enable_gradient_checkpointing(checkpoints)
    found = replace(count_pass(run, _low(recipe), checkpoints), learning=learning)
    translator.zero_grad(set_to_none=True)
    return found


def _condition(translator: Translator, batch: int, side: int) -> Tensor:
    encoder = translator.encoder
    if isinstance(encoder, AlignedEncoder):
        return _images(batch, side, encoder.spec.in_channels)
    if encoder is None:
        return _images(batch, 1, channels=0)
    if isinstance(encoder, TextEncoder | LanguageEncoder):
        return torch.empty(batch, 1, 1, encoder.spec.context, device="meta", dtype=torch.int32)
    return _images(batch, encoder.spec.size, encoder.spec.in_channels)


def _outer_passes(recipe: Recipe, stage: Stage, condition_channels: int) -> list[tuple[ImageLossSpec, PassCost]]:
    """The additional cost of a stage's losses on x̂₀ per image on which they act."""
    found: list[tuple[ImageLossSpec, PassCost]] = []
    if stage.perceptual is not None:
        found.append((stage.perceptual, _perceptual_pass(recipe)))
    if stage.adversarial is not None:
        found.append((stage.adversarial, _adversarial_pass(recipe, stage.adversarial, condition_channels)))
    return found


def _perceptual_pass(recipe: Recipe) -> PassCost:
    """Features of x̂₀ with gradients to it, and of x₀ without."""
    with torch.device("meta"):
        network = PerceptualNetwork(recipe.perceptual)

    def run(batch: int) -> Tensor:
        features = network(_images(batch, recipe.data.size).requires_grad_())
        return torch.stack([x.float().sum() for x in features]).sum()

    found = count_pass(run, _low(recipe))
    return replace(found, flops=found.flops + found.forward, weights=_size(network))


def _condition_channels(config: Mapping[str, Any]) -> int:
    """Condition channels of a translator with this configuration; 0 if it reads no image."""
    return ((config.get("encoder_spec") or config.get("aligned_spec")) or {"in_channels": 0})["in_channels"]


def _discriminator(recipe: Recipe, condition_channels: int) -> PatchDiscriminator | DiscriminatorEnsemble:
    """The recipe's discriminator, on the meta device."""
    spec = recipe.discriminator
    with torch.device("meta"):
        if spec.features is None:
            return PatchDiscriminator(spec, condition_channels=condition_channels)
        return DiscriminatorEnsemble(spec, PerceptualNetwork(spec.features), condition_channels)


def _adversarial_pass(recipe: Recipe, spec: AdversarialLossSpec, condition_channels: int) -> PassCost:
    """The translator's side with gradients only to x̂₀; the discriminator's side on x₀ and x̂₀, with its penalty.

    The penalty is counted as six forward passes: one, its gradient to the images, and twice both to go back through
    them. The discriminator's own backward pass comes when the translator's activations are gone: not added to memory.
    """
    network = _discriminator(recipe, condition_channels)
    side, scale = recipe.data.size, recipe.model.scale

    def run(batch: int, fooled: bool = False) -> Tensor:
        small = _images(batch, side // scale) if scale is not None and recipe.discriminator.conditional else None
        seen = _images(batch, side, condition_channels) if recipe.discriminator.condition else None
        logits = all_logits(network(_images(batch, side).requires_grad_(fooled), small, seen))
        return torch.stack([one.float().sum() for one in logits]).sum()

    judged = count_pass(run, _low(recipe))
    network.requires_grad_(False)
    found = count_pass(partial(run, fooled=True), _low(recipe))
    usual = adversarial_named(spec.kind).gradient_penalty
    penalised = (usual if spec.gradient_penalty is None else spec.gradient_penalty) or spec.r1
    penalty = 6 * judged.forward if penalised else 0
    size = _size(network)
    return replace(found, flops=found.flops + 2 * judged.flops + penalty, learning=size, weights=size)


# A baseline


def _cost_of_baseline(recipe: Recipe, config: Mapping[str, Any]) -> Cost:
    """Its generator's step through the discriminator, and the discriminator's own. Their largest activations, which
    are the generator's, count; batch norms, which mix samples, are counted as other layers are."""
    with torch.device("meta"):
        network = BaselineNetwork(**config)
        baseline, judge = network.baseline, network.baseline.discriminator()
        perceptual = PerceptualNetwork(recipe.perceptual) if baseline.perceptual else None
    side = recipe.data.size

    def make(batch: int) -> tuple[Tensor, Tensor, Tensor]:
        condition = _images(batch, side, baseline.channels)
        noise = torch.empty(batch, *baseline.noise_shape, device="meta") if baseline.noise_shape else None
        return baseline.seen(condition), network(condition, noise), _images(batch, side)

    def generate(batch: int) -> Tensor:
        return _total(baseline.generator_losses(judge, *make(batch), perceptual))

    def judged(batch: int) -> Tensor:
        seen = baseline.seen(_images(batch, side, baseline.channels))
        uniform = torch.empty(batch, baseline.draws, device="meta")
        return _total(baseline.discriminator_losses(judge, seen, _images(batch, side), _images(batch, side), uniform))

    judge.requires_grad_(False)
    made = count_pass(generate, _low(recipe))
    alone = count_pass(lambda batch: make(batch)[1].float().sum(), _low(recipe))
    judge.requires_grad_(True)
    learned = count_pass(judged, _low(recipe))
    sizes = {"generator": _size(network), "discriminator": _size(judge)}
    half = 0 if recipe.precision == "no" else 2
    state = (20 + half) * sizes["generator"] + (16 + half) * sizes["discriminator"]  # the generator has an average
    activations = max(made.activations, learned.activations)
    images = recipe.batch * recipe.accumulation
    stages = tuple(
        StageCost(stage.name, stage.steps * images, made.flops + learned.flops, state, activations, sizes["generator"])
        for stage in recipe.stages
    )
    return Cost(sizes, alone.forward, stages)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([loss.float().sum() for loss in losses.values()]).sum()


def _low(recipe: Recipe) -> torch.dtype | None:
    return None if recipe.precision == "no" else torch.bfloat16  # fp16 is as large


def _images(batch: int, side: int, channels: int = 3) -> Tensor:
    return torch.empty(batch, channels, side, side, device="meta")


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
