"""Errors of depth: invariance to scale and shift, known errors, holes, and networks from folders."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.conditions import ConditionError, GeometryCondition
from piti.evaluation.depth import DepthEstimator, depth_error, depth_scores, fit, open_depth
from piti.evaluation.per_condition import AlignmentError, PerCondition
from piti.evaluation.pretrained import JudgeError, Pretrained
from tests.evaluation.tiny_judges import Estimating, by_hand, dpt, noise, segformer

CPU = torch.device("cpu")


def depth(height: int = 24, width: int = 32) -> torch.Tensor:
    """From 1 to 5 metres."""
    generator = torch.Generator().manual_seed(0)
    return 1 + 4 * torch.rand(height, width, generator=generator, dtype=torch.float64)


# Arithmetic


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.03, 5.0), (700.0, -120.0), (-2.0, 1.0)])
def test_scale_and_shift_cancel(inverse: bool, scale: float, shift: float) -> None:
    true = depth()
    said = scale * (1 / true if inverse else true) + shift
    found = depth_scores(said, true, inverse)
    assert found is not None
    assert found.abs_rel == pytest.approx(0, abs=1e-9)
    assert found.rmse_log == pytest.approx(0, abs=1e-9)
    assert found.close == 1


def test_depth_taken_for_its_inverse_is_wrong() -> None:
    true = depth()
    found = depth_scores(true, true, inverse=True)
    assert found is not None
    assert found.abs_rel > 0.05


def test_known_errors() -> None:
    true = torch.tensor([[1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    said = torch.ones_like(true)  # says nothing: the mean, 1.5 m
    found = depth_scores(said, true, inverse=False)
    assert found is not None
    assert found.abs_rel == pytest.approx((0.5 + 0.25) / 2)
    assert found.rmse_log == pytest.approx(math.sqrt((math.log(1.5) ** 2 + math.log(4 / 3) ** 2) / 2))
    assert found.close == 0
    inverse = depth_scores(said, true, inverse=True)
    assert inverse is not None
    assert inverse.abs_rel == pytest.approx((1 / 3 + 1 / 3) / 2)  # the mean of 1 and 1/2 is 3/4: 4/3 m


def test_the_fit_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    values, wanted = rng.normal(size=50), rng.normal(size=50)
    scale, shift = np.polyfit(values, wanted, 1)
    assert np.allclose(fit(torch.from_numpy(values), torch.from_numpy(wanted)), scale * values + shift)


def test_holes_are_left_out() -> None:
    true, said = depth(), 1 / depth()
    said[:5] = 1e6
    true[:5] = 0
    found = depth_scores(said, true, inverse=True)
    assert found is not None
    assert found.abs_rel == pytest.approx(0, abs=1e-9)
    assert depth_scores(said, torch.zeros_like(true), inverse=True) is None


def test_estimates_that_would_be_behind_the_camera_are_clipped() -> None:
    true = torch.tensor([[1.0, 1.1, 1.2, 10.0, 10.0, 10.0, 10.0]])
    said = torch.tensor([[1.0, 1.0, 1.0, 0.1, 0.1, 0.1, -9.0]])
    found = depth_scores(said, true, inverse=True)
    assert found is not None
    assert math.isfinite(found.abs_rel)
    assert found.rmse_log < math.log(10)


# Files


def millimetres(path: Path, metres: np.ndarray) -> Path:
    Image.fromarray(np.round(metres * 1000).astype(np.uint16)).save(path)
    return path


def test_files(tmp_path: Path) -> None:
    metres = np.linspace(1, 4, 30 * 40).reshape(30, 40)
    holed = metres.copy()
    holed[:, :12] = 0
    conditions = {
        "right": millimetres(tmp_path / "right.png", holed),
        "flat": millimetres(tmp_path / "flat.png", metres),
        "empty": tmp_path / "empty.npy",
    }
    empty = np.zeros((30, 40), np.float32)
    empty[0, :3] = 1  # beyond the square at the centre
    np.save(conditions["empty"], empty)
    pixels = np.repeat((metres * 60).astype(np.uint8)[..., None], 3, -1)
    names = {"right": ["right_0", "right_1"], "flat": ["flat_0"], "empty": ["empty_0"]}
    groups = {stem: [tmp_path / f"{name}.png" for name in of_one] for stem, of_one in names.items()}
    for stem, paths in groups.items():
        for path in paths:
            square = pixels[:, 5:35]
            Image.fromarray(np.full_like(square, 9) if stem == "flat" else square).save(path)
    seeing = Estimating(False, lambda image: image[..., 0] / 7 + 3)
    found = depth_error(groups, conditions, GeometryCondition(), seeing, batch=2)
    assert isinstance(found, PerCondition)
    assert (found.stems, found.blank, found.images) == (("right", "flat"), ("empty",), 3)
    right, flat = (found.measures(torch.tensor([k])) for k in range(2))
    assert right["depth_error", ""] < 0.01  # 8 bits
    assert right["depth_close", ""] == 100
    assert flat["depth_error", ""] > 0.2
    mean = found.measures()
    assert mean["depth_rmse_log", ""] == pytest.approx((right["depth_rmse_log", ""] + flat["depth_rmse_log", ""]) / 2)


def test_what_is_beyond_far_is_a_hole(tmp_path: Path) -> None:
    metres = np.linspace(1, 4, 20 * 20).reshape(20, 20)
    seen = np.round(metres * 60).astype(np.uint8)
    metres[3:9] = 60
    Image.fromarray(np.repeat(seen[..., None], 3, -1)).save(tmp_path / "a_0.png")
    conditions = {"a": millimetres(tmp_path / "a.png", metres)}
    groups = {"a": [tmp_path / "a_0.png"]}
    seeing = Estimating(False, lambda image: image[..., 0])
    near, all_of_it = (
        depth_error(groups, conditions, GeometryCondition(far=far), seeing).measures() for far in (10.0, None)
    )
    assert near["depth_error", ""] < 0.01 < all_of_it["depth_error", ""]


def test_no_depth_anywhere(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a_0.png")
    conditions = {"a": millimetres(tmp_path / "a.png", np.zeros((20, 20)))}
    with pytest.raises(AlignmentError, match="none of the 1 conditions has a known depth"):
        depth_error(
            {"a": [tmp_path / "a_0.png"]}, conditions, GeometryCondition(), Estimating(True, lambda x: x[..., 0])
        )


def test_a_picture_of_8_bits_is_no_depth(tmp_path: Path) -> None:
    for name in ("a_0.png", "a.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    with pytest.raises(ConditionError, match=r"a\.png: an 8-bit picture"):
        depth_error(
            {"a": [tmp_path / "a_0.png"]},
            {"a": tmp_path / "a.png"},
            GeometryCondition(),
            Estimating(True, lambda x: x[..., 0]),
        )


# Networks


class TestNetworks:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pytest.importorskip("transformers")
        return dpt(tmp_path_factory.mktemp("judges") / "tiny-dpt")

    def test_a_network_in_a_folder_estimates_what_its_parts_do(self, folder: Path) -> None:
        from transformers import DPTForDepthEstimation

        estimator = open_depth(str(folder), CPU)
        assert isinstance(estimator, DepthEstimator)
        assert (estimator.name, estimator.source, estimator.inverse) == ("tiny-dpt", str(folder), True)
        assert estimator.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        images = [noise(48, 40, seed) for seed in range(2)]
        found = estimator(images)
        assert found.shape == (2, 40, 48)
        with torch.no_grad():
            network = DPTForDepthEstimation.from_pretrained(folder).eval()
            wanted = network(pixel_values=torch.cat([by_hand(image) for image in images])).predicted_depth
        wanted = F.interpolate(wanted[:, None], (40, 48), mode="bicubic", align_corners=False)[:, 0]
        assert torch.allclose(found, wanted, atol=1e-4)

    @pytest.mark.parametrize(
        ("config", "inverse"),
        [
            ({"model_type": "dpt"}, True),
            ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, True),
            ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, False),
            ({"model_type": "zoedepth"}, False),
            ({"model_type": "glpn"}, False),
        ],
    )
    def test_which_way_estimates_go_follows_from_the_kind(
        self, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], inverse: bool
    ) -> None:
        judge = Pretrained(SimpleNamespace(config=SimpleNamespace(**config)), None, "net", "0" * 64)
        monkeypatch.setattr("piti.evaluation.depth.load_pretrained", lambda *_: judge)
        assert open_depth("net", CPU).inverse == inverse

    def test_which_way_estimates_go_can_be_said(self, folder: Path) -> None:
        assert not open_depth(str(folder), CPU, inverse=False).inverse

    def test_a_segmenter_estimates_no_depth(self, tmp_path: Path) -> None:
        with pytest.raises(JudgeError, match=r"depth .*segformer, which cannot be used as a network for estimating"):
            open_depth(str(segformer(tmp_path)), CPU)

    def test_estimates_that_are_nan(self, tmp_path: Path) -> None:
        weights = load_file(dpt(tmp_path) / "model.safetensors")
        save_file(
            {k: torch.full_like(x, torch.nan) for k, x in weights.items()},
            tmp_path / "model.safetensors",
            {"format": "pt"},
        )
        with pytest.raises(JudgeError, match="NaN or infinite"):
            open_depth(str(tmp_path), CPU)([noise(32, 32)])
