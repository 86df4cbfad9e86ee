"""Precision fp16: losses scaled up so that small gradients survive, by a scale of its own for each optimiser.

One scale for both sides of an adversary would be wrong: an overflow of one would skip the other's step too, and the
first one's update would change the scale under gradients that the second has yet to take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def adversary_scaler(accelerator: Accelerator, adversarial: bool) -> torch.amp.GradScaler | None:
    """The scale of an adversary's losses, saved in the run's checkpoints; none where nothing is scaled."""
    if accelerator.scaler is None or not adversarial:
        return None
    scaler = torch.amp.GradScaler(accelerator.device.type)
    accelerator.register_for_checkpointing(scaler)
    return scaler


def backward(accelerator: Accelerator, optimizer: Any, loss: Tensor) -> None:
    """Gradients of a loss that an optimiser minimises, in its scale."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or scaler is accelerator.scaler:
        accelerator.backward(loss)
    else:
        scaler.scale(loss).backward()


def clipped(accelerator: Accelerator, optimizer: Any, parameters: Iterable[nn.Parameter], most: float) -> Any:
    """Clip an optimiser's gradients, out of their scale, to a norm of `most`; returns the norm before that."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return accelerator.clip_grad_norm_(parameters, most)
    scaler.unscale_(optimizer.optimizer)
    return nn.utils.clip_grad_norm_(parameters, most)
