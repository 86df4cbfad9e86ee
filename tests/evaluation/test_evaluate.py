"""Evaluations of files and of models: what is measured, what the result holds, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from piti.cli_evaluate import evaluate
from piti.conditions import ClassTable, ConditionError, MaskCondition, SketchCondition
from piti.errors import UserError
from piti.evaluation import evaluate as module
from piti.evaluation import judging
from piti.evaluation.evaluate import Options, evaluate_files, evaluate_made, evaluate_model
from piti.evaluation.features import open_features
from piti.evaluation.generating import Split, generate_split
from piti.evaluation.pairing import PairingError
from piti.evaluation.result import Evaluation
from piti.images import save_png
from piti.models.perceptual import PerceptualSpec
from piti.translation import Settings
from tests.conftest import TINY_CLASSES
from tests.test_given import several_pipeline
from tests.test_pipeline import tiny_pipeline

COLOURS = np.array([[120, 170, 230], [90, 90, 95], [200, 30, 40]], np.int64)  # of tiny_data's photographs


class Colours:
    """Features: means and deviations of the channels of an 8 × 8 picture."""

    source, sha256, resize, dimensions = "none", "0" * 64, "both sides to 8 px", 6

    def __init__(self, name: str = "colours") -> None:
        self.name = name

    def __call__(self, images: list[Image.Image]) -> Tensor:
        pixels = np.stack([np.asarray(image.resize((8, 8)), np.float64) / 255 for image in images])
        found = np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)
        return torch.from_numpy(np.where(pixels.mean((1, 2, 3))[:, None] == 0, np.nan, found))


class NearestColour:
    """Sees the class whose colour in tiny_data's photographs is nearest."""

    name, source, sha256, labels = "nearest", "folder/nearest", "1" * 64, ("Sky", "road", "automobile")

    def __call__(self, images: list[Image.Image]) -> Tensor:
        pixels = np.stack([np.asarray(image, np.int64) for image in images])  # [N, h, w, 3]
        return torch.from_numpy(np.abs(pixels[..., None, :] - COLOURS).sum(-1).argmin(-1))


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_features", lambda name, device: Colours(name))
    monkeypatch.setattr(judging, "open_segmenter", lambda source, device: NearestColour())


@pytest.fixture
def condition(tiny_data: Path) -> MaskCondition:
    return MaskCondition(ClassTable.read(tiny_data / "classes.json"))


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"automobile": "car"}))
    return path


@pytest.fixture
def noisy(tiny_data: Path, tmp_path: Path) -> Path:
    """Two samples of every photograph, with noise."""
    folder, rng = tmp_path / "noisy", np.random.default_rng(1)
    for path in sorted((tiny_data / "images").iterdir()):
        pixels = np.asarray(Image.open(path), np.int64)
        for k in range(2):
            noise = rng.integers(-60, 120, pixels.shape)
            save_png(Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)), folder / f"{path.stem}_{k}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


OPTIONS = Options(features=("colours",), bootstrap=6, device="cpu")


class TestDistances:
    def test_equal_folders_have_none(self, tiny_data: Path) -> None:
        found = evaluate_files(tiny_data / "images", OPTIONS, tiny_data / "images")
        assert found.value("fd") == pytest.approx(0, abs=1e-9)
        assert (found.value("precision"), found.value("recall")) == (1, 1)
        kid = found.measure("kid")
        assert kid.low is not None
        assert kid.low <= kid.value <= kid.high  # type: ignore[operator]
        assert any("same files" in note for note in found.notes)

    def test_noise_is_farther_and_the_result_tells_of_what(self, tiny_data: Path, noisy: Path) -> None:
        found = evaluate_files(noisy, OPTIONS, tiny_data / "images")
        fd = found.measure("fd", "colours")
        assert fd.value > 0.01
        assert fd.low < fd.value < fd.high  # type: ignore[operator]
        facts = found.facts
        assert (facts["generated"]["images"], facts["real"]["images"]) == (24, 12)
        assert (facts["generated"]["conditions"], facts["generated"]["samples"]) == (12, {"2": 12})
        assert facts["generated"]["sizes"] == facts["real"]["sizes"].replace("12", "24") == "40 x 32 (24)"
        assert facts["networks"] == [
            {
                "name": "colours",
                "source": "none",
                "sha256": "0" * 64,
                "resize": "both sides to 8 px",
                "dimensions": 6,
                "kid_subsets": 100,
                "kid_subset_size": 6,
                "precision_recall_k": 3,
            }
        ]
        assert facts["settings"] == {"resize": None, "bootstrap": 6, "seed": 0, "batch": 32, "device": "cpu"}
        assert {"piti", "torch", "pillow"} <= facts["versions"].keys()
        assert any("small sample: 24 generated and 12 real" in note for note in found.notes)
        assert any("24 images are samples of 12 conditions" in note for note in found.notes)

    def test_the_same_again_and_another_file_is_another_hash(self, tiny_data: Path, noisy: Path) -> None:
        first, second = (evaluate_files(noisy, OPTIONS, tiny_data / "images") for _ in range(2))
        assert first == second
        (noisy / "scene-00_0.png").unlink()
        other = evaluate_files(noisy, OPTIONS, tiny_data / "images")
        assert other.facts["generated"]["sha256"] != first.facts["generated"]["sha256"]
        assert other.facts["real"] == first.facts["real"]

    def test_no_intervals(self, tiny_data: Path, noisy: Path) -> None:
        options = Options(features=("colours",), bootstrap=0, device="cpu")
        found = evaluate_files(noisy, options, tiny_data / "images")
        assert all(measure.low is None for measure in found.measures)

    def test_sizes_that_differ_are_told_of(self, tiny_data: Path, tmp_path: Path) -> None:
        for path in (tiny_data / "images").iterdir():
            save_png(Image.open(path).resize((16, 16)), tmp_path / "small" / path.name)
        notes = evaluate_files(tmp_path / "small", OPTIONS, tiny_data / "images").notes
        assert any("short sides of 16 px, real ones of 32 px" in note and "--resize 16" in note for note in notes)
        assert any("differ in their proportions" in note for note in notes)
        options = Options(features=("colours",), resize=16, device="cpu")
        resized = evaluate_files(tmp_path / "small", options, tiny_data / "images")
        assert not any("short sides" in note or "proportions" in note for note in resized.notes)
        options = Options(features=("colours",), resize=24, device="cpu")
        notes = evaluate_files(tmp_path / "small", options, tiny_data / "images").notes
        assert any("--resize 24 enlarges generated images; at most 16" in note for note in notes)

    def test_short_sides_of_two_kinds_in_one_folder(self, tiny_data: Path, noisy: Path) -> None:
        save_png(Image.new("RGB", (80, 64)), noisy / "scene-00_2.png")
        with pytest.raises(PairingError, match=r"different sizes.*32 px.*scene-00_2\.png with 64 px"):
            evaluate_files(noisy, OPTIONS, tiny_data / "images")

    def test_features_that_are_nan_name_the_file(self, tiny_data: Path, noisy: Path) -> None:
        save_png(Image.new("RGB", (40, 32)), noisy / "scene-03_1.png")
        with pytest.raises(UserError, match=r"scene-03_1\.png: its features by colours are NaN"):
            evaluate_files(noisy, OPTIONS, tiny_data / "images")

    def test_few_images(self, tiny_data: Path, tmp_path: Path) -> None:
        for k, path in enumerate(sorted((tiny_data / "images").iterdir())[:3]):
            save_png(Image.open(path), tmp_path / "few" / f"{k}.png")
        found = evaluate_files(tmp_path / "few", OPTIONS, tiny_data / "images")
        assert {measure.name for measure in found.measures} == {"fd", "kid", "kid_spread"}
        assert found.measure("fd").low is None
        assert any("precision and recall left out" in note for note in found.notes)

    def test_cmmd_is_of_its_own_network(self, tiny_data: Path, noisy: Path) -> None:
        options = Options(features=("clip-l", "colours"), bootstrap=4, device="cpu")
        found = evaluate_files(noisy, options, tiny_data / "images")
        assert [measure.name for measure in found.measures if measure.of == "clip-l"] == ["cmmd"]
        assert found.value("cmmd") > 0
        assert found.facts["networks"][0]["cmmd_sigma"] == 10

    def test_networks_of_one_name(self, tiny_data: Path, noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "open_features", lambda name, device: Colours())
        with pytest.raises(UserError, match="are all 'colours'"):
            evaluate_files(noisy, Options(features=("a", "b"), device="cpu"), tiny_data / "images")

    def test_as_the_referee(
        self, camvid: Path, squeezenet: Path, judge: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(module, "open_features", open_features)
        reals = sorted((camvid / "images").iterdir())[:6]
        for k, path in enumerate(reals[:4]):
            save_png(Image.open(path).resize((85, 64)), tmp_path / "made" / f"{path.stem}_{k % 2}.png")
        (tmp_path / "real").mkdir()
        for path in reals:
            (tmp_path / "real" / path.name).symlink_to(path)
        options = Options(features=(str(squeezenet),), resize=64, bootstrap=0, device="cpu")
        found = evaluate_files(tmp_path / "made", options, tmp_path / "real")
        a = judge.squeezenet_features(judge.pictures(tmp_path / "made"), 64)
        b = judge.squeezenet_features(judge.pictures(tmp_path / "real"), 64)
        assert found.value("fd") == pytest.approx(judge.frechet(a, b), rel=1e-6)
        assert found.value("kid") == pytest.approx(judge.kernel_distance(a, b), rel=1e-6)


class TestAgreement:
    def test_photographs_agree_with_their_own_masks(
        self, tiny_data: Path, condition: MaskCondition, aliases: Path
    ) -> None:
        options = Options(segmenter="nearest", aliases=aliases, bootstrap=10, device="cpu")
        found = evaluate_files(tiny_data / "images", options, None, tiny_data / "labels", condition)
        assert found.value("miou") == found.value("pixel_accuracy") == found.value("iou", "car") == 100
        assert found.facts["judges"] == [
            {
                "of": "mask",
                "name": "nearest",
                "source": "folder/nearest",
                "sha256": "1" * 64,
                "labels": {"Sky": "sky", "road": "road", "automobile": "car"},
                "labels_of_no_class": [],
                "classes_not_judged": [],
            }
        ]

    def test_noise_agrees_less_and_photographs_are_judged_too(
        self, tiny_data: Path, noisy: Path, condition: MaskCondition, aliases: Path
    ) -> None:
        options = Options(("colours",), segmenter="nearest", aliases=aliases, bootstrap=50, device="cpu")
        found = evaluate_files(noisy, options, tiny_data / "images", tiny_data / "labels", condition)
        miou = found.measure("miou")
        assert 20 < miou.value < 99
        assert miou.low <= miou.value <= miou.high  # type: ignore[operator]
        assert found.value("real_miou") == 100

    def test_classes_without_a_label_are_told_of(self, tiny_data: Path, condition: MaskCondition) -> None:
        options = Options(segmenter="nearest", bootstrap=0, device="cpu")
        found = evaluate_files(tiny_data / "images", options, None, tiny_data / "labels", condition)
        assert {measure.of for measure in found.measures if measure.name == "iou"} == {"sky", "road"}
        assert any("no label for car" in note for note in found.notes)
        assert found.facts["judges"][0]["classes_not_judged"] == ["car"]

    def test_ids_outside_the_classes(self, tiny_data: Path, condition: MaskCondition) -> None:
        label = tiny_data / "labels" / "scene-05.png"
        Image.fromarray(np.full((32, 40), 7, np.uint8)).save(label)
        options = Options(segmenter="nearest", device="cpu")
        with pytest.raises(ConditionError, match=r"scene-05\.png: id 7 on 1280 pixels"):
            evaluate_files(tiny_data / "images", options, None, tiny_data / "labels", condition)

    def test_images_without_masks_are_named(self, tiny_data: Path, condition: MaskCondition) -> None:
        (tiny_data / "labels" / "scene-05.png").unlink()
        with pytest.raises(PairingError, match=r"scene-05\.png: 1 of 12 images have no condition in .*labels"):
            evaluate_files(tiny_data / "images", Options(segmenter="x"), None, tiny_data / "labels", condition)

    def test_sketches(self, tmp_path: Path) -> None:
        for k in range(3):
            pixels = np.full((64, 64, 3), 255, np.uint8)
            pixels[:, 20 + 8 * k :] = 40
            lines = np.full((64, 64), 255, np.uint8)
            lines[:, 20 + 8 * k] = 0
            save_png(Image.fromarray(pixels), tmp_path / "made" / f"s{k}_0.png")
            save_png(Image.fromarray(lines), tmp_path / "sketches" / f"s{k}.png")
        options = Options(bootstrap=5, device="cpu")
        found = evaluate_files(tmp_path / "made", options, None, tmp_path / "sketches", SketchCondition())
        assert found.value("line_distance_px") < 1.5
        assert found.value("lines_kept") == 100

    def test_masks_without_a_judge_are_told_of(self, tiny_data: Path, noisy: Path, condition: MaskCondition) -> None:
        found = evaluate_files(noisy, OPTIONS, tiny_data / "images", tiny_data / "labels", condition)
        assert any("--segmenter" in note for note in found.notes)
        assert any("--perceptual" in note for note in found.notes)
        with pytest.raises(UserError, match="nothing to measure: give --real"):
            evaluate_files(noisy, OPTIONS, None, tiny_data / "labels", condition)

    def test_a_judge_without_its_conditions_is_told_of(self, tiny_data: Path, noisy: Path) -> None:
        options = Options(("colours",), segmenter="nearest", bootstrap=0, device="cpu")
        notes = evaluate_files(noisy, options, tiny_data / "images").notes
        assert any("--segmenter judges nothing here" in note for note in notes)

    def test_diversity(self, noisy: Path, tiny_data: Path, squeezenet: Path) -> None:
        spec = PerceptualSpec(network="squeezenet1_1", weights=str(squeezenet))
        options = Options(perceptual=spec, bootstrap=10, device="cpu")
        found = evaluate_files(noisy, options, None, tiny_data / "labels", MaskCondition(_classes()))
        assert found.value("diversity", "squeezenet1_1") > 0.1
        assert found.facts["judges"][0]["layers"] == [1, 4, 7, 10, 12]


def _classes() -> ClassTable:
    entries = TINY_CLASSES["classes"]
    return ClassTable(
        names=tuple(entry["name"] for entry in entries),  # type: ignore[index,union-attr]
        ids=(0, 1, 2),
        colours=tuple(tuple(entry["color"]) for entry in entries),  # type: ignore[index,union-attr,misc]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resize": 0}, "--resize 0"),
        ({"batch": 0}, "--batch 0"),
        ({"bootstrap": 1}, "--bootstrap 1"),
        ({"features": ("clip", "clip")}, "--features clip is given twice"),
    ],
)
def test_impossible_options(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Options(**values)  # type: ignore[arg-type]


class TestModel:
    settings = Settings(num=2, steps=2)

    def test_a_split_is_translated_once(self, model: Path, tiny_data: Path, tmp_path: Path, aliases: Path) -> None:
        out, steps = tmp_path / "out", []
        options = Options(("colours",), segmenter="nearest", aliases=aliases, bootstrap=4, device="cpu")
        arguments = (str(model), tiny_data, out, options, self.settings)
        first = evaluate_model(*arguments, on_step=lambda *told: steps.append(told))
        assert steps[-1] == (2, 2)
        assert sorted(path.name for path in out.iterdir()) == [
            *(f"scene-{k:02d}_{n}.png" for k in (9, 10, 11) for n in range(2)),
            "sheet.png",
        ]
        times = {path.name: path.stat().st_mtime_ns for path in out.glob("scene-*.png")}
        (out / "scene-10_1.png").unlink()
        second = evaluate_model(*arguments)
        assert first == second
        again = {path.name: path.stat().st_mtime_ns for path in out.glob("scene-*.png")}
        assert {name for name in times if again[name] != times[name]} == {"scene-10_1.png"}

        assert first is not None
        assert (first.facts["generated"]["images"], first.facts["real"]["images"]) == (6, 3)
        assert first.facts["real"]["split"] == "val"
        told = first.facts["model"]
        assert (told["condition"], told["split"], told["samples"]) == ("mask", "val", 2)
        assert told["sampling"]["steps"] == "2"
        assert len(told["weights_sha256"]) == 64
        assert {"fd", "kid", "spread", "miou", "real_miou"} <= {measure.name for measure in first.measures}

    def test_images_made_otherwise_are_not_taken(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        generate_split(str(model), Split(tiny_data), out, Settings(num=1, steps=2), "cpu")
        with pytest.raises(PairingError, match=r"scene-09_0\.png: is there already, made with steps = 2, and 3"):
            generate_split(str(model), Split(tiny_data), out, Settings(num=1, steps=3), "cpu")
        more = generate_split(str(model), Split(tiny_data), out, Settings(num=2, steps=2), "cpu")
        assert len(more.images) == 6
        pipeline = tiny_pipeline()
        with torch.no_grad():
            next(pipeline.base.parameters()).add_(1)
        pipeline.save_pretrained(model)
        with pytest.raises(PairingError, match=r"made with model = .*weights"):
            generate_split(str(model), Split(tiny_data), out, Settings(num=1, steps=2), "cpu")

    def test_of_a_limited_split_other_images_in_the_folder_are_not_judged(
        self, model: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        out, settings = tmp_path / "out", Settings(num=1, steps=1)
        generate_split(str(model), Split(tiny_data), out, settings, "cpu")
        made = generate_split(str(model), Split(tiny_data, limit=2), out, settings, "cpu")
        assert (len(made.images), len(made.photographs)) == (2, 3)
        found = evaluate_made(made, out, OPTIONS, tiny_data / "images")
        assert (found.facts["generated"]["images"], found.facts["real"]["images"]) == (2, 12)
        assert "split" not in found.facts["real"]

    def test_several_conditions(self, tiny_data: Path, tmp_path: Path, aliases: Path) -> None:
        several_pipeline().save_pretrained(tmp_path / "several")
        for path in (tiny_data / "images").iterdir():
            lines = np.full((32, 40), 255, np.uint8)
            lines[16] = 0
            save_png(Image.fromarray(lines), tiny_data / "lines" / path.name)
        split = Split(tiny_data, conditions=("sketch=lines",))
        made = generate_split(str(tmp_path / "several"), split, tmp_path / "out", Settings(num=1, steps=1), "cpu")
        options = Options(("colours",), segmenter="nearest", aliases=aliases, bootstrap=0, device="cpu")
        found = evaluate_made(made, tmp_path / "out", options)
        assert {"fd", "miou", "line_distance", "real_line_distance"} <= {measure.name for measure in found.measures}
        assert [judge["of"] for judge in found.facts["judges"]] == ["mask", "sketch"]

    def test_what_is_wrong_with_the_data(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        settings = Settings(num=1, steps=1)

        def mistaken(said: str, **values: Any) -> None:
            with pytest.raises(UserError, match=said):
                generate_split(str(model), Split(tiny_data, **values), tmp_path / "out", settings, "cpu")

        mistaken("masks: no such folder", conditions=("masks",))
        mistaken("this model reads one", conditions=("mask=labels",))
        mistaken("no split 'test'", name="test")
        (tiny_data / "labels" / "scene-10.png").unlink()
        mistaken("scene-10")
        assert not (tmp_path / "out").exists()


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
        ],
    )
    def test_mistakes(self, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert said in mistake(*arguments)

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
