"""Real-ESRGAN's generator: size, shapes, and required contents of its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from piti.baselines.rrdb import RRDBNet, load_real_esrgan
from piti.core.errors import UserError
from piti.core.images import to_pil, to_tensor


def test_the_published_size_and_key_names() -> None:
    with torch.device("meta"):
        network = RRDBNet()
    assert sum(p.numel() for p in network.parameters()) == 16_697_987
    names = set(network.state_dict())
    assert {"conv_first.weight", "body.22.rdb3.conv5.bias", "conv_up2.weight", "conv_last.bias"} <= names


def test_it_enlarges_four_times_and_stays_in_range() -> None:
    torch.manual_seed(0)
    network = RRDBNet(width=8, growth=4, blocks=1)
    out = network(torch.rand(2, 3, 6, 5) * 2 - 1)
    assert out.shape == (2, 3, 24, 20)
    assert out.abs().max() <= 1


def test_a_flat_image_stays_flat_where_nothing_is_learned() -> None:
    """With every convolution but the first and last at zero the skip alone is left: enlarged by the nearest."""
    network = RRDBNet(width=4, growth=2, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(network(torch.zeros(1, 3, 4, 4)), torch.full((1, 3, 16, 16), -1.0))


def test_a_picture_is_enlarged_as_its_tensor_is() -> None:
    torch.manual_seed(0)
    network = RRDBNet(width=4, growth=2, blocks=1)
    picture = Image.effect_noise((5, 6), 60).convert("RGB")
    made = network.enlarged(picture)
    assert made.size == (20, 24)
    with torch.no_grad():
        assert made == to_pil(network(to_tensor(picture)[None])[0])


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file(RRDBNet(width=4, growth=2, blocks=1).state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"small\.safetensors does not hold Real-ESRGAN x4plus: \d+ tensors differ"):
        load_real_esrgan(tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"is no readable \.safetensors file"):
        load_real_esrgan(tmp_path / "none.safetensors")
