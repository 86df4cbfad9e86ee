"""The perceptual network: torchvision's modules and names, values for photographs, gradients."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import ImageFilter
from safetensors.torch import load_file
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.images import center_box, crop_resize, read_rgb, to_tensor
from piti.core.spec import SpecError
from piti.core.walk import list_images
from piti.diffusion.losses import perceptual_loss
from piti.models.perceptual import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NETWORKS,
    Fire,
    PerceptualNetwork,
    PerceptualSpec,
    load_perceptual,
)
from tests.conftest import SHARED
from tests.models.perceptual_networks import images, network, spec

VGG19_CONVS = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
VGG19_POOLS = [4, 9, 18, 27, 36]
SQUEEZENET_FIRES = [3, 4, 6, 7, 9, 10, 11, 12]
SQUEEZENET_POOLS = [2, 5, 8]


@pytest.fixture(scope="session")
def squeezenet_weights() -> str:
    """SqueezeNet 1.1 trained on ImageNet."""
    path = SHARED / "weights" / "squeezenet1_1_features.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name}: not present at {path} (set PITI_SHARED)")
    return str(path)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def normalised(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], then as ImageNet."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((x + 1) / 2 - mean) / std


# Architecture


def test_full_size() -> None:
    with torch.device("meta"):
        vgg, squeeze = network(network="vgg19", layers=[36]), network(layers=[12])
    assert (count(vgg), count(squeeze)) == (20_024_384, 722_496)
    assert len(vgg.features) == NETWORKS["vgg19"].modules == 37
    assert len(squeeze.features) == NETWORKS["squeezenet1_1"].modules == 13


def test_modules_stand_where_torchvision_has_them() -> None:
    with torch.device("meta"):
        vgg, squeeze = network(network="vgg19", layers=[36]), network(layers=[12])

    def places(net: PerceptualNetwork, kind: type[nn.Module]) -> list[int]:
        return [k for k, module in enumerate(net.features) if isinstance(module, kind)]

    assert places(vgg, nn.Conv2d) == VGG19_CONVS
    assert places(vgg, nn.MaxPool2d) == VGG19_POOLS
    assert list(vgg.state_dict()) == [f"features.{k}.{part}" for k in VGG19_CONVS for part in ("weight", "bias")]
    assert places(squeeze, Fire) == SQUEEZENET_FIRES
    assert places(squeeze, nn.MaxPool2d) == SQUEEZENET_POOLS
    parts = [f"{conv}.{part}" for conv in ("squeeze", "expand1x1", "expand3x3") for part in ("weight", "bias")]
    fires = [f"features.{k}.{part}" for k in SQUEEZENET_FIRES for part in parts]
    assert list(squeeze.state_dict()) == ["features.0.weight", "features.0.bias", *fires]


def test_usual_layers_are_relus_of_vgg_and_every_resolution_of_squeezenet() -> None:
    with torch.device("meta"):
        vgg = network(network="vgg19")
        assert [f.shape[1:] for f in vgg(torch.empty(1, 3, 64, 64))] == [
            (64, 64, 64),
            (128, 32, 32),
            (256, 16, 16),
            (512, 8, 8),
            (512, 4, 4),
        ]
    assert all(isinstance(vgg.features[k], nn.ReLU) for k in vgg.layers)
    assert [k - 1 for k in vgg.layers] == [
        VGG19_CONVS[0],
        *(VGG19_CONVS[VGG19_CONVS.index(p + 1)] for p in VGG19_POOLS[:4]),
    ]
    assert vgg.layer_weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    squeeze = network()
    assert [f.shape[1:] for f in squeeze(images(64))] == [
        (64, 31, 31),
        (128, 15, 15),
        (256, 7, 7),
        (384, 3, 3),
        (512, 3, 3),
    ]
    assert squeeze.layer_weights == (1,) * 5


def test_squeezenet_step_by_step() -> None:
    net, x = network(layers=range(13)), images(34)
    weights = net.state_dict()

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, weights[f"features.{name}.weight"], weights[f"features.{name}.bias"], **how)

    want, now = [], normalised(x)
    for k in range(13):
        if k == 0:
            now = conv(now, "0", stride=2)
        elif k == 1:
            now = now.relu()
        elif k in SQUEEZENET_POOLS:
            now = F.max_pool2d(now, 3, 2, ceil_mode=True)
        else:
            small = conv(now, f"{k}.squeeze").relu()
            now = torch.cat([conv(small, f"{k}.expand1x1"), conv(small, f"{k}.expand3x3", padding=1)], 1).relu()
        want.append(now)
    assert want[2].shape[-1] == 8  # 16 px pooled: ceil_mode shows
    for ours, theirs in zip(net(x), want, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_vgg_step_by_step() -> None:
    net, x = network(network="vgg19", layers=range(7)), images(16)
    weights = net.state_dict()
    now = normalised(x)
    for k, ours in enumerate(net(x)):
        if k in VGG19_CONVS:
            now = F.conv2d(now, weights[f"features.{k}.weight"], weights[f"features.{k}.bias"], padding=1)
        else:
            now = F.max_pool2d(now, 2) if k in VGG19_POOLS else now.relu()
        torch.testing.assert_close(ours, now)


@pytest.mark.parametrize(
    ("name", "layer", "side"), [("vgg19", 8, 2), ("squeezenet1_1", 12, 17), ("squeezenet1_1", 1, 3)]
)
def test_the_smallest_image(name: str, layer: int, side: int) -> None:
    net = network(network=name, layers=[layer])
    assert net.min_side == side
    assert net(images(side))[0].shape[-2:] == (1, 1)
    with pytest.raises(UserError, match=f"at least {side} px a side, got {side - 1} × {side - 1}"):
        net(images(side - 1))


def test_what_lies_deeper_is_not_built() -> None:
    assert len(network(layers=[1, 4]).features) == 5


# Frozen


def test_frozen_and_in_evaluation_mode_for_good() -> None:
    net = network()
    nn.ModuleList([net]).train()
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_gradients_reach_the_images_and_no_parameter() -> None:
    net, x = network(layers=[1, 4]).double(), images(20).double().requires_grad_()
    assert x.dtype == torch.float64
    real = [f.detach() for f in net(-x)]

    def loss(x: Tensor) -> Tensor:
        return perceptual_loss(net(x), real, net.layer_weights).sum()

    loss(x).backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    with torch.no_grad():
        slope = (loss(x + 1e-6 * way) - loss(x - 1e-6 * way)) / 2e-6
    torch.testing.assert_close((x.grad * way).sum(), slope, rtol=1e-4, atol=1e-8)


def test_half_precision_images() -> None:
    net, x = network(), images().to(torch.bfloat16)
    assert all(map(torch.equal, net(x), net(x.float())))


# What it says of photographs


def test_distance_grows_with_blur(camvid: Path, squeezenet_weights: str) -> None:
    net = load_perceptual(spec(weights=squeezenet_weights))
    photographs = [read_rgb(path) for path in list_images(camvid / "images")[::200]]
    small = [crop_resize(photo, center_box(*photo.size), 96) for photo in photographs]

    def features(radius: float) -> list[Tensor]:
        blurred = [photo.filter(ImageFilter.GaussianBlur(radius)) if radius else photo for photo in small]
        return net(torch.stack([to_tensor(photo) for photo in blurred]))

    sharp = features(0)
    assert not perceptual_loss(features(0), sharp, net.layer_weights).any()
    distances = [perceptual_loss(features(radius), sharp, net.layer_weights) for radius in (0.5, 1, 2, 4)]
    for nearer, farther in pairwise(distances):
        assert (farther > 1.05 * nearer).all()
    for k in range(len(sharp)):  # every layer sees it
        one = [1.0 if j == k else 0.0 for j in range(len(sharp))]
        assert (perceptual_loss(features(2), sharp, one) > 0.2 * sharp[k].mean(dim=(1, 2, 3))).all()


def test_trained_weights_load_as_they_are(squeezenet_weights: str) -> None:
    net = load_perceptual(spec(weights=squeezenet_weights))
    recorded = load_file(squeezenet_weights)
    assert net.state_dict().keys() == recorded.keys()
    assert all(torch.equal(net.state_dict()[key], x) for key, x in recorded.items())


def test_alexnet_and_vgg16_stand_where_torchvision_has_them() -> None:
    """Every tensor of files with torchvision's names fits, and none is left over."""
    for name in ("alexnet", "vgg16"):
        path = SHARED / "weights" / f"{name}_fp16.safetensors"
        if not path.exists():
            pytest.skip(f"{path.name}: not present at {path} (set PITI_SHARED)")
        last = NETWORKS[name].modules - 1
        net = load_perceptual(spec(network=name, weights=str(path), layers=[last]))
        recorded = load_file(path)
        assert net.state_dict().keys() == recorded.keys()
        assert all(torch.equal(x, recorded[key].float()) for key, x in net.state_dict().items())
        assert len(net.features) == NETWORKS[name].modules


# Specs


def test_wrong_specs_say_what_is_wrong() -> None:
    with pytest.raises(SpecError, match="unknown perceptual network 'vgg18'; did you mean 'vgg1"):
        spec(network="vgg18")
    for layers in ([], [4, 1], [1, 1], [-1], [13]):
        with pytest.raises(SpecError, match="ascending numbers from 0 to 12"):
            spec(layers=layers)
    with pytest.raises(SpecError, match="'layer_weights' has 2 entries and 'layers' 5"):
        spec(layer_weights=[1, 1])
    for weights in ([-1, 1], [0, 0]):
        with pytest.raises(SpecError, match="none may be negative"):
            spec(layers=[1, 4], layer_weights=weights)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(SpecError, match="is not finite; give a number"):
            spec(layers=[1, 4], layer_weights=[weight, 1])


def test_weights_of_unusual_layers_are_alike() -> None:
    assert PerceptualSpec(layers=(1, 6)).chosen_weights == (1, 1)
    assert PerceptualSpec(layers=(1, 6, 11, 20, 29)).chosen_weights == PerceptualSpec().chosen_weights
    assert PerceptualSpec.parse(spec(layers=[1, 4], layer_weights=[0, 1]).to_dict(), "test").chosen_weights == (0, 1)
