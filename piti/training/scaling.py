"""Precision fp16: loss scaling against underflow of gradients, with a scale per optimiser.

One scale for both sides of an adversary would be wrong: an overflow of one would skip the other's step too, and the
first one's update would change the scale of gradients that the second has not used yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def adversary_scaler(accelerator: Accelerator, adversarial: bool) -> torch.amp.GradScaler | None:
    """The scaler of an adversary's losses, saved in the run's checkpoints; None without scaling."""
    if accelerator.scaler is None or not adversarial:
        return None
    scaler = torch.amp.GradScaler(accelerator.device.type)
    accelerator.register_for_checkpointing(scaler)
    return scaler


def backward(accelerator: Accelerator, optimizer: Any, loss: Tensor) -> None:
    """Backward pass of a loss with the optimiser's scale."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or scaler is accelerator.scaler:
        accelerator.backward(loss)
    else:
        scaler.scale(loss).backward()


def clipped(accelerator: Accelerator, optimizer: Any, parameters: Iterable[nn.Parameter], most: float) -> Any:
    """Unscale and clip an optimiser's gradients to a norm of `most`; returns the norm before clipping."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return accelerator.clip_grad_norm_(parameters, most)
    scaler.unscale_(optimizer.optimizer)
    return nn.utils.clip_grad_norm_(parameters, most)
