"""HED: its parts, other names of its weights, sides that are not multiples of 16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from piti.core.errors import UserError
from piti.models.hed import HED, MEAN_BGR, load_hed

PORT = ("One", "Two", "Thr", "Fou", "Fiv")


@pytest.fixture(scope="module")
def network() -> HED:
    torch.manual_seed(0)
    return HED()


def photographs(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_fused_map(network: HED) -> None:
    """Five maps, each brought to the whole size, a weighted sum, a sigmoid."""
    images = photographs(16, 32)
    weights = network.state_dict()
    x = images[:, [2, 1, 0]].float() - torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    total = weights["fuse.bias"].view(1, 1, 1, 1)
    for number, depth in enumerate((2, 2, 3, 3, 3), start=1):
        x = x if number == 1 else F.max_pool2d(x, 2)
        for k in range(depth):
            x = F.conv2d(x, weights[f"block{number}.{k}.weight"], weights[f"block{number}.{k}.bias"], padding=1).relu()
        side = F.conv2d(x, weights[f"dsn{number}.weight"], weights[f"dsn{number}.bias"])
        total = total + weights["fuse.weight"][0, number - 1, 0, 0] * F.interpolate(side, (16, 32), mode="bilinear")
    found = network(images)
    assert found.shape == (1, 16, 32)
    assert torch.allclose(found, total.sigmoid()[:, 0], atol=1e-5)


def test_sides_are_continued_and_cut_off(network: HED) -> None:
    images = photographs(16, 19)
    continued = F.pad(images.float(), (0, 13, 0, 0), mode="replicate").to(torch.uint8)
    assert torch.allclose(network(images), network(continued)[..., :19], atol=1e-6)
    assert network(photographs(3, 5)).shape == (1, 3, 5)


def test_names_of_the_port(network: HED, tmp_path: Path) -> None:
    named = {}
    for number, word in enumerate(PORT, start=1):
        first = 0 if number == 1 else 1  # after a pool
        for k in range((2, 2, 3, 3, 3)[number - 1]):
            named |= {
                f"moduleVgg{word}.{first + 2 * k}.{kind}": network.state_dict()[f"block{number}.{k}.{kind}"]
                for kind in ("weight", "bias")
            }
        named |= {
            f"moduleScore{word}.{kind}": network.state_dict()[f"dsn{number}.{kind}"] for kind in ("weight", "bias")
        }
    named |= {f"moduleCombine.0.{kind}": network.state_dict()[f"fuse.{kind}"] for kind in ("weight", "bias")}
    torch.save(named, tmp_path / "network.pth")
    assert torch.equal(load_hed(tmp_path / "network.pth")(photographs(16, 16)), network(photographs(16, 16)))


def test_another_network_s_file(network: HED, tmp_path: Path) -> None:
    weights = dict(network.state_dict())
    del weights["dsn3.bias"]
    save_file(weights | {"norm": torch.zeros(1)}, tmp_path / "other.safetensors")
    match = r"1 tensors are missing .*dsn3\.bias.*1 are unknown .*norm.*ControlNetHED"
    with pytest.raises(UserError, match=match):
        load_hed(tmp_path / "other.safetensors")
