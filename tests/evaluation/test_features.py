"""Features of files, with and without a cache; SqueezeNet; errors for other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from piti.core.errors import UserError
from piti.core.files import file_hash
from piti.core.images import ImageError
from piti.core.walk import list_images
from piti.evaluation import features
from piti.evaluation.features import CLASSIFIERS, features_of, open_features
from piti.evaluation.fitting import centre_square
from piti.evaluation.metrics import frechet_distance, kernel_estimate
from tests.conftest import SHARED
from tests.evaluation.tiny_features import CPU, clip_folder, picture, saved, squeezenet_file


class Mean:
    """A network whose features are the image's mean colour and its size."""

    name, source, sha256, resize, dimensions, settings = "mean", "here", "00", "not at all", 5, ""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: list[Image.Image]) -> Tensor:
        self.batches.append(len(images))
        rows = [[*np.array(image).mean((0, 1)), *image.size] for image in images]
        return torch.tensor(rows, dtype=torch.float64)


# SqueezeNet


def test_as_the_referee(judge: ModuleType, camvid: Path, squeezenet: Path) -> None:
    """The same features and the same distances, of a dozen photographs shrunk to 64 px."""
    paths = list_images(camvid / "images")[::40][:12]
    network = open_features(str(squeezenet), CPU)
    found = features_of(network, paths, resize=64, batch=5)
    expected = judge.squeezenet_features(paths, shrink=64)
    assert (found.shape, found.dtype) == ((12, 512), torch.float64)
    assert np.abs(found.numpy() - expected).max() < 1e-6
    ours, theirs = (found[:7], found[7:]), (expected[:7], expected[7:])
    # relative: of so few images most eigenvalues are 0, and the referee adds the roots of what rounding leaves there
    assert frechet_distance(*ours) == pytest.approx(judge.frechet(*theirs), rel=1e-6)
    assert kernel_estimate(*ours) == pytest.approx(judge.kernel_distance(*theirs), abs=1e-6)
    large = features_of(network, paths[:1], resize=None, batch=2)
    assert np.abs(large.numpy() - judge.squeezenet_features(paths[:1])).max() < 1e-6
    assert (network.name, network.sha256) == ("squeezenet", file_hash(squeezenet))
    assert "256 px, bicubic" in network.resize


def test_alexnet_as_the_referee(judge: ModuleType, camvid: Path) -> None:
    """The referee divides by the photographs' standard deviation; ours by a number that is always the same."""
    weights = SHARED / "weights" / "alexnet_fp16.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights.name}: not present at {weights} (set PITI_SHARED)")
    paths = list_images(camvid / "images")[::100][:3]
    network = open_features(str(weights), CPU)
    found = features_of(network, paths, resize=64, batch=2)
    assert (network.name, found.shape) == ("alexnet", (3, 256))
    expected = judge.alexnet_features(paths, shrink=64)
    assert np.abs(CLASSIFIERS["alexnet"].scale * found.numpy() - expected).max() < 1e-6


def test_features_that_are_not_finite_name_the_file(tmp_path: Path) -> None:
    images = saved(tmp_path / "images", 5)
    network = open_features(str(squeezenet_file(tmp_path / "big.safetensors", scale=1e30)), CPU)
    with pytest.raises(UserError, match=r"images/0\.png: its features by squeezenet are NaN or infinite.*big"):
        features_of(network, images, None, 2)


# Which network


def test_what_is_no_network(tmp_path: Path) -> None:
    for name in ("inceptoin", str(tmp_path / "weights" / "of.pth"), "weights/of.safetensors"):
        with pytest.raises(UserError, match="no feature network"):
            open_features(name, CPU)
    with pytest.raises(UserError, match="did you mean 'inception'"):
        open_features("inceptoin", CPU)
    picture().save(tmp_path / "weights.png")
    with pytest.raises(UserError, match="expected a weight file"):
        open_features(str(tmp_path / "weights.png"), CPU)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.safetensors")
    with pytest.raises(UserError, match=r"does not contain .*Inception.* nor squeezenet1_1.* nor alexnet"):
        open_features(str(tmp_path / "vgg.safetensors"), CPU)


# Many files


def test_features_of_files_in_their_order(tmp_path: Path) -> None:
    paths = saved(tmp_path / "images", 7)
    network, steps = Mean(), []
    found = features_of(network, paths[::-1], None, 3, lambda done, total: steps.append((done, total)))
    assert network.batches == [3, 3, 1]
    assert steps == [(3, 7), (6, 7), (7, 7)]
    expected = torch.stack([network([Image.open(path)])[0] for path in paths[::-1]])
    assert torch.equal(found, expected)
    assert features_of(network, [], None, 3).shape == (0, 5)
    resized = features_of(network, paths, 8, 100)
    square = centre_square(8).apply(Image.open(paths[0]))
    assert torch.equal(resized[0], network([square])[0])
    assert resized[:, 3:].unique().tolist() == [8]


def test_images_of_several_sizes_and_kinds(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (10, 20), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    found = features_of(Mean(), [tmp_path / "grey.png", tmp_path / "clear.png"], None, 2)
    assert found.tolist() == [[7, 7, 7, 30, 20], [255, 255, 255, 10, 20]]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match="broken"):
        features_of(Mean(), [tmp_path / "grey.png", tmp_path / "broken.png"], None, 1)
    for resize, batch in ((0, 1), (None, 0)):
        with pytest.raises(UserError, match="at least 1"):
            features_of(Mean(), [tmp_path / "grey.png"], resize, batch)


def test_kept_features(tmp_path: Path) -> None:
    paths = saved(tmp_path / "images", 3)
    network, cache = Mean(), tmp_path / "cache"

    def computed(images: Sequence[Path] = paths, resize: int | None = None, net: Any = network) -> int:
        """How many images the network looked at."""
        before = len(network.batches)
        found = features_of(net, images, resize, 10, cache=cache)
        seen = network.batches[before:]
        assert torch.equal(found, features_of(network, images, resize, 10))
        return sum(seen)

    assert computed() == 3
    assert computed() == 0
    assert computed(resize=8) == 3
    assert computed(paths[::-1]) == 3
    moved = tmp_path / "moved.png"
    shutil.copyfile(paths[0], moved)
    assert computed([moved, *paths[1:]]) == 0  # by contents
    picture(20, 16, seed=9).save(paths[0])
    assert computed() == 3
    for path in cache.iterdir():
        path.write_bytes(b"damaged")
    assert computed() == 3
    assert computed() == 0
    steps: list[tuple[int, int]] = []
    features_of(network, paths, None, 10, lambda *step: steps.append(step), cache)
    assert steps == [(3, 3)]
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        features_of(network, [tmp_path / "gone.png"], None, 10, cache=cache)


def test_others_may_read_kept_features(tmp_path: Path) -> None:
    paths = saved(tmp_path / "images", 1)
    features_of(Mean(), paths, None, 1, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stat().st_mode == paths[0].stat().st_mode


def test_another_network_s_features_are_not_taken(tmp_path: Path) -> None:
    paths, cache = saved(tmp_path / "images", 2), tmp_path / "cache"
    first = open_features(str(squeezenet_file(tmp_path / "a.safetensors")), CPU)
    assert isinstance(first, features.FileNetwork)
    other = replace(first, sha256="other")
    features_of(first, paths, None, 2, cache=cache)
    features_of(other, paths, None, 2, cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_features_of_another_preprocessing_are_not_taken(tmp_path: Path) -> None:
    """The same weights and size, images normalised otherwise."""
    paths, cache, folder = saved(tmp_path / "images", 2), tmp_path / "cache", tmp_path / "clip"
    clip_folder(folder)
    features_of(open_features(str(folder), CPU), paths, None, 2, cache=cache)
    said = folder / "preprocessor_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    corrected = open_features(str(folder), CPU)
    kept = features_of(corrected, paths, None, 2, cache=cache)
    assert torch.equal(kept, features_of(corrected, paths, None, 2))
