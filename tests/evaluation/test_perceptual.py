"""LPIPS: equal to the published package with the same weights; its files, and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from piti.core.errors import UserError
from piti.core.images import to_tensor
from piti.evaluation.perceptual import LPIPS, LpipsSpec, open_perceptual, read_heads, unit_features
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from tests.conftest import SHARED

CPU = torch.device("cpu")
# lpips 0.1.4 (v0.1) on `blobs`, of AlexNet and VGG-16 rounded to float16
PUBLISHED = {
    "lpips-alex": ("alexnet_fp16", (0.22512053, 0.22978866, 0.05023546)),
    "lpips-vgg": ("vgg16_fp16", (0.58754462, 0.57928592, 0.04619687)),
}


def blobs(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", LPIPS)
def test_as_published(name: str) -> None:
    file, published = PUBLISHED[name]
    weights = SHARED / "weights" / f"{file}.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights.name}: not present at {weights} (set PITI_SHARED)")
    judge = open_perceptual(LpipsSpec(network=name, weights=str(weights)), CPU)
    first = blobs(0)
    images = torch.stack([to_tensor(image) for image in (first, blobs(1), blobs(2), first // 2 + 64)])
    with torch.inference_mode():
        features = unit_features(judge.network(images))
        ours = judge.distance([x[:1].expand(3, -1, -1, -1) for x in features], [x[1:] for x in features])
    assert ours.tolist() == pytest.approx(published, rel=2e-6)
    assert (judge.name, len(judge.heads_sha256)) == (name, 64)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """AlexNet with random weights, and heads beside it."""
    torch.manual_seed(0)
    network = PerceptualNetwork(PerceptualSpec(network="alexnet"))
    save_file(network.state_dict(), tmp_path / "alexnet.safetensors")
    heads = {f"lin{k}.model.1.weight": torch.full((1, c, 1, 1), 0.5) for k, c in enumerate(network.widths)}
    torch.save(heads, tmp_path / "lpips_alex.pth")
    return tmp_path / "alexnet.safetensors"


def test_heads_weigh_channels(tiny: Path) -> None:
    judge = open_perceptual(LpipsSpec(weights=str(tiny)), CPU)
    plain = open_perceptual(PerceptualSpec(network="alexnet", weights=str(tiny)), CPU)
    a, b = (unit_features(plain.network(to_tensor(blobs(seed))[None])) for seed in (0, 1))
    assert judge.distance(a, b).item() == pytest.approx(plain.distance(a, b).item() / 2, rel=1e-5)
    assert plain.heads is None


def test_other_files_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight is \[1, 64, 1, 1\], expected 3 non-negative numbers"):
        read_heads(tmp_path / "lpips_alex.pth", [3])
    with pytest.raises(UserError, match=r"lin5\.model\.1\.weight is missing"):
        read_heads(tmp_path / "lpips_alex.pth", [64, 192, 384, 256, 256, 7])
    (tmp_path / "lpips_alex.pth").rename(tmp_path / "elsewhere.pth")
    with pytest.raises(UserError, match=r"learned weights are neither at .*lpips_alex\.safetensors.*v0\.1/alex\.pth"):
        open_perceptual(LpipsSpec(weights=str(tiny)), CPU)
    found = open_perceptual(LpipsSpec(weights=str(tiny), heads=str(tmp_path / "elsewhere.pth")), CPU)
    assert found.name == "lpips-alex"


def test_the_usual_file_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"weights of alexnet are not at .*alexnet-owt"):
        open_perceptual(LpipsSpec(), CPU)
    with pytest.raises(UserError, match="did you mean 'lpips-vgg'"):
        LpipsSpec.parse({"network": "lpips-vg"}, "test")
