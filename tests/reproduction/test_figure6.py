"""Figure 6: statistics of pictures made by hand, and the whole of it with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from piti.errors import UserError
from piti.reproduction import figure6
from piti.reproduction.looks import Look, look_of, mean_look
from piti.reproduction.runs import Shop
from tests.test_pipeline import tiny_pipeline


def flat(*colour: int) -> np.ndarray:
    return np.full((4, 6, 3), colour, np.uint8)


def test_the_statistics_of_flat_colours() -> None:
    assert look_of(flat(100, 100, 100)) == Look(0, 0, 0)
    assert look_of(flat(0, 0, 0)) == Look(100, 0, 0)  # black has no saturation
    assert look_of(flat(200, 100, 50)).saturation == pytest.approx(75)
    assert look_of(flat(255, 10, 20)).clipped == 100
    assert look_of(flat(254, 1, 20)).clipped == 0


def test_the_statistics_of_two_halves() -> None:
    pixels = flat(50, 50, 50)
    pixels[:2] = (150, 150, 150)
    assert look_of(pixels).contrast == pytest.approx(100 * 50 / 255)
    pixels[:2] = (0, 200, 200)
    found = look_of(pixels)
    assert (found.clipped, found.saturation) == (50, 50)
    assert mean_look([Look(1, 2, 3), Look(3, 4, 9)]) == Look(2, 3, 6)


def test_the_figure(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure6, "STRENGTHS", (0.0, 4.0))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    out, quiet = tmp_path / "out", Console(quiet=True)

    def made() -> Path:
        return figure6.reproduce(str(tmp_path / "model"), tiny_data, Shop(out, device="cpu"), False, quiet)

    text = made().read_text()
    values = json.loads((out / "figure6.json").read_text())
    assert [(point["rule"], point["w"]) for point in values["points"]] == [
        ("plain", 0), ("plain", 4), ("normalized", 0), ("normalized", 4),
    ]  # fmt: skip
    looks = [[point[key] for key in ("clipped", "saturation", "contrast")] for point in values["points"]]
    assert looks[0] == looks[2]  # of the same noise, unguided
    assert looks[1] != looks[3]
    folder = out / "images/figure6-plain-4"
    by_hand = mean_look(look_of(np.asarray(Image.open(path))) for path in sorted(folder.glob("scene-*_0.png")))
    assert looks[1] == [by_hand.clipped, by_hand.saturation, by_hand.contrast]
    assert values["conditions"] == 3
    assert "| *photographs* |" in text
    assert "| normalised (eq. 8) | 4 |" in text
    with Image.open(out / "figure6.jpg") as picture:
        assert picture.width > 3 * 160
        assert picture.height > 6 * 160  # two rows for each of three conditions
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.png") if path.name != "sheet.png"}
    made()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_its_data_is_one_folder(tmp_path: Path) -> None:
    assert figure6.data_folder([f"camvid={tmp_path}"]) == tmp_path
    with pytest.raises(UserError, match="--data: give one folder"):
        figure6.data_folder([])
    with pytest.raises(UserError, match="no such folder"):
        figure6.data_folder([str(tmp_path / "nowhere")])
