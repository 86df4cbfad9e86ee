"""Objects of a class within an image: manual computation, collapsed and varied objects, and as part of an
evaluation."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.evaluation.evaluate import Options, evaluate_files
from piti.evaluation.objects import Objects, object_distances
from piti.evaluation.per_condition import AlignmentError
from tests.conftest import TINY_CLASSES

TRUTH = torch.zeros(20, 30, dtype=torch.long)
TRUTH[2:8, 2:8] = 2  # two cars
TRUTH[2:8, 20:26] = 2
TRUTH[15:18, 10:14] = 1  # one road: alone
TRUTH[19, 29] = 2  # too small


@pytest.fixture
def condition() -> MaskCondition:
    names = tuple(str(entry["name"]) for entry in TINY_CLASSES["classes"])  # type: ignore[index,union-attr]
    return MaskCondition(ClassTable(names=names, ids=(0, 1, 2), colours=((0, 0, 0), (1, 1, 1), (2, 2, 2))))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Masks, and two samples: in `same` both cars have one colour, another in each sample; in `own` each its own."""
    for name in ("masks", "made"):
        (tmp_path / name).mkdir()
    colours = {"same": [(10, 10), (50, 50)], "own": [(10, 50), (50, 10)]}
    for stem, samples in colours.items():
        Image.fromarray(TRUTH.numpy().astype(np.uint8)).save(tmp_path / "masks" / f"{stem}.png")
        for k, (left, right) in enumerate(samples):
            pixels = np.zeros((20, 30, 3), np.uint8)
            pixels[2:8, 2:8], pixels[2:8, 20:26] = left, right
            Image.fromarray(pixels).save(tmp_path / "made" / f"{stem}_{k}.png")
    return tmp_path / "masks", tmp_path / "made"


def groups_of(made: Path) -> dict[str, list[Path]]:
    return {stem: sorted(made.glob(f"{stem}_*.png")) for stem in ("own", "same")}


def test_regions_of_classes_that_have_two() -> None:
    found = Objects.of(TRUTH, 3)
    assert found.classes.tolist() == [2, 2]
    assert found.twos == [(0, 1)]
    assert found.ids[19, 29] == found.ids[16, 12] == found.ids[0, 0] == -1


def test_looks_are_means_and_deviations() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[2:5, 2:8, 0] = 100  # half of the first car
    assert Objects.of(TRUTH, 3).looks(pixels)[0].tolist() == pytest.approx([50, 0, 0, 50, 0, 0])


def test_collapsed_and_varied(folders: tuple[Path, Path], condition: MaskCondition) -> None:
    masks, made = folders
    files = {path.stem: path for path in masks.iterdir()}
    found = object_distances(groups_of(made), files, condition)
    assert found.stems == ("own", "same")
    step = 40 * 3**0.5
    measures = found.measures()
    assert measures["object_distance", "car"] == pytest.approx(step / 2)  # own: a step, same: none
    assert measures["object_distance_across", "car"] == pytest.approx(step / 2)  # the other way round
    collapsed, varied = (found.measures(torch.tensor([row])) for row in (1, 0))
    assert (collapsed["object_distance", ""], collapsed["object_ratio", ""]) == (0, 0)
    assert ("object_ratio", "") not in varied  # in different samples they are the same colour
    assert ("object_distance", "road") not in measures


def test_samples_of_one_mask_that_differ_in_size_are_named(
    folders: tuple[Path, Path], condition: MaskCondition
) -> None:
    masks, made = folders
    Image.new("RGB", (20, 20)).save(made / "own_1.png")  # its centred square, of the same short side
    files = {path.stem: path for path in masks.iterdir()}
    with pytest.raises(AlignmentError, match=r"own_0\.png and .*own_1\.png are samples of own and differ in size"):
        object_distances(groups_of(made), files, condition)


def test_one_mask_is_held_at_a_time(
    folders: tuple[Path, Path], condition: MaskCondition, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, made = folders
    groups = groups_of(made)
    for path in [masks / "own.png", *groups["own"]]:
        shutil.copy(path, path.with_name(path.name.replace("own", "third")))
    groups["third"] = sorted(made.glob("third_*.png"))
    held: list[weakref.ref[Objects]] = []
    alive: list[int] = []
    found_of = Objects.of

    def watched(truth: torch.Tensor, count: int) -> Objects:
        alive.append(sum(one() is not None for one in held))
        found = found_of(truth, count)
        held.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Objects, "of", staticmethod(watched))
    object_distances(groups, {path.stem: path for path in masks.iterdir()}, condition)
    assert alive == [0, 1, 1]


def test_masks_without_two_objects(tmp_path: Path, condition: MaskCondition) -> None:
    for name, mode in (("masks", "L"), ("made", "RGB")):
        (tmp_path / name).mkdir()
        for stem in "ab":
            Image.new(mode, (20, 20)).save(tmp_path / name / f"{stem}.png")
    options = Options((), objects=True, bootstrap=20, device="cpu")
    found = evaluate_files(tmp_path / "made", options, None, tmp_path / "masks", condition)
    assert not found.measures
    assert (
        "no mask has two objects of one class that cover 0.4% of the image each, so none were compared" in found.notes
    )


def test_as_part_of_an_evaluation(folders: tuple[Path, Path], condition: MaskCondition, tmp_path: Path) -> None:
    masks, made = folders
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for stem in ("own", "same"):
        Image.open(made / "own_0.png").save(photographs / f"{stem}.png")
    options = Options((), objects=True, bootstrap=20, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("piti.evaluation.evaluate._networks", lambda *rest: [])
        found = evaluate_files(made, options, photographs, masks, condition)
    assert found.value("real_object_distance", "car") == pytest.approx(40 * 3**0.5)
    assert found.measure("object_distance", "car").low is not None
    assert found.facts["judges"][-1]["of"] == "objects"
