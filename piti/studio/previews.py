"""The emerging pictures of a job, small enough to be sent a few times a second."""

from __future__ import annotations

from io import BytesIO

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from piti.frames import Frame
from piti.images import to_pil

SIDE = 256
"""The longest side of a preview, in pixels."""
_QUALITY = 80


def drawn_previews(frame: Frame, x0: Float[Tensor, "B 3 H W"]) -> tuple[bytes, ...]:
    """A JPEG of each image, cut out of the canvas of either network. x0: x̂₀ in [-1, 1].

    What is not finite is drawn grey: whether it is an error is for the pipeline to say.
    """
    zoom = x0.shape[-1] / (frame.canvas[1] * frame.scale)  # 1, or less for the base's canvas
    height, width = (max(1, round(side * zoom)) for side in (frame.height, frame.width))
    cut = torch.nan_to_num(x0[..., :height, :width].detach().float().cpu(), 0.0, 1.0, -1.0)
    return tuple(_jpeg(image) for image in to_pil(cut))


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((SIDE, SIDE))
    file = BytesIO()
    image.save(file, format="JPEG", quality=_QUALITY)
    return file.getvalue()
