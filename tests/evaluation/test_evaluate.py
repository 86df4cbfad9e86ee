"""Distances of folders: measures, contents of the result, notes and errors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from piti.core.distributed import Ranks
from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.core.images import save_png
from piti.evaluation import evaluate as module
from piti.evaluation import pairing
from piti.evaluation.evaluate import Options, check_measures, evaluate_files
from piti.evaluation.features import open_features
from piti.evaluation.generating import Split
from piti.evaluation.intervals import wilson
from piti.evaluation.pairing import PairingError
from piti.evaluation.result import Evaluation
from tests.evaluation.seen import OPTIONS, Colours

pytestmark = pytest.mark.usefixtures("colour_networks")


class TestDistances:
    def test_equal_folders_have_none(self, tiny_data: Path) -> None:
        found = evaluate_files(tiny_data / "images", OPTIONS, tiny_data / "images")
        assert found.value("fd") == pytest.approx(0, abs=1e-9)
        assert (found.value("precision"), found.value("recall")) == (1, 1)
        kid = found.measure("kid")
        assert kid.low is not None
        assert kid.low <= kid.value <= kid.high  # type: ignore[operator]
        assert any("12 of 12 generated images are identical files" in note for note in found.notes)

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

    def test_shares_whose_draws_do_not_differ_get_wilson_s_interval(self, tiny_data: Path, tmp_path: Path) -> None:
        """All images of one colour that no photograph has: precision and recall are 0 in every draw."""
        for k in range(14):
            save_png(Image.new("RGB", (40, 32), (250, 3 + k, 250)), tmp_path / "far" / f"{k}.png")
        found = evaluate_files(tmp_path / "far", OPTIONS, tiny_data / "images")
        precision, recall = found.measure("precision"), found.measure("recall")
        assert (precision.value, precision.low, precision.high) == (0, *wilson(0, 14))
        assert (recall.value, recall.low, recall.high) == (0, *wilson(0, 12))
        assert precision.row()["95% interval"] == "0 … 0.2153"

    def test_copies_under_other_names_are_told_of(self, tiny_data: Path, noisy: Path) -> None:
        shutil.copyfile(tiny_data / "images" / "scene-02.png", noisy / "other.png")
        notes = evaluate_files(noisy, OPTIONS, tiny_data / "images").notes
        assert any(note.startswith("1 of 25 generated images are identical files to real ones") for note in notes)
        (noisy / "other.png").unlink()
        assert not any("same files" in note for note in evaluate_files(noisy, OPTIONS, tiny_data / "images").notes)

    def test_a_split_of_what_has_none(self, tiny_data: Path, noisy: Path) -> None:
        with pytest.raises(PairingError, match=r"split train: .*images is a plain folder of photographs.*remove it"):
            evaluate_files(noisy, OPTIONS, tiny_data / "images", split="train")
        with pytest.raises(PairingError, match="split train: no real is given"):
            evaluate_files(noisy, OPTIONS, split="train")
        assert evaluate_files(noisy, OPTIONS, tiny_data, split="train").facts["real"]["images"] == 9
        assert evaluate_files(noisy, OPTIONS, tiny_data).facts["real"]["split"] == "val"

    def test_sizes_that_differ_are_told_of(self, tiny_data: Path, tmp_path: Path) -> None:
        for path in (tiny_data / "images").iterdir():
            save_png(Image.open(path).resize((16, 16)), tmp_path / "small" / path.name)
        notes = evaluate_files(tmp_path / "small", OPTIONS, tiny_data / "images").notes
        assert any("short sides of 16 px, real ones of 32 px" in note and "resize 16" in note for note in notes)
        assert any("differ in aspect ratio" in note for note in notes)
        options = Options(features=("colours",), resize=16, device="cpu")
        resized = evaluate_files(tmp_path / "small", options, tiny_data / "images")
        assert not any("short sides" in note or "proportions" in note for note in resized.notes)
        options = Options(features=("colours",), resize=24, device="cpu")
        notes = evaluate_files(tmp_path / "small", options, tiny_data / "images").notes
        assert any("resize 24 enlarges generated images; at most 16" in note for note in notes)

    def test_short_sides_of_two_kinds_in_one_folder(self, tiny_data: Path, noisy: Path) -> None:
        save_png(Image.new("RGB", (80, 64)), noisy / "scene-00_2.png")
        with pytest.raises(PairingError, match=r"different short sides.*32 px.*scene-00_2\.png with 64 px"):
            evaluate_files(noisy, OPTIONS, tiny_data / "images")

    def test_features_that_are_nan_name_the_file(self, tiny_data: Path, noisy: Path) -> None:
        save_png(Image.new("RGB", (40, 32)), noisy / "scene-03_1.png")
        with pytest.raises(UserError, match=r"scene-03_1\.png: its features by colours are NaN"):
            evaluate_files(noisy, OPTIONS, tiny_data / "images")

    def test_what_images_are_samples_of_is_read_once(
        self, noisy: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their own metadata says it, where no photograph has their name."""
        for k, path in enumerate(sorted((tiny_data / "images").iterdir())):
            path.rename(path.with_name(f"photograph{k}.png"))
        read: list[Path] = []
        monkeypatch.setattr(pairing, "own_text", lambda path: read.append(path) or {})
        evaluate_files(noisy, OPTIONS, tiny_data / "images")
        assert sorted(read) == sorted(noisy.iterdir())

    def test_where_features_cannot_be_kept_none_are_computed(
        self, tiny_data: Path, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "open_features", lambda *given: pytest.fail("no network is to be opened"))
        taken = tmp_path / "taken"
        taken.write_text("a file")
        options = replace(OPTIONS, cache=taken)
        with pytest.raises(OutputError, match="taken is a file, not a folder; give another cache"):
            evaluate_files(noisy, options, tiny_data / "images")
        with pytest.raises(OutputError, match="taken is a file, not a folder; give another cache"):
            check_measures("street", Split(tiny_data), options, Ranks())

    def test_what_could_not_be_measured_is_told_before_anything_is_made(self, tiny_data: Path, tmp_path: Path) -> None:
        there = tmp_path / "nearest.png"
        there.touch()
        options = replace(OPTIONS, training=tiny_data, nearest=there)
        with pytest.raises(OutputError, match=r"nearest\.png: already exists; remove it, or give another file"):
            check_measures("street", Split(tiny_data), options, Ranks())
        (tiny_data / "splits.json").write_text('{"train": ["scene-00", "scene-01"], "val": ["scene-02"]}')
        with pytest.raises(PairingError, match="1 image; at least 2 photographs are needed"):
            check_measures("street", Split(tiny_data), OPTIONS, Ranks())

    def test_few_images(self, tiny_data: Path, tmp_path: Path) -> None:
        def judged(count: int) -> Evaluation:
            for k, path in enumerate(sorted((tiny_data / "images").iterdir())[:count]):
                save_png(Image.open(path), tmp_path / "few" / f"{k}.png")
            return evaluate_files(tmp_path / "few", OPTIONS, tiny_data / "images")

        three, four, five = judged(3), judged(4), judged(5)
        assert {measure.name for measure in four.measures} == {"fd", "kid", "kid_spread"}
        assert three.measure("fd").low is None
        assert four.measure("fd").low is not None
        assert any("precision and recall are not measured: they need at least 5" in note for note in four.notes)
        assert not any("left out" in note for note in five.notes)
        assert five.measure("precision").low == wilson(5, 5)[0]  # too few for halves
        assert all("values are mostly noise" in " ".join(found.notes) for found in (three, four, five))

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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resize": 0}, "resize 0"),
        ({"batch": 0}, "batch 0"),
        ({"bootstrap": 1}, "bootstrap 1"),
        ({"features": ("clip", "clip")}, "features clip: is given twice"),
    ],
)
def test_impossible_options(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Options(**values)  # type: ignore[arg-type]
