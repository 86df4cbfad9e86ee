"""A frozen classifier whose features compare images (psi_m of PITI, eq. 4).

VGG-16 and VGG-19 (Simonyan & Zisserman 2015, arXiv 1409.1556), SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360)
and AlexNet with one column (Krizhevsky 2014, arXiv 1404.5997), in torchvision's numbering and key names: files that
torchvision wrote load as they are. AlexNet is an independent judge in evaluation: no recipe of ours trains on it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from piti.core.errors import UserError, first_line
from piti.core.spec import Spec, choices

# Mean and standard deviation of ImageNet's pixels in [0, 1], with which all of them were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where a hub repository keeps its weights; the first that is there is taken."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network: its modules `features.0`, `features.1` …, and how it is used by default."""

    features: Callable[[], list[nn.Module]]
    modules: int
    """How many `features` there are."""
    layers: tuple[int, ...]
    layer_weights: tuple[float, ...]
    hub: str | None
    """A hub repository with torchvision's weights, if one is known."""
    file: str
    """What torchvision's own file of these weights is called."""


class Fire(nn.Module):
    """Squeeze by a 1 × 1 convolution, expand by 1 × 1 and 3 × 3 side by side (SqueezeNet, section 3.2)."""

    def __init__(self, c_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


def _vgg_features(depths: Sequence[int]) -> list[nn.Module]:
    """depths: convolutions of each of the five blocks."""
    modules: list[nn.Module] = []
    widths = (3, 64, 128, 256, 512, 512)
    for (c_in, c_out), depth in zip(pairwise(widths), depths, strict=True):
        for k in range(depth):
            modules += [nn.Conv2d(c_out if k else c_in, c_out, 3, padding=1), nn.ReLU()]
        modules.append(nn.MaxPool2d(2, 2))
    return modules


def _squeezenet1_1_features() -> list[nn.Module]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    modules: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()]
    modules += [Fire(64, 16, 64), Fire(128, 16, 64), pool()]
    modules += [Fire(128, 32, 128), Fire(256, 32, 128), pool()]
    return [*modules, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]


def _alexnet_features() -> list[nn.Module]:
    modules: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    modules += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for c_in, c_out in ((192, 384), (384, 256), (256, 256)):
        modules += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    return [*modules, nn.MaxPool2d(3, 2)]


NETWORKS: dict[str, Architecture] = {
    "vgg16": Architecture(
        features=lambda: _vgg_features((2, 2, 3, 3, 3)),
        modules=31,
        layers=(1, 6, 11, 18, 25),  # relu1_1 … relu5_1
        layer_weights=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        hub="timm/vgg16.tv_in1k",
        file="vgg16-397923af.pth",
    ),
    "vgg19": Architecture(
        features=lambda: _vgg_features((2, 2, 4, 4, 4)),
        modules=37,
        layers=(1, 6, 11, 20, 29),  # relu1_1 … relu5_1, and their weights: pix2pixHD (Wang et al. 2018), SPADE
        layer_weights=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        hub="timm/vgg19.tv_in1k",
        file="vgg19-dcbb9e9d.pth",
    ),
    "squeezenet1_1": Architecture(
        features=_squeezenet1_1_features,
        modules=13,
        layers=(1, 4, 7, 10, 12),  # at 1/2, 1/4, 1/8, and at 1/16 of the side twice
        layer_weights=(1.0,) * 5,
        hub=None,
        file="squeezenet1_1-b8a52dc0.pth",
    ),
    "alexnet": Architecture(
        features=_alexnet_features,
        modules=13,
        layers=(1, 4, 7, 9, 11),  # after each ReLU, as LPIPS compares them
        layer_weights=(1.0,) * 5,
        hub=None,
        file="alexnet-owt-7be5be79.pth",
    ),
}


class PerceptualSpec(Spec):
    """Which network's features are compared, from which layers, and where its weights come from."""

    network: str = "vgg19"
    """vgg16, vgg19, squeezenet1_1 or alexnet."""
    weights: str | None = None
    """A file (.safetensors, or .pth as torchvision's), or a hub repository; none: the network's usual one."""
    layers: tuple[int, ...] | None = None
    """Modules of `features`, in torchvision's numbering, whose outputs are compared; none: the usual ones."""
    layer_weights: tuple[float, ...] | None = None
    """What each layer counts; none: as pix2pixHD for the usual layers of both VGGs, else all alike."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, network: str) -> str:
        if network not in NETWORKS:
            raise UserError(f"unknown perceptual network '{network}'; {choices(network, NETWORKS)}")
        return network

    @model_validator(mode="after")
    def _consistent(self) -> PerceptualSpec:
        modules = NETWORKS[self.network].modules
        layers, weights = self.chosen_layers, self.chosen_weights
        if not layers or any(a >= b for a, b in pairwise(layers)) or layers[0] < 0 or layers[-1] >= modules:
            raise UserError(
                f"'layers' = {list(layers)}; give one or more ascending numbers from 0 to {modules - 1}, "
                f"as {self.network} has {modules} modules (usual: {list(NETWORKS[self.network].layers)})"
            )
        if len(weights) != len(layers):
            raise UserError(f"'layer_weights' has {len(weights)} entries and 'layers' {len(layers)}; give one of each")
        if min(weights) < 0 or not any(weights):
            raise UserError(f"'layer_weights' = {list(weights)}; none may be negative, and at least one above 0")
        return self

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """`layers`, or the network's usual ones."""
        return NETWORKS[self.network].layers if self.layers is None else self.layers

    @property
    def min_side(self) -> int:
        """The smallest side in pixels of an image that the network can look at."""
        with torch.device("meta"):
            return _smallest_side(NETWORKS[self.network].features()[: self.chosen_layers[-1] + 1])

    @property
    def chosen_weights(self) -> tuple[float, ...]:
        """`layer_weights`, or the network's usual ones; equal ones for layers that are not the usual."""
        if self.layer_weights is not None:
            return self.layer_weights
        usual = NETWORKS[self.network]
        return usual.layer_weights if self.chosen_layers == usual.layers else (1.0,) * len(self.chosen_layers)


class PerceptualNetwork(nn.Module):
    """Images in [-1, 1] [B, 3, H, W] => features after the chosen layers, finest first (PITI, eq. 4).

    Frozen and always in evaluation mode; gradients pass through it to the images. Its weights are random
    until they are loaded: `load_perceptual` does both. `layer_weights`: what each layer's difference counts.
    Modules deeper than the deepest chosen layer are not built.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: PerceptualSpec) -> None:
        super().__init__()
        self.layers, self.layer_weights = spec.chosen_layers, spec.chosen_weights
        self.features = nn.Sequential(*NETWORKS[spec.network].features()[: self.layers[-1] + 1])
        self.min_side = _smallest_side(self.features)
        self.widths = _widths(self.features, self.layers)
        # (x + 1)/2 has ImageNet's mean where x has 2 mean − 1
        self.register_buffer("mean", 2 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualNetwork:
        """Stays in evaluation mode: nothing here learns."""
        super().train(False)
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """images: in [-1, 1]. Returns one [B, C_m, H_m, W_m] a layer."""
        if min(images.shape[-2:]) < self.min_side:
            raise UserError(
                f"the perceptual network needs images of at least {self.min_side} px a side, got "
                f"{images.shape[-1]} × {images.shape[-2]}; give larger images, or shallower 'layers'"
            )
        x = (images.to(self.mean.dtype) - self.mean) / self.std  # [B, 3, H, W]
        found = []
        for index, module in enumerate(self.features):
            x = module(x)  # [B, C_m, H_m, W_m]
            if index in self.layers:
                found.append(x)
        return found


def _widths(features: nn.Sequential, layers: Sequence[int]) -> list[int]:
    """Channels after each of the chosen layers."""
    widths, width = [], 3
    for index, module in enumerate(features):
        if isinstance(module, nn.Conv2d):
            width = module.out_channels
        elif isinstance(module, Fire):
            width = module.expand1x1.out_channels + module.expand3x3.out_channels
        if index in layers:
            widths.append(width)
    return widths


def _smallest_side(features: Sequence[nn.Module] | nn.Sequential) -> int:
    """The smallest side of an image of which the last module still has one pixel to give."""
    side = 1
    for module in reversed(list(features)):
        if isinstance(module, nn.MaxPool2d):
            kernel, stride = int(module.kernel_size), int(module.stride)  # type: ignore[arg-type]
            side = (side - 2) * stride + kernel + 1 if module.ceil_mode else (side - 1) * stride + kernel
        elif isinstance(module, nn.Conv2d):
            side = (side - 1) * module.stride[0] + module.kernel_size[0] - 2 * int(module.padding[0])
    return side


def load_perceptual(spec: PerceptualSpec) -> PerceptualNetwork:
    """The network with its weights, frozen. Reads a file, or fetches from the hub what is not in its cache.

    Raises UserError for a file that is missing, unreadable or not this network's, and where the hub does
    not give it.
    """
    path = weights_file(spec)
    network = PerceptualNetwork(spec)
    network.load_state_dict(_fitting(read_tensors(path, "features."), network, spec.network, path))
    return network


def weights_file(spec: PerceptualSpec) -> Path:
    """The file of a network's weights, fetched from the hub if need be. Raises UserError."""
    source = weights_source(spec)
    return source if isinstance(source, Path) else fetched(source, HUB_FILES, _remedy(spec))


def _remedy(spec: PerceptualSpec) -> str:
    return f"give a file, such as torchvision's {NETWORKS[spec.network].file}, as 'weights' (perceptual.weights)"


def weights_source(spec: PerceptualSpec) -> Path | str:
    """Where a network's weights come from: a file that is there, or a hub repository. Raises UserError."""
    source, remedy = spec.weights or NETWORKS[spec.network].hub, _remedy(spec)
    if source is None:
        raise UserError(f"{spec.network}: no hub repository with its weights is known; {remedy}")
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder; {remedy}")
    if path.suffix in {".safetensors", ".pth", ".pt", ".bin"} or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise UserError(f"there is no file {source} with the weights of {spec.network}; {remedy}, or a hub repository")
    return source


def fetched(repository: str, names: Sequence[str], remedy: str) -> Path:
    """The first of some files that a hub repository has, fetched unless it is in the cache.

    remedy: what errors say can be done instead. Raises UserError.
    """
    for name in names:
        path = hub_folder(repository, [name], remedy) / name
        if path.is_file():
            return path
    raise UserError(f"'{repository}' on the hub has none of {', '.join(names)}; {remedy}")


def hub_folder(repository: str, patterns: Sequence[str], remedy: str) -> Path:
    """The folder with those files of a hub repository that fit the patterns, fetched unless they are in the cache.

    Of a hub that cannot be reached the cache is taken at once: of a single file the hub's client would ask again for
    half a minute. remedy: what errors say can be done instead. Raises UserError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _hub_quiet():
            return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"there is no file or folder '{repository}', and the hub cannot be reached for a repository of this name "
            f"(nor is it in the cache); {remedy}"
        ) from error
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(
            f"there is no file or folder '{repository}', and the hub did not give a repository of this name "
            f"({first_line(error)}); {remedy}"
        ) from error


@contextmanager
def _hub_quiet() -> Iterator[None]:
    """Without the hub client's warnings, beside which our error would be lost."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin so; a classifier's, which are most of VGG-19, are left alone.

    Raises UserError for a file that is missing or holds no state dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefix)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} is no readable file of weights ({first_line(error)}); give a state dict written by "
            "torch.save, or a .safetensors file"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise UserError(f"{path} holds no state dict (names and tensors) but {type(found).__name__}; save one there")
    return {str(key): x for key, x in found.items() if str(key).startswith(prefix)}


def _read_safetensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable .safetensors file ({first_line(error)}); fetch it again") from error


def _fitting(found: dict[str, Tensor], network: PerceptualNetwork, name: str, path: Path) -> dict[str, Tensor]:
    """What `network` needs of a file's tensors. Raises UserError unless the file is one of network `name`."""
    with torch.device("meta"):
        whole = nn.ModuleDict({"features": nn.Sequential(*NETWORKS[name].features())}).state_dict()
    needed = network.state_dict()
    missing, foreign = sorted(needed.keys() - found.keys()), sorted(found.keys() - whole.keys())
    remedy = f"give a file with torchvision's names, such as {NETWORKS[name].file}, or the 'network' that it holds"
    if missing or foreign:
        raise UserError(
            f"{path} does not hold {name}: of {len(needed)} tensors it lacks {len(missing)}{_such_as(missing)}, and "
            f"of its {len(found)} named 'features.*', {len(foreign)} are unknown{_such_as(foreign)}; {remedy}"
        )
    for key, x in found.items():
        if x.shape != whole[key].shape:
            raise UserError(
                f"{path} does not hold {name}: {key} should be {list(whole[key].shape)}, is {list(x.shape)}; {remedy}"
            )
    return {key: found[key] for key in needed}


def _such_as(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else ""
