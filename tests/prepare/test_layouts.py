"""Real layouts on small trees: listing, detected problems, and data that training reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, MaskCondition, coco_stuff
from piti.conditions.geometry import GeometryCondition
from piti.core.seeding import generator_for
from piti.data import FolderSpec, PairedFolder
from piti.data.pairs import NO_VALIDATION
from piti.data.problems import DataError
from piti.prepare.datasets import SetReport, check_set, write_set
from piti.prepare.layouts import Ade20k, Cityscapes, CocoStuff, Diode, Layout, PlainFolder, SceneParse, ade20k
from piti.prepare.layouts.base import photographs_below
from piti.prepare.layouts.coco_stuff import UNUSED
from piti.prepare.layouts.diode import facing_normals
from tests.prepare import trees


def prepared(layout: Layout, out: Path, **options: bool) -> SetReport:
    report = check_set(layout)
    write_set(report, out, **options)
    return report


def masks(out: Path, split: str) -> PairedFolder:
    """The prepared set as training reads it, every pair checked."""
    condition = MaskCondition(ClassTable.read(out / "classes.json"))
    folder = PairedFolder(FolderSpec(root=out, size=8), condition, split)
    folder.check()
    assert folder.sample(0, generator_for(0)).condition.shape == (1, 8, 8)
    return folder


def bands(folder: PairedFolder, key: str) -> list[str]:
    """Names of a mask's bands from the top; - where it is unlabelled."""
    assert isinstance(folder.condition, MaskCondition)
    pair = next(pair for pair in folder.pairs if pair.key == key)
    assert pair.condition is not None
    column = folder.condition.load(pair.condition)[0, :, 0].tolist()
    values = [value for k, value in enumerate(column) if k == 0 or column[k - 1] != value]
    return ["-" if v == folder.condition.ignore_index else folder.condition.classes.names[v] for v in values]


def kinds(report: SetReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for fault in report.faults:
        found.setdefault(fault.kind.partition(" (")[0], []).append(fault.key)
    return found


def test_photographs_are_jpegs_however_their_names_end(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.Jpg", "deep/b.v2.jpeg", "deep/c.JPG", "d.jpeg", "d.jpg", ".hidden.jpg", "e.png"):
        (tmp_path / name).touch()
    found = {key: path.name for key, path in photographs_below(tmp_path).items()}
    assert found == {"a": "a.Jpg", "d": "d.jpg", "deep/b.v2": "b.v2.jpeg", "deep/c": "c.JPG"}


class TestSceneParse:
    def test_prepared_and_read(self, tmp_path: Path) -> None:
        layout = ade20k(trees.scene_parse(tmp_path / "src"))
        assert isinstance(layout, SceneParse)
        report = prepared(layout, tmp_path / "out")
        assert report.rows() == [
            {"split": "train", "pairs": "4", "good": "4", "bad": "0", "classes seen": "5"},
            {"split": "val", "pairs": "2", "good": "2", "bad": "0", "classes seen": "3"},
        ]
        train = masks(tmp_path / "out", "train")
        assert len(train) == 4
        assert len(masks(tmp_path / "out", "val")) == 2
        key = "training/ADE_train_00000002"
        assert bands(train, key) == ["-", "wall", "class 150", "building, edifice"]
        source = layout.root / "annotations/training/ADE_train_00000002.png"
        assert (tmp_path / "out/labels" / f"{key}.png").samefile(source)  # nothing to change
        assert (tmp_path / "out/images" / f"{key}.jpg").samefile(layout.root / "images" / f"{key}.jpg")

    def test_everything_wrong_is_found_and_left_out(self, tmp_path: Path) -> None:
        root = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016"
        trees.truncate(root / "annotations/training/ADE_train_00000001.png")
        trees.save(root / "annotations/training/ADE_train_00000002.png", trees.labels(0, 151, 200))
        trees.save(root / "annotations/validation/ADE_val_00000001.png", trees.labels(1, size=(23, 16)))
        trees.truncate(root / "images/training/ADE_train_00000003.jpg")
        trees.photograph(root / "images/training/ADE_train_00000099.jpg")
        trees.save(root / "annotations/training/ADE_train_00000077.png", trees.labels(1))
        layout = ade20k(root)
        report = check_set(layout)
        assert kinds(report) == {
            "images without an annotation": ["training/ADE_train_00000099"],
            "annotations without an image": ["training/ADE_train_00000077"],
            "unreadable files": ["training/ADE_train_00000001", "training/ADE_train_00000003"],
            "annotations with unknown labels": ["training/ADE_train_00000002"],
            "pairs whose sizes differ": ["validation/ADE_val_00000001"],
        }
        assert report.unknown.keys() == {151, 200}
        assert report.rows()[0] == {"split": "train", "pairs": "4", "good": "1", "bad": "3", "classes seen": "3"}
        assert report.rows()[-1]["bad"] == "2"
        assert "151 (120 pixels), 200" in report.notes()[0]
        with pytest.raises(DataError, match=r"label 151 on 120 pixels, 200 on 120 pixels"):
            write_set(report, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        done = write_set(report, tmp_path / "out", skip_bad=True)
        assert done == "2 pairs made, 6 problems skipped (listed in skipped.txt)"
        assert len((tmp_path / "out/skipped.txt").read_text().splitlines()) == 6
        assert [pair.key for pair in masks(tmp_path / "out", "train").pairs] == ["training/ADE_train_00000004"]

    def test_names_are_numbers_without_the_list(self, tmp_path: Path) -> None:
        root = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016"
        (root / "objectInfo150.txt").unlink()
        assert SceneParse(root).classes().names[:2] == ("class 1", "class 2")

    def test_top_is_for_the_full_release(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="top is for the full release"):
            ade20k(trees.scene_parse(tmp_path), top=5)


class TestFullRelease:
    def test_red_and_green_are_labels(self, tmp_path: Path) -> None:
        layout = ade20k(trees.ade_full(tmp_path / "src"))
        assert isinstance(layout, Ade20k)
        report = prepared(layout, tmp_path / "out")
        assert report.layout.classes() == layout.classes()
        table = ClassTable.read(tmp_path / "out/classes.json")
        assert table.ids == (1, 255, 256, 2978, 6655)
        assert table.names == ("abacus", "ball", "bar", "wall", "class 6655")
        assert table.ignore == 0
        train = masks(tmp_path / "out", "train")
        assert bands(train, "ADE/training/urban/street/ADE_train_00000001") == ["-", "abacus", "ball"]
        assert bands(train, "ADE/training/urban/street/ADE_train_00000002") == ["bar", "wall"]
        val = masks(tmp_path / "out", "val")
        assert bands(val, "ADE/validation/urban/street/ADE_val_00000003") == ["-", "class 6655", "abacus"]
        with Image.open(tmp_path / "out/labels/ADE/training/urban/street/ADE_train_00000002.png") as image:
            assert image.mode == "I;16"

    def test_only_the_most_frequent(self, tmp_path: Path) -> None:
        prepared(ade20k(trees.ade_full(tmp_path / "src"), top=2), tmp_path / "out")
        assert ClassTable.read(tmp_path / "out/classes.json").names == ("abacus", "wall")
        key = "ADE/validation/urban/street/ADE_val_00000003"
        assert bands(masks(tmp_path / "out", "val"), key) == ["-", "abacus"]

    def test_names_that_repeat_get_their_numbers_and_broken_json_none(self, tmp_path: Path) -> None:
        trees.ade_full(tmp_path, ((774, 783), (783, 5)))
        for k, path in enumerate(sorted(tmp_path.rglob("ADE_train_*.json"))):
            objects = [{"name_ndx": label, "name": "door"} for label in (774, 783)]
            path.write_text(json.dumps({"annotation": {"object": objects}}) if k == 0 else "{ broken")
        report = check_set(ade20k(tmp_path))
        assert not report.faults
        table = report.layout.classes()
        assert table is not None
        assert table.names == ("class 5", "door", "door (783)")
        assert "only train exists" in report.notes()[0]

    def test_colours_that_are_no_labels(self, tmp_path: Path) -> None:
        root = trees.ade_full(tmp_path)
        first, second, _ = sorted(root.rglob("*_seg.png"))
        trees.save(first, np.full((16, 24, 3), 5, np.uint8))
        trees.save(second, trees.labels(1))
        report = check_set(ade20k(root))
        said = [fault.what for fault in report.faults]
        assert "384 pixels without a label (red is not a multiple of 10)" in said[0]
        assert "a L image, expected RGB" in said[1]

    def test_nothing_labelled(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no mask has a label"):
            check_set(ade20k(trees.ade_full(tmp_path, ((0,), (0,)))))


class TestCocoStuff:
    def test_prepared_and_read(self, tmp_path: Path) -> None:
        report = prepared(CocoStuff(trees.coco(tmp_path / "src")), tmp_path / "out")
        assert not report.faults  # train ids and the test split are not taken for orphans
        assert ClassTable.read(tmp_path / "out/classes.json") == coco_stuff()
        train = masks(tmp_path / "out", "train")
        assert bands(train, "train2017/000000000002") == ["person", "wood", "-", "car"]

    def test_train_ids(self, tmp_path: Path) -> None:
        prepared(CocoStuff(trees.coco(tmp_path / "src"), train_ids=True), tmp_path / "out")
        table = ClassTable.read(tmp_path / "out/classes.json")
        assert table.count == 171
        assert {coco_stuff().names[k] for k in UNUSED}.isdisjoint(table.names)
        assert bands(masks(tmp_path / "out", "val"), "val2017/000000000001") == ["person", "wood", "-", "bicycle"]

    def test_a_palette_is_no_colours(self, tmp_path: Path) -> None:
        """A grey palette's (128, 128, 128) is train's colour in the table; the label is the index."""
        root = trees.coco(tmp_path / "src")
        image = Image.fromarray(trees.labels(128)).convert("P")
        image.putpalette([value for k in range(256) for value in (k, k, k)])
        image.save(root / "annotations/val2017/000000000000.png")
        prepared(CocoStuff(root), tmp_path / "out")
        val = masks(tmp_path / "out", "val")
        assert bands(val, "val2017/000000000000") == [coco_stuff().names[128]]

    def test_unknown_ids(self, tmp_path: Path) -> None:
        root = trees.coco(tmp_path)
        trees.save(root / "annotations/val2017/000000000000.png", trees.labels(182, 3))
        report = check_set(CocoStuff(root))
        assert dict(report.unknown) == {182: 192}


class TestCityscapes:
    def test_label_ids(self, tmp_path: Path) -> None:
        report = prepared(Cityscapes(trees.cityscapes(tmp_path / "src")), tmp_path / "out")
        assert [row["pairs"] for row in report.rows()] == ["3", "2"]  # the test split is left out
        train = masks(tmp_path / "out", "train")
        key = "train/aachen/aachen_000000_000019"
        assert bands(train, key) == ["-", "static", "road", "bicycle", "polegroup"]

    def test_train_ids(self, tmp_path: Path) -> None:
        layout = Cityscapes(trees.cityscapes(tmp_path / "src"), train_ids=True)
        prepared(layout, tmp_path / "out")
        table = ClassTable.read(tmp_path / "out/classes.json")
        assert table.count == 19
        assert table.names[:3] == ("road", "sidewalk", "building")
        assert bands(masks(tmp_path / "out", "val"), "val/ulm/ulm_000001_000019") == ["-", "road", "bicycle", "-"]

    @pytest.mark.parametrize("train_ids", [False, True])
    def test_unknown_ids(self, tmp_path: Path, train_ids: bool) -> None:
        root = trees.cityscapes(tmp_path)
        trees.save(root / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", trees.labels(7, 34))
        report = check_set(Cityscapes(root, train_ids))
        assert kinds(report) == {"annotations with unknown labels": ["val/ulm/ulm_000000_000019"]}


class TestDiode:
    def read(self, out: Path, split: str) -> PairedFolder:
        folder = PairedFolder(FolderSpec(root=out, conditions="depth", size=8), GeometryCondition(), split)
        folder.check()
        assert folder.sample(0, generator_for(0)).condition.shape[-2:] == (8, 8)
        return folder

    @pytest.mark.parametrize("normals", [True, False])
    def test_prepared_and_read(self, tmp_path: Path, normals: bool) -> None:
        report = prepared(Diode(trees.diode(tmp_path / "src", normals)), tmp_path / "out")
        assert [row["good"] for row in report.rows()] == ["3", "2"]
        train = self.read(tmp_path / "out", "train")
        assert len(self.read(tmp_path / "out", "val")) == 2
        path = train.pairs[0].condition
        with np.load(path) as arrays:
            assert set(arrays) == {"depth", "mask"} | ({"normal"} if normals else set())
            assert (arrays["depth"].dtype, arrays["mask"].dtype) == (np.float32, np.uint8)
            assert not arrays["mask"][:4].any()
            assert arrays["mask"][4:].all()
            assert np.array_equal(arrays["depth"][4:], np.linspace(1, 5, 384, dtype=np.float32).reshape(16, 24)[4:])
            if normals:
                assert arrays["normal"].dtype == np.float16
                assert np.allclose(arrays["normal"][2, 9], (0, 0, -1), atol=1e-3)
                assert np.allclose(arrays["normal"][12, 9], (0, -0.8, -0.6), atol=1e-3)
                assert not arrays["normal"][:, :2].any()
        assert train.condition.load(path).isfinite()[0, 4:].all()  # known below the hole
        assert not train.condition.load(path).isfinite()[0, :4].any()

    def test_normals_are_turned_to_the_camera(self) -> None:
        normal = np.zeros((768, 1024, 3), np.float32)
        normal[..., 2] = 2  # away, and too long
        normal[0, 0] = np.nan
        normal[384, 1023] = (-1, 0, 0.3)  # at the right edge this faces the camera, though its z points away
        facing = facing_normals(normal)
        assert np.allclose(facing[384, 512], (0, 0, -1))
        assert not facing[0, 0].any()
        assert facing[384, 1023, 0] < 0
        assert np.allclose(np.linalg.norm(facing, axis=-1)[1:], 1, atol=1e-5)

    def test_everything_wrong_is_found(self, tmp_path: Path) -> None:
        root = trees.diode(tmp_path / "src")
        folder = root / "train/indoors/scene_00019/scan_00183"
        stems = [folder / f"00019_00183_indoors_000_{k:03d}" for k in range(3)]
        trees.truncate(Path(f"{stems[0]}_depth.npy"))
        np.save(f"{stems[1]}_depth_mask.npy", np.zeros((16, 24)))
        Path(f"{stems[2]}_depth_mask.npy").unlink()
        folder = root / "val/outdoor/scene_00019/scan_00183"
        np.save(f"{folder}/00019_00183_outdoor_000_000_normal.npy", np.zeros((16, 23, 3)))
        np.save(f"{folder}/00019_00183_outdoor_000_001_depth.npy", np.array([object()]), allow_pickle=True)
        for k in (7, 8):
            shutil.copy(f"{stems[1]}.png", folder / f"00019_00183_outdoor_000_00{k}.png")
        np.save(f"{folder}/00019_00183_outdoor_000_008_depth.npy", np.ones((8, 8), np.float32))
        np.save(f"{folder}/00019_00183_outdoor_000_008_depth_mask.npy", np.ones((8, 8), np.float32))
        with pytest.raises(DataError) as error:
            check_set(Diode(root))
        said = str(error.value)
        for part in (
            "1 depth files without a mask",
            "any valid pixel",
            "sizes differ",
            "1 images without an annotation",
        ):
            assert part in said
        assert "3 unreadable files" in said

    def test_no_such_layout(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="unexpected layout, expected train/ or val/"):
            Diode(tmp_path)


class TestPlainFolder:
    def test_copied_and_read(self, tiny_data: Path, tmp_path: Path) -> None:
        report = prepared(PlainFolder(tiny_data), tmp_path / "out", link=False)
        assert [row["good"] for row in report.rows()] == ["9", "3"]
        assert (tmp_path / "out/splits.json").read_text() != ""
        assert len(masks(tmp_path / "out", "train")) == 9
        assert ClassTable.read(tmp_path / "out/classes.json") == ClassTable.read(tiny_data / "classes.json")
        copied = tmp_path / "out/labels/scene-00.png"
        assert copied.read_bytes() == (tiny_data / "labels/scene-00.png").read_bytes()
        assert copied.stat().st_nlink == 1

    def test_what_is_wrong(self, tiny_data: Path) -> None:
        trees.save(tiny_data / "labels/scene-01.png", trees.labels(0, 9, size=(40, 32)))
        (tiny_data / "images/scene-02.png").unlink()
        splits = json.loads((tiny_data / "splits.json").read_text())
        splits["val"].append("missing")
        (tiny_data / "splits.json").write_text(json.dumps(splits))
        shutil.copy(tiny_data / "images/scene-03.png", tiny_data / "images/scene-03.bmp")
        report = check_set(PlainFolder(tiny_data))
        assert kinds(report) == {
            "keys in splits.json without files": ["missing"],
            "keys with several files": ["scene-03"],
            "annotations without an image": ["scene-02"],
            "annotations with unknown labels": ["scene-01"],
        }
        assert {entry.key for entry in report.good}.isdisjoint({"scene-01", "scene-02", "scene-03"})

    def test_the_splits_are_carried_over_as_they_are(self, tiny_data: Path, tmp_path: Path) -> None:
        given = {"train": ["scene-04", "scene-01"], "val": [], "test": ["scene-07"]}
        named = {**given, "train": ["scene-04", "images/scene-01.png"]}
        (tiny_data / "splits.json").write_text(json.dumps(named))
        report = prepared(PlainFolder(tiny_data), tmp_path / "out")
        assert json.loads((tmp_path / "out/splits.json").read_text()) == given
        assert [(row["split"], row["pairs"]) for row in report.rows()] == [
            ("(none)", "9"),
            ("test", "1"),
            ("train", "2"),
        ]
        assert report.notes()[:2] == [NO_VALIDATION, "not used, since they are in no split of splits.json: 9 pairs"]

    def test_what_training_refuses_of_splits_is_refused(self, tiny_data: Path) -> None:
        place = tiny_data / "splits.json"
        place.write_text(json.dumps({"train": ["scene-00"], "validation": ["scene-01"]}))
        with pytest.raises(DataError, match=r"unknown split 'validation'; did you mean 'val'\?"):
            PlainFolder(tiny_data).listing()
        place.write_text(json.dumps({"train": ["scene-00", "scene-01"], "val": ["scene-01"]}))
        faults = PlainFolder(tiny_data).listing().faults
        assert [fault.what for fault in faults] == ["scene-01: train, val"]
        place.write_text(json.dumps({"val": ["scene-01"]}))
        assert [fault.kind for fault in PlainFolder(tiny_data).listing().faults] == [
            "splits without pairs in splits.json (list some)"
        ]

    def test_without_classes(self, tiny_data: Path) -> None:
        (tiny_data / "classes.json").unlink()
        with pytest.raises(DataError, match=r"classes.json: cannot read the class table"):
            PlainFolder(tiny_data)

    def test_real_street_scenes(self, camvid: Path) -> None:
        listing = PlainFolder(camvid).listing()
        assert (len(listing.entries), listing.faults) == (530, [])
        assert not PlainFolder(camvid).examine(listing.entries[0]).faults


@pytest.mark.parametrize("layout", [ade20k, CocoStuff, Cityscapes, Diode, PlainFolder])
def test_another_folder_is_refused(layout, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="expected"):
            layout(place)
