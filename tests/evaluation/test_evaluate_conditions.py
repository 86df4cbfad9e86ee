"""Agreement with conditions, and diversity, of folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from piti.conditions import ClassTable, ConditionError, MaskCondition, SketchCondition
from piti.core.errors import UserError
from piti.core.images import read_rgb, save_png
from piti.evaluation.evaluate import Options, evaluate_files
from piti.evaluation.pairing import PairingError
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from tests.conftest import TINY_CLASSES
from tests.evaluation.seen import OPTIONS

pytestmark = pytest.mark.usefixtures("colour_networks")


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
        assert any("segmenter" in note for note in found.notes)
        assert any("perceptual" in note for note in found.notes)
        with pytest.raises(UserError, match="nothing to measure: give real"):
            evaluate_files(noisy, OPTIONS, None, tiny_data / "labels", condition)

    def test_a_judge_without_its_conditions_is_told_of(self, tiny_data: Path, noisy: Path) -> None:
        options = Options(("colours",), segmenter="nearest", bootstrap=0, device="cpu")
        notes = evaluate_files(noisy, options, tiny_data / "images").notes
        assert any("segmenter has no effect" in note for note in notes)

    def test_perceptual_without_samples_is_told_of(self, tiny_data: Path, tmp_path: Path) -> None:
        options = Options(("colours",), perceptual=PerceptualSpec(), bootstrap=0, device="cpu")
        for path in (tiny_data / "images").iterdir():
            save_png(read_rgb(path), tmp_path / "others" / f"another-{path.stem}.png")
        notes = evaluate_files(tiny_data / "images", options, tmp_path / "others").notes
        assert any("perceptual has no effect: no condition has several samples" in note for note in notes)
        with pytest.raises(UserError, match=r"nothing to measure.*\(perceptual has no effect"):
            evaluate_files(tiny_data / "images", options)

    def test_a_class_that_is_never_seen_gets_no_interval(
        self, tiny_data: Path, tmp_path: Path, condition: MaskCondition
    ) -> None:
        """IoU 0 in every draw is not known to be 0."""
        for path in sorted((tiny_data / "images").iterdir()):
            save_png(Image.new("RGB", (40, 32), (90, 90, 95)), tmp_path / "roads" / path.name)
        options = Options(segmenter="nearest", bootstrap=20, device="cpu")
        found = evaluate_files(tmp_path / "roads", options, None, tiny_data / "labels", condition)
        sky, road = found.measure("iou", "sky"), found.measure("iou", "road")
        assert (sky.value, sky.low, sky.high) == (0, None, None)
        assert sky.row()["95% interval"] == ""
        assert road.low is not None

    def test_distance_to_the_photograph_of_the_same_name(self, tiny_data: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        spec = PerceptualSpec(network="alexnet", weights=str(tmp_path / "alexnet.safetensors"))
        save_file(PerceptualNetwork(spec).state_dict(), tmp_path / "alexnet.safetensors")
        options = Options(("colours",), perceptual=spec, bootstrap=10, device="cpu")
        for path in (tiny_data / "images").iterdir():
            save_png(read_rgb(path).resize((80, 64)), tmp_path / "photographs" / path.name)
            save_png(read_rgb(path).resize((80, 64)).crop((8, 0, 72, 64)), tmp_path / "made" / path.name)
        found = evaluate_files(tmp_path / "made", options, tmp_path / "photographs")
        assert found.value("photograph_distance", "alexnet") < 1e-6
        assert found.facts["judges"][-1]["of"] == "photographs"

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


def test_what_labels_lack_is_noted(tiny_data: Path) -> None:
    """Of `--labels`, a folder of masks that images are judged by."""
    for path in (tiny_data / "labels").iterdir():
        save_png(Image.new("L", (40, 32), 0), path)
    options = Options(("colours",), bootstrap=0, device="cpu", segmenter="nearest")
    condition = MaskCondition(ClassTable.read(tiny_data / "classes.json"))
    found = evaluate_files(tiny_data / "images", options, tiny_data / "images", tiny_data / "labels", condition)
    assert any("occur in no mask" in note for note in found.notes)
