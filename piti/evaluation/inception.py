"""The Inception network of FID: the graph of 2015-12-05 used by Heusel et al. 2017 (arXiv 1706.08500).

Inception V3 (Szegedy et al. 2015, arXiv 1512.00567) as published for TensorFlow at that time. It differs from later
releases: 3 × 3 averages exclude the padding, and the last block uses max pooling instead of average pooling. Modules
are named as in `pytorch-fid`, which publishes its weights for PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from piti.checkpoints.weights import check_finite, read_weights
from piti.core.errors import UserError

FILE = "pt_inception-2015-12-05-6726825d.pth"
"""File name of the PyTorch weights; it ends with the first digits of their SHA-256."""
SIDE = 299
DIMENSIONS = 2048
MARK = "Conv2d_1a_3x3.conv.weight"
"""A tensor name that no other network's file has."""
_UNUSED = ("fc.", "AuxLogits.")  # the classifier, and training's second one
_COUNTER = ".num_batches_tracked"  # not in all files


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if same else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.bn(self.conv(x)).relu()


class Step(NamedTuple):
    """One convolution of a branch. Padded to the same size with stride 1, unpadded with stride 2."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = tuple[Step | tuple[Step, ...], ...]
"""Consecutive steps; those in an inner tuple are parallel."""


class Mixed(nn.Module):
    """Parallel branches and a pooled one, concatenated along the channels."""

    def __init__(self, c_in: int, branches: Sequence[Branch], pool: Callable[[Tensor], Tensor], pooled: int) -> None:
        """pooled: channels to which the pooled branch is projected, 0 for no projection."""
        super().__init__()
        self.pool = pool
        self.paths: list[list[tuple[str, ...]]] = []
        self.channels = pooled or c_in
        for branch in branches:
            self.paths.append([])
            c = c_in
            for stage in branch:
                steps = (stage,) if isinstance(stage, Step) else stage
                for step in steps:
                    convolution = Convolution(c, step.channels, step.kernel, step.stride, same=step.stride == 1)
                    self.add_module(step.name, convolution)
                self.paths[-1].append(tuple(step.name for step in steps))
                c = sum(step.channels for step in steps)
            self.channels += c
        self.branch_pool = Convolution(c_in, pooled, (1, 1), 1, same=True) if pooled else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        joined = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            joined.append(y)
        return torch.cat([*joined, self.branch_pool(self.pool(x))], 1)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def _at_35(c_in: int, pooled: int) -> Mixed:
    """Block at 35 × 35 (A in pytorch-fid)."""
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3)))
    five = (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))
    return Mixed(c_in, [(Step("branch1x1", 64),), five, double], _average, pooled)


def _to_17(c_in: int) -> Mixed:
    """From 35 × 35 to 17 × 17 (B)."""
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2))
    return Mixed(c_in, [(Step("branch3x3", 384, (3, 3), 2),), double], _halved, 0)


def _at_17(c_in: int, c: int) -> Mixed:
    """Block at 17 × 17, with 7 × 7 kernels factorised into 1 × 7 and 7 × 1 (C)."""
    row, column = (1, 7), (7, 1)
    once = (Step("branch7x7_1", c), Step("branch7x7_2", c, row), Step("branch7x7_3", 192, column))
    twice = (
        Step("branch7x7dbl_1", c),
        Step("branch7x7dbl_2", c, column),
        Step("branch7x7dbl_3", c, row),
        Step("branch7x7dbl_4", c, column),
        Step("branch7x7dbl_5", 192, row),
    )
    return Mixed(c_in, [(Step("branch1x1", 192),), once, twice], _average, 192)


def _to_8(c_in: int) -> Mixed:
    """From 17 × 17 to 8 × 8 (D)."""
    three = (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2))
    seven = (
        Step("branch7x7x3_1", 192),
        Step("branch7x7x3_2", 192, (1, 7)),
        Step("branch7x7x3_3", 192, (7, 1)),
        Step("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Mixed(c_in, [three, seven], _halved, 0)


def _at_8(c_in: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """Block at 8 × 8, whose branches end in parallel 1 × 3 and 3 × 1 kernels (E)."""
    row, column = (1, 3), (3, 1)
    three = (Step("branch3x3_1", 384), (Step("branch3x3_2a", 384, row), Step("branch3x3_2b", 384, column)))
    double = (
        Step("branch3x3dbl_1", 448),
        Step("branch3x3dbl_2", 384, (3, 3)),
        (Step("branch3x3dbl_3a", 384, row), Step("branch3x3dbl_3b", 384, column)),
    )
    return Mixed(c_in, [(Step("branch1x1", 320),), three, double], pool, 192)


class Inception(nn.Module):
    """Images in [-1, 1] [B, 3, 299, 299] => the average of the last block's output [B, 2048]. Frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), 1, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), 1, same=True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1, same=False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), 1, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _at_35(192, 32), _at_35(256, 64), _at_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b, self.Mixed_6c = _at_17(768, 128), _at_17(768, 160)
        self.Mixed_6d, self.Mixed_6e = _at_17(768, 160), _at_17(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b, self.Mixed_7c = _at_8(1280, _average), _at_8(2048, _maximum)
        self.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images))  # [B, 32, 147, 147]
        x = _halved(self.Conv2d_2b_3x3(x))  # [B, 64, 73, 73]
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # [B, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [B, 288, 35, 35]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # [B, 768, 17, 17]
        x = self.Mixed_6e(self.Mixed_6d(x))  # [B, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        return x.mean((2, 3))  # [B, 2048]


def tf1_resize(image: Float[Tensor, "c h w"], side: int) -> Float[Tensor, "c side side"]:
    """Bilinear resizing as in TensorFlow 1 (ResizeBilinear without aligned corners), the first step of FID's graph.

    Pixel i of the result is at i · h/side of the image, without half-pixel offset or antialiasing.
    """
    for dim in (-1, -2):
        size = image.shape[dim]
        place = torch.arange(side, dtype=torch.float32, device=image.device) * torch.tensor(size / side)
        low = place.long().clamp(max=size - 1)
        share = (place - low).view(-1, *([1] * (-1 - dim)))
        near, far = image.index_select(dim, low), image.index_select(dim, (low + 1).clamp(max=size - 1))
        image = near + (far - near) * share
    return image


def load_inception(path: Path) -> Inception:
    """The network with the weights of a file with pytorch-fid's names (`FILE`, or .safetensors). Raises UserError."""
    found = {key: value for key, value in read_weights(path).items() if not key.startswith(_UNUSED)}
    with torch.device("meta"):  # skip random initialisation
        network = Inception()
    needed = {key: value for key, value in network.state_dict().items() if not key.endswith(_COUNTER)}
    missing = sorted(needed.keys() - found.keys())
    foreign = sorted(key for key in found.keys() - needed.keys() if not key.endswith(_COUNTER))
    odd = [key for key in needed.keys() & found.keys() if found[key].shape != needed[key].shape]
    if missing or foreign or odd:
        such = (missing or foreign or sorted(odd))[0]
        raise UserError(
            f"{path} does not contain FID's Inception: {len(missing)} of its {len(needed)} tensors are missing, "
            f"{len(foreign)} unknown, {len(odd)} of another shape (such as {such}); give {FILE}"
        )
    for key in needed:
        check_finite(path, key, found[key])
    counters = {key: torch.zeros((), dtype=torch.long) for key in network.state_dict().keys() - needed.keys()}
    network.load_state_dict({key: found[key].float() for key in needed} | counters, assign=True)
    return network
