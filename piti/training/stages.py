"""Stages put to work: freezing, and one optimiser for what learns."""

from __future__ import annotations

import torch
from torch import nn

from piti.models import Translator
from piti.training.recipes import NETWORKS, OptimizerSpec, Stage


def freeze_all_but(translator: Translator, trains: tuple[str, ...]) -> list[nn.Parameter]:
    """Let the named networks learn and the others not; returns the parameters that learn.

    A frozen network collects no gradients. Gradients still flow through it to what lies before it.
    """
    learning: list[nn.Parameter] = []
    for name in NETWORKS:
        network = translator.get_submodule(name)
        network.requires_grad_(name in trains)
        if name in trains:
            learning += list(network.parameters())
    return learning


def build_optimizer(parameters: list[nn.Parameter], stage: Stage, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over what the stage trains; its kernel is fused where the parameters' device has one."""
    fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=stage.lr_at(0), betas=spec.betas, weight_decay=spec.weight_decay, fused=fused
    )
