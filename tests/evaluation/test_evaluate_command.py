"""The command `piti evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti.evaluation import evaluate, judges
from piti.evaluation.features import open_features
from piti.evaluation.result import Evaluation
from piti.evaluation.segmentation import open_segmenter
from tests.cli.running import mistake, run
from tests.evaluation.seen import NOISELESS, Colours, baseline_pipeline

pytestmark = pytest.mark.usefixtures("colour_networks")


class TestCommand:
    def test_files(self, tiny_data: Path, noisy: Path, tmp_path: Path, aliases: Path) -> None:
        out = tmp_path / "result.json"
        said = run(
            "evaluate", "images", noisy, "--real", tiny_data, "--split", "train", "--labels", tiny_data / "labels",
            "--segmenter", "nearest", "--aliases", aliases, "--features", "colours", "--features", "clip-l",
            "--bootstrap", 4, "--json", out, "--device", "cpu", "--seed", 3,
        )  # fmt: skip
        assert "Fréchet distance" in said
        assert "CMMD" in said
        found = Evaluation.read(out)
        assert found.facts["real"] | {"sha256": ""} == {
            "folder": str(tiny_data),
            "split": "train",
            "images": 9,
            "sizes": "40 x 32 (9)",
            "sha256": "",
        }
        assert found.facts["settings"]["seed"] == 3
        assert found.value("miou") < 100
        assert "give another --json" in mistake(
            "evaluate", noisy, "--real", tiny_data, "--features", "colours", "--json", out
        )

    def test_model(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = (
            "evaluate",
            "model",
            model,
            "--data",
            tiny_data,
            "--out",
            out,
            "--features",
            "colours",
            "--steps",
            1,
        )
        said = run(*arguments, "--num", 2, "--bootstrap", 0)
        assert "spread of samples" in said
        assert len(list(out.glob("scene-*.png"))) == 6

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (("--features", "incepton"), "no feature network, file or folder 'incepton'"),
            (("--real", "nowhere"), "nowhere: no such folder"),
            (("--training", "nowhere"), "nowhere: no such folder"),
            (("--segmenter", "nowhere"), "nowhere"),
            (("--depth", "nowhere"), "nowhere"),
        ],
    )
    def test_what_cannot_judge_is_refused_before_sampling(
        self, model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, said: str
    ) -> None:
        monkeypatch.setattr(judges, "open_segmenter", open_segmenter)
        monkeypatch.setattr(
            evaluate,
            "open_features",
            lambda name, device: Colours(name) if name == "colours" else open_features(name, device),
        )
        out = tmp_path / "out"
        features = () if "--features" in given else ("--features", "colours")
        words = mistake("evaluate", "model", model, "--data", tiny_data, "--out", out, "--steps", 1, *features, *given)
        assert said in words
        assert not out.exists()

    def test_another_split_than_the_folder_has(self, tiny_data: Path) -> None:
        images = tiny_data / "images"
        assert "--split train: " in mistake("evaluate", "images", images, "--real", images, "--split", "train")

    def test_a_model_without_noise(self, tiny_data: Path, tmp_path: Path) -> None:
        """Four images a condition by default, but one of this model; four that are asked for are refused."""
        baseline_pipeline(NOISELESS).save_pretrained(tmp_path / "pix")
        arguments = (
            "evaluate",
            "--model",
            tmp_path / "pix",
            "--data",
            tiny_data,
            "--out",
            tmp_path / "out",
            "--device",
            "cpu",
        )
        assert "this model takes no noise" in mistake(*arguments, "--num", 4, "--features", "colours")
        assert "one image per condition was generated" in run(*arguments, "--features", "colours", "--bootstrap", 0)
        assert len(list((tmp_path / "out").glob("scene-*.png"))) == 3
