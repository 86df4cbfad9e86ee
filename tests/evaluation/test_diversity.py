"""Diversity: a manual computation, identical samples, several conditions, the referee's spread."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from piti.core.errors import UserError
from piti.core.images import read_rgb, to_tensor
from piti.evaluation.diversity import diversity, feature_spread, photograph_distance
from piti.evaluation.per_condition import AlignmentError, PerCondition
from piti.evaluation.perceptual import PerceptualJudge, open_perceptual, perceptual_distance, unit_features
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from tests.conftest import SHARED
from tests.evaluation.tiny_judges import noise

SPEC = PerceptualSpec(network="squeezenet1_1", layers=(1, 4))


@pytest.fixture(scope="module")
def judge() -> PerceptualJudge:
    """With random weights."""
    torch.manual_seed(0)
    return PerceptualJudge(PerceptualNetwork(SPEC), "squeezenet1_1", "nowhere", "0" * 64)


def saved(folder: Path, names: dict[str, list[int]], side: int = 24) -> dict[str, list[Path]]:
    """Random pictures by seed."""
    groups = {}
    for stem, seeds in names.items():
        groups[stem] = [folder / f"{stem}_{k}.png" for k in range(len(seeds))]
        for path, seed in zip(groups[stem], seeds, strict=True):
            noise(side, side, seed).save(path)
    return groups


# Arithmetic


def test_the_distance_of_a_toy_network_by_hand() -> None:
    fine_a = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])  # two channels at two positions
    fine_b = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])
    coarse_a, coarse_b = torch.tensor([[[[5.0]]]]), torch.tensor([[[[-2.0]]]])  # one channel: its sign
    a, b = unit_features([fine_a, coarse_a]), unit_features([fine_b, coarse_b])
    fine = ((0.6 - 0) ** 2 + (0.8 - 1) ** 2 + 0) / 2  # the second position points the same way
    assert perceptual_distance(a, b).item() == pytest.approx(fine + 4)
    assert perceptual_distance(a, a).item() == 0


def test_features_of_nothing_stay_nothing() -> None:
    assert unit_features([torch.zeros(1, 3, 2, 2)])[0].abs().max() == 0


def test_length_does_not_count() -> None:
    x = torch.rand(2, 5, 3, 4)
    assert torch.allclose(unit_features([x])[0], unit_features([7 * x])[0])
    assert torch.allclose(unit_features([x])[0].square().sum(1), torch.ones(2, 3, 4))


# Files


def test_samples_that_are_alike_have_none(judge: PerceptualJudge, tmp_path: Path) -> None:
    found = diversity(saved(tmp_path, {"a": [3, 3, 3]}), judge)
    assert isinstance(found, PerCondition)
    assert found.measures() == {("diversity", "squeezenet1_1"): 0}
    assert found.rows.tolist() == [[0, 3]]


def test_the_mean_over_all_twos(judge: PerceptualJudge, tmp_path: Path) -> None:
    groups = saved(tmp_path, {"a": [0, 1], "b": [2, 3, 4], "alone": [5]})
    found = diversity(groups, judge, batch=2)
    assert found.stems == ("a", "b")

    def apart(first: Path, second: Path) -> float:
        a, b = (unit_features(judge.network(to_tensor(read_rgb(path))[None])) for path in (first, second))
        return perceptual_distance(a, b).item()

    a = apart(*groups["a"])
    b = [apart(groups["b"][i], groups["b"][k]) for i, k in ((0, 1), (0, 2), (1, 2))]
    assert found.each.tolist() == pytest.approx([a, np.mean(b)], rel=1e-5)
    assert found.measures()["diversity", "squeezenet1_1"] == pytest.approx(np.mean([a, *b]), rel=1e-5)
    assert found.measures(torch.tensor([0, 0]))["diversity", "squeezenet1_1"] == pytest.approx(a, rel=1e-5)
    assert a > 0


def test_layer_weights_of_training_do_not_count(judge: PerceptualJudge, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weighted = PerceptualNetwork(PerceptualSpec(network="squeezenet1_1", layers=(1, 4), layer_weights=(0.0, 9.0)))
    groups = saved(tmp_path, {"a": [0, 1]})
    other = PerceptualJudge(weighted, "squeezenet1_1", "nowhere", "0" * 64)
    assert diversity(groups, other).rows.tolist() == diversity(groups, judge).rows.tolist()


def test_resizing(judge: PerceptualJudge, tmp_path: Path) -> None:
    groups = saved(tmp_path, {"a": [0]}) | {}
    wide = tmp_path / "wide.png"
    framed = Image.new("RGB", (48, 24), "red")
    framed.paste(Image.open(groups["a"][0]), (12, 0))
    framed.save(wide)
    groups["a"].append(wide)
    assert diversity(groups, judge, resize=24).rows.tolist() == [[0, 1]]
    with pytest.raises(AlignmentError, match=r"a_0\.png and .*wide\.png are samples of a and differ in size"):
        diversity(groups, judge)


def test_one_sample_each_is_too_few(judge: PerceptualJudge, tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="none of 2 conditions has the two samples"):
        diversity(saved(tmp_path, {"a": [0], "b": [1]}), judge)


def test_images_too_small_for_the_network(judge: PerceptualJudge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images of at least \d+ px a side, got 4"):
        diversity(saved(tmp_path, {"a": [0, 1]}, side=4), judge)


def test_features_that_are_nan_name_the_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = PerceptualNetwork(SPEC)
    network.features[0].weight.fill_(torch.nan)  # type: ignore[operator, union-attr]
    broken = PerceptualJudge(network, "squeezenet1_1", "weights.pth", "0" * 64)
    with pytest.raises(AlignmentError, match=r"a_0\.png: squeezenet1_1 returned NaN.*weights\.pth"):
        diversity(saved(tmp_path, {"a": [0, 1]}), broken)


def test_a_network_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "squeezenet.safetensors"
    save_file(PerceptualNetwork(PerceptualSpec(network="squeezenet1_1")).state_dict(), path)
    found = open_perceptual(PerceptualSpec(network="squeezenet1_1", weights=str(path)), torch.device("cpu"))
    assert (found.name, found.source) == ("squeezenet1_1", str(path))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="no file"):
        open_perceptual(PerceptualSpec(network="squeezenet1_1", weights="nowhere.pth"), torch.device("cpu"))


def test_photographs_of_different_scenes_differ_more_than_crops_of_one(camvid: Path, tmp_path: Path) -> None:
    weights = SHARED / "weights" / "squeezenet1_1_features.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights.name}: not present")
    trained = open_perceptual(PerceptualSpec(network="squeezenet1_1", weights=str(weights)), torch.device("cpu"))
    photographs = sorted((camvid / "images").iterdir())
    one = read_rgb(photographs[0])
    one.crop((0, 0, 300, 300)).save(tmp_path / "near_0.png")
    one.crop((2, 2, 302, 302)).save(tmp_path / "near_1.png")
    groups = {"near": [tmp_path / "near_0.png", tmp_path / "near_1.png"], "far": [photographs[0], photographs[400]]}
    near, far = diversity(groups, trained, resize=64).each.tolist()
    assert 0 < near < far / 2


# Photographs


def test_distance_to_the_part_of_the_photograph_that_an_image_shows(judge: PerceptualJudge, tmp_path: Path) -> None:
    noise(48, 32, 7).save(tmp_path / "wide.png")
    whole = read_rgb(tmp_path / "wide.png")
    whole.crop((8, 0, 40, 32)).save(tmp_path / "square_0.png")
    noise(32, 32, 8).save(tmp_path / "square_1.png")
    whole.save(tmp_path / "whole_0.png")
    groups = {"square": [tmp_path / "square_0.png", tmp_path / "square_1.png"], "whole": [tmp_path / "whole_0.png"]}
    photographs = dict.fromkeys(groups, tmp_path / "wide.png")
    found = photograph_distance(groups, photographs, judge)
    assert found.rows[1].tolist() == [0, 1]
    assert found.rows[0, 1] == 2
    assert found.rows[0, 0] > 0.1
    alone = photograph_distance({"square": groups["square"][:1]}, photographs, judge, resize=24)
    assert alone.measures() == {("photograph_distance", "squeezenet1_1"): pytest.approx(0, abs=1e-9)}


# Spread


def test_spread_is_the_mean_distance_of_features() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    found = feature_spread(features, {"a": [0, 1], "b": [2, 3, 4], "c": [0]}, "net")
    assert found.stems == ("a", "b")
    assert found.each.tolist() == [5, 2]
    assert found.measures() == {("spread", "net"): pytest.approx((5 + 0 + 3 + 3) / 4)}
    gaps = [np.linalg.norm(features[i] - features[k]) for i, k in ((0, 1), (2, 3), (2, 4), (3, 4))]
    assert found.measures()["spread", "net"] == pytest.approx(np.mean(gaps))
    with pytest.raises(AlignmentError, match="two samples"):
        feature_spread(features, {"a": [0]}, "net")
