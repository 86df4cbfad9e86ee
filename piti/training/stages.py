"""Stages put to work: what learns, by which optimisers, from which losses and small images."""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from piti.baselines import ImageNetwork
from piti.checkpoints.lora import adapter_parameters
from piti.conditions import Condition
from piti.core.seeding import derive_seed
from piti.data.batches import LowRes
from piti.diffusion.losses import Weighting, detail, weighting_named
from piti.models import Translator
from piti.models.discriminator import DiscriminatorEnsemble, PatchDiscriminator
from piti.models.perceptual import PerceptualNetwork
from piti.training.adversarial import ImageLosses, build_adversary
from piti.training.recipe import GENERATOR, LORA, NETWORKS, OptimizerSpec, Recipe, Stage


def freeze_all_but(network: ImageNetwork, trains: tuple[str, ...]) -> list[nn.Parameter]:
    """Let the named networks learn and the others not; returns the parameters that learn.

    A frozen network collects no gradients. Gradients still flow through it to what lies before it.
    """
    learning: list[nn.Parameter] = []
    for name in (*NETWORKS, GENERATOR):
        for part in parts_named(network, name):
            part.requires_grad_(name in trains)
            if name in trains:
                learning += list(part.parameters())
    if LORA in trains and isinstance(network, Translator):
        adapters = adapter_parameters(network)
        for parameter in adapters:
            parameter.requires_grad_(True)
        learning += adapters
    return learning


def parts_named(network: ImageNetwork, name: str) -> list[nn.Module]:
    """The modules that a recipe calls by a name of `NETWORKS`: a pixel head belongs to its UNet. An upsampler may
    have no encoder."""
    names = (name, "head") if name == "unet" else (name,)
    return [part for part in (getattr(network, one, None) for one in names) if part is not None]


def build_optimizer(parameters: list[nn.Parameter], stage: Stage, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over what the stage trains; its kernel is fused where the parameters' device has one."""
    fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=stage.lr_at(0), betas=spec.betas, weight_decay=spec.weight_decay, fused=fused
    )


def low_res_of(recipe: Recipe) -> LowRes | None:
    """What makes the recipe's small images; none for a base."""
    scale = recipe.model.scale
    return None if scale is None else LowRes(scale, recipe.degradation)


def weighting_of(recipe: Recipe) -> Weighting:
    """How the recipe's loss weighs the timesteps; "detail" is meant for the deviation of the recipe's model."""
    if recipe.loss.weighting == "detail" and recipe.model.detail is not None:
        return partial(detail, std=recipe.model.detail)
    return weighting_named(recipe.loss.weighting)


def build_discriminator(
    recipe: Recipe, condition: Condition, judging: PerceptualNetwork | None = None
) -> PatchDiscriminator | DiscriminatorEnsemble | None:
    """One for all adversarial stages, its weights drawn from the recipe's seed; none where there are none.

    judging: the frozen network of `discriminator.features`, where the recipe has them.
    """
    if not any(stage.adversarial for stage in recipe.stages):
        return None
    torch.manual_seed(derive_seed(recipe.seed, "discriminator"))
    if recipe.discriminator.features is None:
        return PatchDiscriminator(recipe.discriminator, condition_channels=condition.channels)
    return DiscriminatorEnsemble(recipe.discriminator, judging, condition.channels)


def losses_of(
    recipe: Recipe,
    stage: Stage,
    perceptual: PerceptualNetwork | None,
    discriminator: nn.Module | None,
    steps: int,
    accelerator: Accelerator,
) -> ImageLosses:
    """The stage's losses on x̂₀, their networks on the device and prepared. steps: T of the noise schedule."""
    compared = adversary = consistency = None
    if stage.perceptual is not None and perceptual is not None:
        compared = (stage.perceptual, perceptual.to(accelerator.device))
    if stage.adversarial is not None and discriminator is not None:
        spec = stage.adversarial
        adversary = (spec, build_adversary(discriminator, spec.lr, spec.betas, accelerator))
    if stage.consistency is not None:
        consistency = (stage.consistency, recipe.degradation is None)
    return ImageLosses(steps, accelerator, compared, adversary, stage.pixel, consistency, recipe.seed, stage.share_of)
