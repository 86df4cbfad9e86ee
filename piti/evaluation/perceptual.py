"""Perceptual distances between images: published LPIPS, and distances in the features of any frozen classifier."""

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

_TINY = 1e-10  # added to the norm of a feature, which may be 0
_HEAD = "lin{}.model.1.weight"  # a layer's channel weights in the published files
_VGG_RELUS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3


@dataclass(frozen=True)
class LpipsNetwork:
    """A classifier with learned LPIPS weights."""

    network: str
    """A name in `piti.models.perceptual.NETWORKS`."""
    layers: tuple[int, ...]


LPIPS: Mapping[str, LpipsNetwork] = {
    "lpips-alex": LpipsNetwork("alexnet", NETWORKS["alexnet"].layers),
    "lpips-vgg": LpipsNetwork("vgg16", _VGG_RELUS),
}


class LpipsSpec(Spec):
    """LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): a classifier's features with learned channel weights."""

    network: str = "lpips-alex"
    """A name in `LPIPS`."""
    weights: str | None = None
    """The classifier's file (.safetensors, or torchvision's .pth); None: the default file in torch.hub's folder."""
    heads: str | None = None
    """The file of learned weights, as in the package lpips (`weights/v0.1/alex.pth`); None: `lpips_alex.pth` or
    `.safetensors` beside the classifier's file."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, network: str) -> str:
        if network not in LPIPS:
            raise UserError(f"unknown LPIPS network '{network}'; {choices(network, LPIPS)}")
        return network

    @property
    def classifier(self) -> PerceptualSpec:
        """The underlying classifier. Raises UserError if its default file is missing."""
        known, weights = LPIPS[self.network], self.weights
        if weights is None:
            usual = Path(torch.hub.get_dir()) / "checkpoints" / NETWORKS[known.network].file
            if not usual.is_file():
                raise UserError(
                    f"the weights of {known.network} are not at {usual}",
                    remedy=f"put torchvision's file there, or give its path with {option('perceptual_weights')}",
                    option="perceptual",
                    value=self.network,
                )
            weights = str(usual)
        return PerceptualSpec(network=known.network, weights=weights, layers=known.layers)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """Indices in torchvision of the classifier's modules whose outputs are compared."""
        return LPIPS[self.network].layers


@dataclass(frozen=True)
class PerceptualJudge:
    """A network for perceptual distances."""

    network: PerceptualNetwork
    name: str
    source: str
    """The file or hub repository of its weights."""
    sha256: str
    """SHA-256 of the weights' file."""
    heads: tuple[Float[Tensor, " _C"], ...] | None = None
    """LPIPS: weight of each channel of each layer; None: equal weights."""
    heads_sha256: str = ""
    """SHA-256 of the file of `heads`."""

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " N"]:
        """Distance of images by their unit features, see `perceptual_distance`."""
        return perceptual_distance(a, b, self.heads)


def open_perceptual(spec: PerceptualSpec | LpipsSpec, device: torch.device) -> PerceptualJudge:
    """Load the network with its weights. Raises UserError if they are missing or of another network."""
    classifier = spec.classifier if isinstance(spec, LpipsSpec) else spec
    path = weights_file(classifier)
    network, source = load_perceptual(classifier).to(device), classifier.weights or str(path)
    if not isinstance(spec, LpipsSpec):
        return PerceptualJudge(network, spec.network, source, file_hash(path))
    file = _heads_file(spec, path)
    heads = tuple(head.to(device) for head in read_heads(file, network.widths))
    return PerceptualJudge(network, spec.network, source, file_hash(path), heads, file_hash(file))


def _heads_file(spec: LpipsSpec, classifier: Path) -> Path:
    """The path of the learned weights. Raises UserError."""
    kind = spec.network.removeprefix("lpips-")
    if spec.heads is not None:
        return Path(spec.heads).expanduser()
    beside = [classifier.parent / f"lpips_{kind}{suffix}" for suffix in (".safetensors", ".pth")]
    for file in beside:
        if file.is_file():
            return file
    raise UserError(
        f"LPIPS's learned weights are neither at {beside[0]} nor {beside[1].name}",
        remedy=f"give the file weights/v0.1/{kind}.pth of the package lpips as {option('perceptual_heads')}",
        option="perceptual",
        value=spec.network,
    )


def read_heads(path: Path, widths: Sequence[int]) -> list[Float[Tensor, " _C"]]:
    """LPIPS's learned weights, a vector per layer. widths: channels of each layer. Raises UserError, WeightsError."""
    found = read_weights(path)
    heads = []
    for k, width in enumerate(widths):
        head = found.get(_HEAD.format(k))
        if head is None or head.numel() != width or bool((head < 0).any()):
            what = "is missing" if head is None else f"is {list(head.shape)}"
            raise UserError(
                f"{path}: {_HEAD.format(k)} {what}, expected {width} non-negative numbers; these are not the learned "
                "weights of this LPIPS: v0.1 has alex.pth and vgg.pth"
            )
        heads.append(head.float().flatten())
    return heads


def unit_features(features: Sequence[Float[Tensor, "N _C _H _W"]]) -> list[Float[Tensor, "N _C _H _W"]]:
    """Features normalised over the channels at every position; zeros stay 0."""
    return [x / (x.square().sum(1, keepdim=True).sqrt() + _TINY) for x in features]


def perceptual_distance(
    a: Sequence[Float[Tensor, "N _C _H _W"]],
    b: Sequence[Float[Tensor, "N _C _H _W"]],
    heads: Sequence[Float[Tensor, " _C"]] | None = None,
) -> Float[Tensor, " N"]:
    """Distance of images by their unit features, layer by layer (LPIPS, Zhang et al. 2018, eq. 1): squared
    differences, added over channels, averaged over positions, added over layers.

    heads: channel weights, a vector per layer (w of eq. 1, squared); None: w = 1.
    """
    layers = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        squares = (x - y).square()  # [N, C, H, W]
        weighted = squares if heads is None else squares * heads[k].view(-1, 1, 1)
        layers.append(weighted.sum(1).mean((1, 2)))
    return torch.stack(layers).sum(0)
