"""Weights of perceptual networks, in files and on the hub: lookup, reading, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from piti.core.errors import UserError
from piti.models.perceptual import PerceptualSpec, load_perceptual
from tests.models.perceptual_networks import images, network, spec


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
