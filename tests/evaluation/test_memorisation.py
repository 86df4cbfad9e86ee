"""Nearest training photographs: copies are found, held-out photographs are the reference, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.core.images import read_rgb, save_png
from piti.evaluation import memorisation
from piti.evaluation.evaluate import Options, evaluate_files
from piti.evaluation.memorisation import Memorisation, Nearest, pixel_features

pytestmark = pytest.mark.usefixtures("colour_networks")


def test_nearest_by_hand() -> None:
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    found = Nearest.of(torch.tensor([[3.0, 4.0], [10.0, 1.0]]), training)
    assert found.distances.tolist() == [5, 1]
    assert found.rows.tolist() == [0, 1]


def test_photographs_in_blocks_give_what_all_at_once_do() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(count, 5, generator=generator) for count in (30, 7)]
    training = torch.randn(50, 5, generator=generator)
    training[40] = training[3]  # equally near: the first counts
    sets[1][2] = training[3]
    for size in (50, 16, 1):
        for images, found in zip(sets, Nearest.of_each(sets, training.split(size)), strict=True):
            whole = Nearest.of(images, training)
            assert torch.allclose(found.distances, whole.distances, atol=1e-6)
            assert torch.equal(found.rows[:2], whole.rows[:2])
            nearest = training[found.rows].double()
            assert torch.allclose((images.double() - nearest).norm(dim=1), whole.distances, atol=1e-6)


def test_nearer_is_the_share_of_pairs() -> None:
    samples, held_out = (
        Nearest(torch.tensor(values, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
        for values in ([1.0, 3.0], [2.0, 3.0])
    )
    measures = {one.name: one for one in Memorisation("net", samples, held_out).measures([[0], [1]], 50, 0)}
    assert measures["nearer"].value == 100 * (1 + 1 + 0 + 0.5) / 4
    assert (measures["nearest"].value, measures["real_nearest"].value) == (2, 2.5)
    low, high = measures["nearer"].low, measures["nearer"].high
    assert low is not None
    assert high is not None
    assert low < 62.5 < high
    alone = Memorisation("net", samples, held_out).measures([[0, 1]], 50, 0)
    assert all(one.low is None for one in alone)  # one condition tells nothing of others


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that anything computes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor))])
        return found


def test_nearer_holds_no_table_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, held_out = (
        Nearest(torch.randint(0, 50, (count,), generator=generator).double(), torch.zeros(count, dtype=torch.long))
        for count in (2000, 300)
    )
    with Largest() as largest:
        measures = Memorisation("net", samples, held_out).measures([[k] for k in range(2000)], 2, 0)
    ours, theirs = samples.distances[:, None], held_out.distances
    expected = 100 * ((ours < theirs).double() + 0.5 * (ours == theirs).double()).mean().item()
    assert {one.name: one.value for one in measures}["nearer"] == pytest.approx(expected, rel=1e-12)
    assert largest.numbers <= 4000


def test_pixels_are_levels_of_centre_squares(tmp_path: Path) -> None:
    for name, level in (("a", 100), ("b", 130)):
        Image.new("RGB", (90, 70), (level,) * 3).save(tmp_path / f"{name}.png")
    a, b = pixel_features([tmp_path / "a.png", tmp_path / "b.png"])
    assert torch.dist(a, b).item() == pytest.approx(30, rel=1e-5)


@pytest.fixture
def made(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of a training photograph, nearly, for each held-out condition."""
    splits = json.loads((tiny_data / "splits.json").read_text())
    for k, key in enumerate(splits["val"]):
        pixels = np.asarray(read_rgb(tiny_data / "images" / f"{splits['train'][k]}.png")).copy()
        pixels[0, 0] += 1
        save_png(Image.fromarray(pixels), tmp_path / "made" / f"{key}_0.png")
    return tmp_path / "made"


def test_copies_are_found(tiny_data: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, read = [], memorisation.pixel_features
    monkeypatch.setattr(memorisation, "pixel_features", lambda images: held.append(len(images)) or read(images))
    monkeypatch.setattr(memorisation, "_READ", 4)  # of 9 training photographs
    options = Options(("colours",), bootstrap=20, device="cpu", training=tiny_data, nearest=tmp_path / "nearest.jpg")
    found = evaluate_files(made, options, tiny_data)
    assert found.value("nearer", "pixels") == 100
    assert found.value("nearest", "pixels") < 1 < found.value("real_nearest", "pixels")
    assert found.value("nearest", "colours") < found.value("real_nearest", "colours")
    assert found.facts["training"]["images"] == 9
    assert held[-3:] == [4, 4, 1]
    width, height = read_rgb(tmp_path / "nearest.jpg").size
    assert width > 6 * 128
    assert height > 3 * 128
    with pytest.raises(OutputError, match="nearest"):
        evaluate_files(made, options, tiny_data)


def test_what_is_no_comparison(tiny_data: Path, made: Path, tmp_path: Path) -> None:
    options = Options(("colours",), bootstrap=0, device="cpu", training=tiny_data)
    with pytest.raises(UserError, match=r"9 of 12 photographs, such as .* are among the training photographs"):
        evaluate_files(made, options, tiny_data / "images")
    with pytest.raises(UserError, match="training: needs held-out photographs to compare with; give real too"):
        evaluate_files(made, options)
    with pytest.raises(UserError, match=r"nearest .*needs training; give it too"):
        Options(nearest=tmp_path / "a.jpg")
