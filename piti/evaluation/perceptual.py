"""Perceptual distances of images: LPIPS as published, and distances in the features of any frozen classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor

from piti.checkpoints.weights import read_weights
from piti.core.errors import UserError, option
from piti.core.files import file_hash
from piti.core.spec import Spec, choices
from piti.models.perceptual import NETWORKS, PerceptualNetwork, PerceptualSpec, load_perceptual, weights_file

_TINY = 1e-10  # beside the length of a feature, which may be 0
_HEAD = "lin{}.model.1.weight"  # as the published files name the weights of a layer's channels
_VGG_RELUS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3


@dataclass(frozen=True)
class LpipsNetwork:
    """A classifier that LPIPS has learned weights for."""

    network: str
    """In `piti.models.perceptual.NETWORKS`."""
    layers: tuple[int, ...]


LPIPS: Mapping[str, LpipsNetwork] = {
    "lpips-alex": LpipsNetwork("alexnet", NETWORKS["alexnet"].layers),
    "lpips-vgg": LpipsNetwork("vgg16", _VGG_RELUS),
}


class LpipsSpec(Spec):
    """LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): a classifier's features, its channels weighted as learned."""

    network: str = "lpips-alex"
    """A name in `LPIPS`."""
    weights: str | None = None
    """The classifier's file (.safetensors, or .pth as torchvision's); none: the usual one, where torch.hub keeps it."""
    heads: str | None = None
    """The file of learned weights, as the package lpips has it (`weights/v0.1/alex.pth`); none: `lpips_alex.pth` or
    `.safetensors` beside the classifier's file."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, network: str) -> str:
        if network not in LPIPS:
            raise UserError(f"unknown kind of LPIPS '{network}'; {choices(network, LPIPS)}")
        return network

    @property
    def classifier(self) -> PerceptualSpec:
        """The network below. Raises UserError where its usual file is not there."""
        known, weights = LPIPS[self.network], self.weights
        if weights is None:
            usual = Path(torch.hub.get_dir()) / "checkpoints" / NETWORKS[known.network].file
            if not usual.is_file():
                raise UserError(
                    f"the weights of {known.network} are not at {usual}",
                    remedy=f"put torchvision's file there, or give its path as {option('perceptual_weights')}",
                    option="perceptual",
                    value=self.network,
                )
            weights = str(usual)
        return PerceptualSpec(network=known.network, weights=weights, layers=known.layers)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """Modules of the classifier, in torchvision's numbering, whose outputs are compared."""
        return LPIPS[self.network].layers


@dataclass(frozen=True)
class PerceptualJudge:
    """A network whose features compare images."""

    network: PerceptualNetwork
    name: str
    source: str
    """The file or hub repository of its weights."""
    sha256: str
    """Of the weights' file."""
    heads: tuple[Float[Tensor, " _C"], ...] | None = None
    """LPIPS: what each channel of each layer counts; none: all alike."""
    heads_sha256: str = ""
    """Of the file of `heads`."""

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " N"]:
        """Of images by their unit features, see `perceptual_distance`."""
        return perceptual_distance(a, b, self.heads)


def open_perceptual(spec: PerceptualSpec | LpipsSpec, device: torch.device) -> PerceptualJudge:
    """The network with its weights. Raises UserError where they are missing or another network's."""
    classifier = spec.classifier if isinstance(spec, LpipsSpec) else spec
    path = weights_file(classifier)
    network, source = load_perceptual(classifier).to(device), classifier.weights or str(path)
    if not isinstance(spec, LpipsSpec):
        return PerceptualJudge(network, spec.network, source, file_hash(path))
    file = _heads_file(spec, path)
    heads = tuple(head.to(device) for head in read_heads(file, network.widths))
    return PerceptualJudge(network, spec.network, source, file_hash(path), heads, file_hash(file))


def _heads_file(spec: LpipsSpec, classifier: Path) -> Path:
    """Where the learned weights lie. Raises UserError."""
    kind = spec.network.removeprefix("lpips-")
    if spec.heads is not None:
        return Path(spec.heads).expanduser()
    beside = [classifier.parent / f"lpips_{kind}{suffix}" for suffix in (".safetensors", ".pth")]
    for file in beside:
        if file.is_file():
            return file
    raise UserError(
        f"LPIPS's learned weights are not at {beside[0]} nor {beside[1].name}",
        remedy=f"give the file weights/v0.1/{kind}.pth of the package lpips as {option('perceptual_heads')}",
        option="perceptual",
        value=spec.network,
    )


def read_heads(path: Path, widths: Sequence[int]) -> list[Float[Tensor, " _C"]]:
    """LPIPS's learned weights, a vector a layer. widths: channels of each layer. Raises UserError, WeightsError."""
    found = read_weights(path)
    heads = []
    for k, width in enumerate(widths):
        head = found.get(_HEAD.format(k))
        if head is None or head.numel() != width or bool((head < 0).any()):
            what = "is missing" if head is None else f"is {list(head.shape)}"
            raise UserError(
                f"{path}: {_HEAD.format(k)} {what}, expected {width} numbers, none below 0; these are no learned "
                "weights of this LPIPS: v0.1 has alex.pth and vgg.pth"
            )
        heads.append(head.float().flatten())
    return heads


def unit_features(features: Sequence[Float[Tensor, "N _C _H _W"]]) -> list[Float[Tensor, "N _C _H _W"]]:
    """Features of length 1 at every position, over the channels; 0 where they are 0."""
    return [x / (x.square().sum(1, keepdim=True).sqrt() + _TINY) for x in features]


def perceptual_distance(
    a: Sequence[Float[Tensor, "N _C _H _W"]],
    b: Sequence[Float[Tensor, "N _C _H _W"]],
    heads: Sequence[Float[Tensor, " _C"]] | None = None,
) -> Float[Tensor, " N"]:
    """Distance of images by their unit features, layer by layer (LPIPS, Zhang et al. 2018, eq. 1): squared
    differences, added over channels, averaged over positions, added over layers.

    heads: what each channel counts, a vector a layer (w of eq. 1, squared); none: w = 1.
    """
    layers = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        squares = (x - y).square()  # [N, C, H, W]
        weighted = squares if heads is None else squares * heads[k].view(-1, 1, 1)
        layers.append(weighted.sum(1).mean((1, 2)))
    return torch.stack(layers).sum(0)
