"""Training stages: trained networks, steps, learning rate and losses; freezing and optimisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from piti.baselines import ImageNetwork
from piti.checkpoints.lora import LoraSpec, adapter_parameters
from piti.core.errors import UserError, count_of
from piti.core.spec import Spec
from piti.diffusion.losses import acts_at
from piti.models import Translator
from piti.training.losses import (
    AdversarialLossSpec,
    Beta,
    ConsistencyLossSpec,
    DiffusionLossSpec,
    PerceptualLossSpec,
    PixelLossSpec,
    RangedLossSpec,
)

NETWORKS = ("encoder", "unet")
GENERATOR = "generator"
"""The network that a baseline's stages train."""
FUSED = frozenset({"cpu", "cuda"})
"""Device types with a fused AdamW kernel."""
LORA = "lora"
"""Low-rank adapters on the UNet, trained instead of it."""


class Stage(Spec):
    """A training stage (PITI, section 3.3 and appendix A)."""

    name: str = "joint"
    """Name of the stage in the log and in errors."""
    trains: tuple[Literal["encoder", "unet", "lora", "generator"], ...] = NETWORKS
    """The networks to train, or `lora` instead of the UNet; all others are frozen and stay bit-identical."""
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    lr: float = Field(default=3e-5, gt=0)
    """Learning rate of AdamW after the warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    decay: float = Field(default=0.0, ge=0, le=1)
    """Last fraction of the stage, over which the learning rate decays to 0 along a cosine."""
    condition_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of conditions replaced by the null condition in this stage; null: the recipe's."""
    from_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of samples with the last timestep, T − 1, where sampling starts; a one-step sampler visits no other."""
    diffusion: DiffusionLossSpec = DiffusionLossSpec()
    """Eq. 3: its weight, and the timesteps at which it acts."""
    pixel: PixelLossSpec | None = None
    """L1 loss on x̂₀; not in the paper."""
    consistency: ConsistencyLossSpec | None = None
    """For an upsampler: loss between the downscaled x̂₀ and the small image; not in the paper."""
    perceptual: PerceptualLossSpec | None = None
    """Eq. 4 on x̂₀, with the recipe's `perceptual` network."""
    adversarial: AdversarialLossSpec | None = None
    """Eq. 5 on x̂₀, with the recipe's `discriminator`."""

    @field_validator("trains")
    @classmethod
    def _someone(cls, trains: tuple[str, ...]) -> tuple[str, ...]:
        if not trains:
            raise ValueError(f"nothing is trained; name some of {', '.join((*NETWORKS, LORA, GENERATOR))}")
        return trains

    def share_of(self, loss: RangedLossSpec, timesteps: int, visited: Sequence[int] | None = None) -> float:
        """Share of samples at whose timesteps a loss acts. visited: the timesteps of the samples, equally likely; None:
        all, and the last with `from_noise`."""
        if visited is not None:
            return acts_at(torch.tensor(visited), timesteps, loss.noise).double().mean().item()
        last = 1.0 if acts_at(torch.tensor([timesteps - 1]), timesteps, loss.noise).item() else 0.0
        return self.from_noise * last + (1 - self.from_noise) * loss.count(timesteps) / timesteps

    def too_late(self) -> str:
        """A note on the losses that would begin only after the stage's last step; empty if there are none."""
        late = [name for name in ("perceptual", "adversarial") if self._begins(name) >= self.steps]
        steps = count_of(self.steps, "step")
        return f"no effect within its {steps}: {' and '.join(late)} (lower 'after')" if late else ""

    def _begins(self, name: str) -> int:
        """The step from which a loss on x̂₀ acts; 0 without this loss."""
        loss = getattr(self, name)
        return loss.after if loss is not None and loss.weight else 0

    def lr_at(self, step: int) -> float:
        """The learning rate of this stage's step `step`, counted from 0."""
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        start = self.steps * (1 - self.decay)
        if step > start:
            rate *= 0.5 * (1 + math.cos(math.pi * (step - start) / (self.steps - start)))
        return rate


class OptimizerSpec(Spec):
    """AdamW."""

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit stores its moments in 8 bits, a quarter of the memory, with bitsandbytes (Dettmers et al. 2021, arXiv
    2110.02861)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the total gradient; larger ones are clipped."""

    @property
    def bytes(self) -> int:
        """Bytes of both moments of one parameter."""
        return 8 if self.kind == "adamw" else 2


def freeze_all_but(network: ImageNetwork, trains: tuple[str, ...], lora: LoraSpec | None = None) -> list[nn.Parameter]:
    """Freeze all networks but the named ones; returns the trained parameters. lora: the recipe's adapters, if `trains`
    names them; None: `LoraSpec()`.

    A frozen network gets no gradients, but they flow through it to the networks before it.
    """
    learning: list[nn.Parameter] = []
    for name in (*NETWORKS, GENERATOR):
        for part in parts_named(network, name):
            part.requires_grad_(name in trains)
            if name in trains:
                learning += list(part.parameters())
    if LORA in trains and isinstance(network, Translator):
        adapters = adapter_parameters(network, lora or LoraSpec())
        for parameter in adapters:
            parameter.requires_grad_(True)
        learning += adapters
    return learning


def parts_named(network: ImageNetwork, name: str) -> list[nn.Module]:
    """The modules of a name in `NETWORKS`; a pixel head belongs to its UNet. An upsampler may have no encoder."""
    names = (name, "head") if name == "unet" else (name,)
    return [part for part in (getattr(network, one, None) for one in names) if part is not None]


def build_optimizer(parameters: list[nn.Parameter], stage: Stage, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """AdamW for the trained parameters, fused if their device supports it. Raises UserError if 8-bit AdamW is not
    possible."""
    settings: dict[str, Any] = {"lr": stage.lr_at(0), "betas": spec.betas, "weight_decay": spec.weight_decay}
    if spec.kind == "adamw8bit":
        return eight_bits().AdamW8bit(parameters, **settings)
    fused = all(p.device.type in FUSED for p in parameters)
    return torch.optim.AdamW(parameters, fused=fused, **settings)


def lay_out_moments(optimizer: Any) -> None:
    """Give AdamW's moments the memory layout of their parameters, after loading.

    A checkpoint keeps the layout of its device, which differs on CUDA (`lay_out`). The fused kernel iterates over
    memory: on a CPU it would silently pair moments with wrong weights, on CUDA it raises an error.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for parameter, state in optimizer.state.items():
        for name, moment in state.items():
            if moment.shape == parameter.shape and moment.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def eight_bits() -> Any:
    """The optimisers of bitsandbytes. Raises UserError if it is not installed or cannot be loaded."""
    try:
        import bitsandbytes.optim as optimizers  # pyright: ignore[reportMissingImports]
    except Exception as error:  # errors of many kinds if its library cannot be loaded
        missing = isinstance(error, ModuleNotFoundError)
        raise UserError(
            "optimizer.kind: adamw8bit needs bitsandbytes, which "
            + ("is not installed" if missing else f"does not load here ({error})"),
            remedy="pip install 'piti[adamw8bit]', or use optimizer.kind: adamw",
        ) from error
    return optimizers
