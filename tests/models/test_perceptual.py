"""The perceptual network: torchvision's modules and names, loading, what it says of photographs, gradients."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from PIL import ImageFilter
from safetensors.torch import load_file, save_file
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


def spec(**values: object) -> PerceptualSpec:
    return PerceptualSpec.parse({"network": "squeezenet1_1"} | values, "test")


def network(**values: object) -> PerceptualNetwork:
    """With random weights."""
    torch.manual_seed(0)
    return PerceptualNetwork(spec(**values))


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


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


# Loading


def whole_file(path: Path, **changes: Tensor | None) -> Path:
    """A file as torchvision's: all of `features`, and a classifier."""
    weights = network(layers=[12]).state_dict() | {"classifier.1.weight": torch.zeros(10, 512, 1, 1)}
    weights |= {key.replace("__", "."): x for key, x in changes.items() if x is not None}
    weights = {key: x for key, x in weights.items() if changes.get(key.replace(".", "__"), x) is not None}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net.pt"])
@pytest.mark.parametrize("layers", [None, [1, 4]])
def test_files(tmp_path: Path, name: str, layers: list[int] | None) -> None:
    net = load_perceptual(spec(weights=str(whole_file(tmp_path / name)), layers=layers))
    want = network(layers=[12]).state_dict()
    assert net.state_dict().keys() <= want.keys()
    assert all(torch.equal(x, want[key]) for key, x in net.state_dict().items())
    assert not any(p.requires_grad for p in net.parameters())


def test_half_precision_files(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: x.half() for key, x in network(layers=[1]).state_dict().items()}, path)
    assert load_perceptual(spec(weights=str(path), layers=[1]))(images())[0].dtype == torch.float32


def test_another_network_in_the_file(tmp_path: Path) -> None:
    path = whole_file(tmp_path / "net.pth")
    with pytest.raises(
        UserError, match=r"net.pth does not hold vgg19.* lacks 8 .*features\.10\.bias.*are unknown"
    ) as error:
        load_perceptual(spec(network="vgg19", weights=str(path), layers=[1, 6, 11]))
    assert "vgg19-dcbb9e9d.pth" in str(error.value)


def test_wrong_keys_and_shapes(tmp_path: Path) -> None:
    path = whole_file(tmp_path / "a.pth", features__3__squeeze__bias=None)
    with pytest.raises(UserError, match=r"of 50 tensors it lacks 1 \(features\.3\.squeeze\.bias\)"):
        load_perceptual(spec(weights=str(path)))
    path = whole_file(tmp_path / "b.pth", features__99__weight=torch.zeros(1))
    with pytest.raises(UserError, match=r"of its 51 named 'features\.\*', 1 are unknown \(features\.99\.weight\)"):
        load_perceptual(spec(weights=str(path)))
    path = whole_file(tmp_path / "c.pth", features__0__bias=torch.zeros(96))  # as SqueezeNet 1.0
    with pytest.raises(UserError, match=r"features\.0\.bias should be \[64\], is \[96\]"):
        load_perceptual(spec(weights=str(path)))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_unreadable_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is no readable"):
        load_perceptual(spec(weights=str(path)))


def test_a_file_cut_short(tmp_path: Path) -> None:
    for name in ("net.pth", "net.safetensors"):
        path = whole_file(tmp_path / name)
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(UserError, match=f"{name} is no readable"):
            load_perceptual(spec(weights=str(path)))


class Anything:
    """What a pickle may hold, and a file of weights may not."""


def test_pickles_that_hold_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(Anything(), path)
    with pytest.raises(UserError, match="is no readable file of weights"):
        load_perceptual(spec(weights=str(path)))
    for held in ({"epoch": 3}, [torch.zeros(1)]):
        torch.save(held, path)
        with pytest.raises(UserError, match="holds no state dict"):
            load_perceptual(spec(weights=str(path)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "net.pth"), "somewhere/net.safetensors", "net"):
        with pytest.raises(UserError, match=r"there is no file .*squeezenet1_1-b8a52dc0\.pth"):
            load_perceptual(spec(weights=missing))
    with pytest.raises(UserError, match="is a folder"):
        load_perceptual(spec(weights=str(tmp_path)))
    with pytest.raises(UserError, match="no hub repository with its weights is known; give a file"):
        load_perceptual(spec())


def test_the_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"timm/vgg19\.tv_in1k.* cannot be reached .*give a file, such as .*vgg19-dcbb9e9d"
    ):
        load_perceptual(PerceptualSpec())


def test_a_hub_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise RuntimeError("401: no access\nto this repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"the hub did not give .* \(401: no access\); give a file"):
        load_perceptual(spec(weights="someone/private"))


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors first, a pickle where there are none, an error where there is neither."""
    held, asked = [], []

    def give(repository: str, allow_patterns: list[str]) -> str:
        (name,) = allow_patterns
        asked.append((repository, name))
        folder = tmp_path / ("fetched" if name in held else "nothing")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    (tmp_path / "fetched").mkdir()
    shallow = network(network="vgg19", layers=[1]).state_dict() | {"head.fc.bias": torch.zeros(3)}
    save_file(shallow, tmp_path / "fetched" / "model.safetensors")
    torch.save(shallow, tmp_path / "fetched" / "pytorch_model.bin")
    usual = PerceptualSpec(layers=(1,))
    with pytest.raises(UserError, match=r"has none of model\.safetensors, pytorch_model\.bin"):
        load_perceptual(usual)
    names = ["model.safetensors", "pytorch_model.bin"]
    assert asked == [("timm/vgg19.tv_in1k", name) for name in names]
    for name in reversed(names):
        held.append(name)
        assert torch.equal(load_perceptual(usual).state_dict()["features.0.weight"], shallow["features.0.weight"])
        assert asked[-1][1] == name


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
