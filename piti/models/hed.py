"""HED, the edge network of the paper's sketches (Xie and Tu 2015, arXiv 1504.06375): VGG-16 with an output a block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from piti.core.errors import UserError
from piti.models.perceptual import read_tensors

MEAN_BGR = (104.00699, 116.66877, 122.67892)
"""Of the pixels, 0 to 255, that the network was trained with."""
_DEPTHS, _WIDTHS = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)
_STRIDE = 16  # of the deepest block
_WORDS = ("One", "Two", "Thr", "Fou", "Fiv")
_FOREIGN = re.compile(r"(?:module|net)(Vgg|Score|Combine)(One|Two|Thr|Fou|Fiv)?[a-z]*(?:\.(\d+))?\.(weight|bias)")


class HED(nn.Module):
    """Photographs => how much each pixel is an edge. Frozen; its weights are random until they are loaded."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        c_in = 3
        for number, (depth, width) in enumerate(zip(_DEPTHS, _WIDTHS, strict=True), start=1):
            convolutions = [nn.Conv2d(width if k else c_in, width, 3, padding=1) for k in range(depth)]
            self.add_module(f"block{number}", nn.ModuleList(convolutions))
            self.add_module(f"dsn{number}", nn.Conv2d(width, 1, 1))
            c_in = width
        self.fuse = nn.Conv2d(len(_DEPTHS), 1, 1)
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, photographs: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """photographs: RGB. Returns the fused map in [0, 1]; sides are continued to multiples of 16, and cut off."""
        height, width = photographs.shape[-2:]
        x = photographs.flip(1).to(self.mean.dtype)  # [B, 3, H, W], BGR
        x = F.pad(x - self.mean, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        size, sides = x.shape[-2:], []
        for number in range(1, len(_DEPTHS) + 1):
            x = F.max_pool2d(x, 2) if number > 1 else x
            for convolution in self.get_submodule(f"block{number}").children():
                x = convolution(x).relu()  # [B, C, H/2ᵏ, W/2ᵏ]
            side = self.get_submodule(f"dsn{number}")(x)
            sides.append(F.interpolate(side, size, mode="bilinear"))  # [B, 1, H, W]
        fused = self.fuse(torch.cat(sides, 1)).sigmoid()
        return fused[:, 0, :height, :width]


def load_hed(path: Path) -> HED:
    """The network with the weights of a file, in float32.

    Names may be `blockK.N`, `dsnK` and `fuse`, or those of the PyTorch port of the authors' network
    (`netVggOne.0` … `netCombine.0`, also with `module` for `net`). Raises UserError.
    """
    network, found = HED(), _renamed(read_tensors(path))
    wanted = network.state_dict()
    lacking = [key for key, x in wanted.items() if key not in found or found[key].shape != x.shape]
    foreign = sorted(found.keys() - wanted.keys())
    if lacking or foreign:
        what = [f"{len(lacking)} tensors are missing or of another shape (such as {lacking[0]})"] if lacking else []
        what += [f"{len(foreign)} are unknown (such as {foreign[0]})"] if foreign else []
        raise UserError(
            f"{path}: is not HED as its authors trained it: {', '.join(what)}; give a file with blockK.N, dsnK and "
            "fuse (ControlNet's own edge network, ControlNetHED.pth, is another one)"
        )
    network.load_state_dict({key: found[key].float() for key in wanted})
    return network


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A port's names as ours; others as they are."""
    names: dict[str, str] = {}
    for name in weights:
        match = _FOREIGN.fullmatch(name)
        if match is None:
            continue
        part, word, place, kind = match.groups()
        if part == "Combine":
            names[name] = f"fuse.{kind}"
            continue
        number = _WORDS.index(word) + 1
        # convolutions and activations in turn, after a pool from the second block on
        names[name] = f"dsn{number}.{kind}" if part == "Score" else f"block{number}.{int(place) // 2}.{kind}"
    return {names.get(name, name): x for name, x in weights.items()}
