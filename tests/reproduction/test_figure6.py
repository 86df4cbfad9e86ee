"""Figure 6: statistics of pictures made by hand, and the whole of it with a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from piti.conditions import NoCondition, SeveralCondition, SketchCondition
from piti.core.errors import UserError
from piti.evaluation.result import Evaluation, Measure
from piti.reproduction import figure6, runs
from piti.reproduction.image_statistics import Look, look_of, mean_look
from piti.reproduction.runs import Judges, Workspace
from tests.pipelines.test_pipeline import tiny_pipeline


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
        return figure6.reproduce(str(tmp_path / "model"), tiny_data, Workspace(out, device="cpu"), False, quiet)

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
    monkeypatch.setattr(figure6, "SEED", 1)  # and so of other noise
    made()
    assert not any(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_other_photographs_or_settings_make_results_stale(
    tiny_data: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure6, "STRENGTHS", (0.0, 4.0))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    data = shutil.copytree(tiny_data, tmp_path / "copied")
    monkeypatch.setattr(runs, "evaluate_files", lambda *rest: Evaluation((), {}))
    monkeypatch.setattr(figure6, "check_judges", lambda *rest, **more: None)

    def made() -> dict[str, Any]:
        workspace = Workspace(tmp_path / "out", judges=Judges((str(weights),)), device="cpu")
        figure6.reproduce(str(tmp_path / "model"), data, workspace, True, Console(quiet=True))
        return Evaluation.read(workspace.result("figure6-plain-4")).facts[runs.OURS]

    first = made()
    assert {"sampler", "steps", "seed"} <= first["images"].keys()
    key = json.loads((data / "splits.json").read_text())["train"][0]
    Image.new("RGB", (40, 32)).save(data / "images" / f"{key}.png")
    second = made()
    assert first["images"] == second["images"]
    assert first["reference"] != second["reference"]


def test_the_plan_counts_conditions(tiny_data: Path, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    told = {row["what"]: row["plan"] for row in figure6.plan_rows(str(tmp_path / "model"), tiny_data)}
    assert told["images"].startswith("one of each of 3 validation conditions at each of 11 settings")
    assert told["hours"].startswith("about 0.0 to 0.0")
    told = {row["what"]: row["plan"] for row in figure6.plan_rows(str(tmp_path / "model"), None)}
    assert "not counted" in told["images"]
    assert told["hours"].startswith("unknown")
    (tiny_data / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError):
        figure6.plan_rows(str(tmp_path / "model"), tiny_data)


def test_a_student_is_refused_before_anything_is_made(tiny_data: Path, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    path = tmp_path / "model/base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "student_spec": {"timesteps": [1, 5], "w": 2.0}}))
    with pytest.raises(UserError, match=r"model.*was distilled.*name the model that it was distilled from"):
        figure6.plan_rows(str(tmp_path / "model"), None)
    workspace = Workspace(tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match=r"model.*was distilled.*name the model that it was distilled from"):
        figure6.reproduce(str(tmp_path / "model"), tiny_data, workspace, False, Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_what_the_model_cannot_show_is_told_before_anything_is_made(tiny_data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    (tiny_data / "labels").rename(tiny_data / "elsewhere")
    with pytest.raises(UserError, match=r"^data .*: holds no labels/; give one with images/ and labels/.*kind mask"):
        figure6.plan_rows(str(model), tiny_data)
    mask = tiny_pipeline().condition
    for condition, said in (
        (SeveralCondition({"mask": mask, "sketch": SketchCondition()}), "reads several conditions at once"),
        (NoCondition(), "has no base that follows a condition"),
    ):
        (model / "condition.json").write_text(json.dumps(condition.to_config()))
        with pytest.raises(UserError, match=rf"^model .*: {said}; name a model whose base reads one"):
            figure6.plan_rows(str(model), None)


def test_digits_are_those_of_the_column() -> None:
    evaluations = [
        Evaluation((Measure("kid", v, v - 1, v + 1, "n"), Measure("miou", 0.0, 0.0, 0.0)), {}) for v in (9, 1634)
    ]
    points = [figure6.Point("plain", w, Path(), Look(1, 2, 3), one) for w, one in zip((0, 1), evaluations, strict=True)]
    text = figure6.markdown("m", points, Look(11, 2, 3), 2, 64)
    assert "| plain (eq. 7) | 0 | 1.0 | 2.00 | 3.00 | 9 [8 to 10] | 0.000 |" in text
    assert "| plain (eq. 7) | 1 | 1.0 | 2.00 | 3.00 | 1,634 [1,633 to 1,635] | 0.000 |" in text


def test_its_data_is_one_folder(tmp_path: Path) -> None:
    assert figure6.data_folder([f"camvid={tmp_path}"]) == tmp_path
    with pytest.raises(UserError, match=r"^data: no folder is given; give one"):
        figure6.data_folder([])
    with pytest.raises(UserError, match="no such folder"):
        figure6.data_folder([str(tmp_path / "nowhere")])
