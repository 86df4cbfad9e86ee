"""`piti evaluate` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from piti.cli.evaluate import evaluate
from piti.core.errors import UserError
from piti.core.images import save_png
from piti.evaluation.result import Evaluation
from tests.evaluation.seen import NOISELESS, baseline_pipeline

pytestmark = pytest.mark.usefixtures("colour_networks")


app = typer.Typer()
app.command()(evaluate)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None, result.output
    return result.output


def mistake(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


class TestCommand:
    def test_files(self, tiny_data: Path, noisy: Path, tmp_path: Path, aliases: Path) -> None:
        out = tmp_path / "result.json"
        said = run(
            noisy, "--real", tiny_data, "--split", "train", "--labels", tiny_data / "labels", "--segmenter", "nearest",
            "--aliases", aliases, "--features", "colours", "--features", "clip-l", "--bootstrap", 4, "--json", out,
            "--device", "cpu", "--seed", 3,
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
        assert "give another --json" in mistake(noisy, "--real", tiny_data, "--features", "colours", "--json", out)

    def test_model(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ("--model", model, "--data", tiny_data, "--out", out, "--features", "colours", "--steps", 1)
        said = run(*arguments, "--num", 2, "--bootstrap", 0)
        assert "spread of samples" in said
        assert len(list(out.glob("scene-*.png"))) == 6

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "nothing to evaluate"),
            (("made", "--num", "2"), "--num means nothing with GENERATED"),
            (("--model", "street", "--labels", "labels"), "--labels means nothing with --model"),
            (("made", "--model", "street"), "GENERATED means nothing with --model"),
            (("--model", "street"), "--model needs --data"),
            (("--model", "street", "--votes", "a.json"), "--votes and --model are two things"),
            (("one", "two", "--real", "x"), "one folder is judged at a time"),
            (("one", "--labels", "nowhere"), "name the masks' classes with --classes"),
            (("one", "--classes", "x.json"), "--classes without --labels"),
            (("one", "--perceptual-weights", "x"), "--perceptual-weights without --perceptual"),
            (("one", "--perceptual", "vgg18"), "vgg19"),
            (("one", "--aliases", "x.json"), "--aliases without --segmenter"),
            (("--study", "a", "b", "--real", "x"), "--real means nothing with --study"),
            (("{images}", "--real", "{images}", "--split", "train"), "--split train: "),
        ],
    )
    def test_mistakes(self, arguments: tuple[str, ...], said: str, tiny_data: Path) -> None:
        assert said in mistake(*(text.format(images=tiny_data / "images") for text in arguments))

    def test_a_model_without_noise(self, tiny_data: Path, tmp_path: Path) -> None:
        """Four images a condition by default, but one of this model; four that are asked for are refused."""
        baseline_pipeline(NOISELESS).save_pretrained(tmp_path / "pix")
        arguments = ("--model", tmp_path / "pix", "--data", tiny_data, "--out", tmp_path / "out", "--device", "cpu")
        assert "this model reads no noise" in mistake(*arguments, "--num", 4, "--features", "colours")
        assert "one image a condition was made" in run(*arguments, "--features", "colours", "--bootstrap", 0)
        assert len(list((tmp_path / "out").glob("scene-*.png"))) == 3

    def test_a_study_and_its_votes(self, tiny_data: Path, tmp_path: Path) -> None:
        page = tmp_path / "study.html"
        images = tiny_data / "images"
        other = tmp_path / "other"
        for path in images.iterdir():
            save_png(Image.open(path).rotate(180), other / path.name)
        said = run(
            "--study", images, other, "--out", page, "--labels", tiny_data / "labels", "--limit", 6, "--question", "Eh?"
        )
        assert page.is_file()
        assert "6 of 12 pairs" in said
        key = json.loads((tmp_path / "study.key.json").read_text())
        assert key["question"] == "Eh?"
        files = [_voted(key, tmp_path / f"votes-{rater}.json", rater) for rater in ("0123456789abcdef", "f" * 16)]
        said = run("--votes", *files, "--json", tmp_path / "votes.json")
        assert "100.0%" in said
        assert json.loads((tmp_path / "votes.json").read_text())["rate"] == 1


def _voted(key: dict, path: Path, rater: str) -> Path:
    """Votes for A throughout."""
    votes = [
        {"pair": pair["id"], "left": pair["a"], "right": pair["b"], "chosen": pair["a"], "repeat": False, "seconds": 1}
        for pair in key["pairs"]
    ]
    values = {"format": "piti votes 1", "study": key["study"], "rater": rater, "votes": votes}
    path.write_text(json.dumps(values))
    return path
