"""FID's Inception: structure, weight files, resizing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.files import file_hash
from piti.evaluation import inception
from piti.evaluation.features import FILES, FeatureNetwork, open_features
from piti.evaluation.inception import Inception, load_inception, tf1_resize
from tests.evaluation.tiny_features import CPU, picture


@pytest.fixture(scope="module")
def inception_net() -> Inception:
    """With random weights, whose features are of a size."""
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def inception_file(inception_net: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the port's: with the classifier of 1,008 classes, without counters; half precision, to be small."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    kept = {k: v.half() for k, v in inception_net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(kept | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_is_as_published(inception_net: Inception) -> None:
    assert sum(p.numel() for p in inception_net.parameters()) == 21_785_568  # Inception V3 without its classifier
    shapes = {key: tuple(value.shape) for key, value in inception_net.state_dict().items()}
    convolutions = [key for key in shapes if key.endswith(".conv.weight")]
    assert len(convolutions) == 94
    assert {key.rpartition(".conv")[0] + ".bn.running_var" for key in convolutions} <= shapes.keys()
    for name, shape in {
        "Conv2d_4a_3x3": (192, 80, 3, 3),
        "Mixed_5b.branch_pool": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2": (64, 48, 5, 5),
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_5": (192, 160, 1, 7),
        "Mixed_6e.branch7x7_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_1": (448, 2048, 1, 1),
        "Mixed_7c.branch3x3dbl_3b": (384, 384, 3, 1),
    }.items():
        assert shapes[f"{name}.conv.weight"] == shape
    assert all(module.eps == 0.001 for module in inception_net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not inception_net.training
    assert not any(p.requires_grad for p in inception_net.parameters())


def test_inception_s_stages(inception_net: Inception) -> None:
    sizes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: sizes.__setitem__(name, tuple(y.shape[1:])))
        for name, module in inception_net.named_children()
    ]
    found = inception_net(torch.rand(1, 3, 299, 299) * 2 - 1)
    for hook in hooks:
        hook.remove()
    assert found.shape == (1, 2048)
    assert sizes["Conv2d_2b_3x3"] == (64, 147, 147)
    assert sizes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert [sizes[f"Mixed_5{k}"] for k in "bcd"] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert {sizes[f"Mixed_6{k}"] for k in "abcde"} == {(768, 17, 17)}
    assert [sizes[f"Mixed_7{k}"] for k in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


def test_what_fid_s_graph_has_of_its_own(inception_net: Inception) -> None:
    """Averages leave out the padding, in all blocks but those that halve and the last, which takes a maximum."""
    ramp = torch.arange(9.0).view(1, 1, 3, 3)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        pooled = inception_net.get_submodule(f"Mixed_{name}").pool(ramp)  # type: ignore[operator]
        assert pooled[0, 0].tolist() == [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]
    assert inception_net.Mixed_7c.pool(ramp)[0, 0].tolist() == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]
    assert inception_net.Mixed_6a.pool(ramp).shape == (1, 1, 1, 1)


def test_inception_from_a_file(inception_file: Path) -> None:
    network = open_features(str(inception_file), CPU)
    assert isinstance(network, FeatureNetwork)
    assert (network.name, network.source, network.dimensions) == ("inception", str(inception_file), 2048)
    assert network.sha256 == file_hash(inception_file)
    assert "TensorFlow 1" in network.resize
    images = [picture(50, 36), picture(299, 299, seed=1)]
    found = network(images)
    assert (found.shape, found.dtype) == ((2, 2048), torch.float64)
    own = load_inception(inception_file)
    pixels = torch.from_numpy(np.array(images[1])).permute(2, 0, 1)[None].float()
    assert torch.allclose(found[1:].float(), own((pixels - 128) / 128), rtol=1e-4, atol=1e-5)  # 299 px: as it is


def test_inception_is_found_where_torch_keeps_weights(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"'inception' are not at {tmp_path}.*{FILES['inception']}.*pytorch-fid"):
        open_features("inception", CPU)
    with pytest.raises(UserError, match=r"'squeezenet' are not at .* from torchvision"):
        open_features("squeezenet", CPU)
    place = tmp_path / "checkpoints" / FILES["inception"]
    place.parent.mkdir()
    place.symlink_to(inception_file)
    assert open_features("inception", CPU).source == str(place)


def test_files_that_are_not_inception_s(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.load(inception_file, mmap=True)
    key = "Mixed_7c.branch1x1.conv.weight"

    def refused(weights: dict[str, Tensor], match: str) -> None:
        monkeypatch.setattr(inception, "read_weights", lambda _: weights)
        with pytest.raises(UserError, match=match):
            load_inception(inception_file)

    refused({k: v for k, v in whole.items() if k != key}, f"1 of its 470 tensors are missing.*{key}")
    refused(whole | {"Mixed_8a.conv.weight": torch.zeros(1)}, r"1 unknown.*Mixed_8a.*pt_inception")
    refused(whole | {key: torch.zeros(320, 2048, 3, 3)}, f"1 of another shape.*{key}")
    refused(whole | {key: whole[key] * math.nan}, f"{key}' has .* NaN")


def test_resizing_as_tensorflow_1() -> None:
    row = torch.tensor([[[10.0, 20.0]]]).expand(3, 2, 2)
    assert tf1_resize(row, 4)[0, 0].tolist() == [10, 15, 20, 20]  # at 0, 0.5, 1 and 1.5, which is beyond the last
    assert tf1_resize(torch.arange(6.0).view(1, 1, 6).expand(1, 6, 6), 3)[0, 0].tolist() == [0, 2, 4]  # no average
    turned = tf1_resize(torch.rand(3, 7, 5), 9)
    assert turned.shape == (3, 9, 9)
    x = torch.rand(3, 11, 11)
    assert torch.equal(tf1_resize(x, 11), x)
    columns = torch.tensor([[1.0], [3.0]]).expand(1, 2, 2)
    assert tf1_resize(columns, 4)[0, :, 0].tolist() == [1, 2, 3, 3]
