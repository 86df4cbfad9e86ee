"""Where networks run."""

from __future__ import annotations

import torch

from piti.errors import UserError


def usable_device(name: str | None = None) -> torch.device:
    """The named device, or the fastest kind that torch sees here. Raises UserError for one that is not there."""
    try:
        device = torch.device(name or _fastest_kind())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; cpu always works") from None
    return device


def _fastest_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
