"""What the baselines see of a mask: its classes, where it says nothing, and where one region ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Encoded = Shaped[Tensor, "b c h w"]


def with_ignored(encoded: Encoded) -> Float[Tensor, "b c1 h w"]:
    """One-hot classes, and a last channel of ones where no class is given: the label of ignored pixels."""
    one_hot = encoded.float()
    return torch.cat([one_hot, 1 - one_hot.amax(dim=1, keepdim=True)], dim=1)


def labels_of(layout: Float[Tensor, "b c1 h w"]) -> Int[Tensor, "b h w"]:
    """Class of every pixel, 0 … C - 1; C where it is ignored."""
    return layout.argmax(dim=1)


def edges_of(labels: Int[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where one of the four neighbours has another label, on both sides of a border (Wang et al. 2018, section 3.3).

    They draw the borders of objects; of a mask without objects these are the borders of its classes.
    """
    across = labels[:, :, 1:] != labels[:, :, :-1]  # [B, H, W-1]
    down = labels[:, 1:] != labels[:, :-1]  # [B, H-1, W]
    edges = F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(down, (0, 0, 1, 0)) | F.pad(down, (0, 0, 0, 1))
    return edges[:, None].float()
