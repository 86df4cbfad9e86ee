"""Real-ESRGAN's generator (Wang et al. 2021, arXiv 2107.10833; the network is ESRGAN's, Wang et al. 2018, arXiv
1809.00219): a common upsampler, for comparison.

Weights are not part of the package. Key names: conv_first, body.N.rdbM.convK, conv_body, conv_up1, conv_up2, conv_hr,
conv_last, each with .weight and .bias.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.images import to_pil, to_tensor

WIDTH, GROWTH, BLOCKS = 64, 32, 23
RESIDUAL = 0.2
"""Scale of a block's residual (Wang et al. 2018, section 3.1)."""


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class DenseBlock(nn.Module):
    """Five densely connected convolutions."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for k in range(4):
            self.add_module(f"conv{k + 1}", _conv(width + k * growth, growth))
        self.conv5 = _conv(width + 4 * growth, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        seen = [x]
        for k in range(4):
            seen.append(F.leaky_relu(self.get_submodule(f"conv{k + 1}")(torch.cat(seen, dim=1)), 0.2))
        return x + RESIDUAL * self.conv5(torch.cat(seen, dim=1))


class ResidualInResidual(nn.Module):
    """Three dense blocks with a residual connection."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Images in [-1, 1] => the same, four times as large; 16.7M parameters at the published size."""

    def __init__(self, width: int = WIDTH, growth: int = GROWTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.conv_first = _conv(3, width)
        self.body = nn.ModuleList(ResidualInResidual(width, growth) for _ in range(blocks))
        self.conv_body, self.conv_up1, self.conv_up2 = (_conv(width, width) for _ in range(3))
        self.conv_hr, self.conv_last = _conv(width, width), _conv(width, 3)

    def forward(self, small: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 4*h 4*w"]:
        """small: in [-1, 1]; converted to [0, 1] for the network."""
        first = self.conv_first((small + 1) / 2)  # [B, 64, h, w]
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        for up in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)  # [B, 64, 2h, 2w]
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))
        return (2 * x - 1).clamp(-1, 1)

    @torch.inference_mode()
    def enlarged(self, image: Image.Image) -> Image.Image:
        """Enlarge an RGB image four times, on the device of the weights."""
        (made,) = to_pil(self(to_tensor(image)[None].to(self.conv_first.weight.device)))
        return made


def load_real_esrgan(path: Path) -> RRDBNet:
    """Load Real-ESRGAN x4plus from a safetensors file. Raises UserError if it is missing, or has another network."""
    try:
        weights = {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no readable .safetensors file of Real-ESRGAN x4plus ({error})") from error
    with torch.device("meta"):
        network = RRDBNet()
    own = {key: value.shape for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in weights.items()} != own:
        odd = sorted(set(own) ^ set(weights)) or [key for key in own if own[key] != weights[key].shape]
        raise UserError(f"{path} does not hold Real-ESRGAN x4plus: {len(odd)} tensors differ, such as {odd[0]}")
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()
