"""Folders of user data: each kind of irregularity is read correctly or reported."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, MaskCondition, TextCondition
from piti.core.images import ImageError, read_rgb
from piti.core.walk import walk
from piti.data import open_shards
from piti.data.folders import PairedFolder
from piti.data.pairs import FolderSpec
from piti.data.problems import DataError
from piti.prepare.datasets import check_set
from piti.prepare.layouts import PlainFolder
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from tests.conditions.test_composite import Silent, Slopes


def folder_of(root: Path, size: int = 16) -> PairedFolder:
    return PairedFolder(FolderSpec(root=root, size=size), MaskCondition(ClassTable.read(root / "classes.json")))


def problems(root: Path) -> str:
    with pytest.raises(DataError) as error:
        folder_of(root).check()
    return str(error.value)


def table(*names: str, colours=None, **more) -> dict:
    colours = colours or [[10 * k + 7, 3, 200] for k in range(len(names))]
    rows = zip(names, colours, strict=True)
    classes = [{"id": k, "name": name, "color": colour} for k, (name, colour) in enumerate(rows)]
    return {"classes": classes, "ignore": 255, **more}


def made(root: Path, masks: dict[str, Image.Image], classes: dict, photographs: str = ".png") -> Path:
    """A data root of these masks, with photographs that show them."""
    for key, mask in masks.items():
        for folder in ("images", "labels"):
            (root / folder / key).parent.mkdir(parents=True, exist_ok=True)
        mask.save(root / "labels" / f"{key}.png")
        mask.convert("RGB").save(root / "images" / f"{key}{photographs}")
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def ids(*values: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, np.uint8), (side, side)))


def paletted(indices: Image.Image, *colours) -> Image.Image:
    image = indices.convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


class TestReadingOfASet:
    OWN = table("sky", "road", "car", "hair", colours=[[70, 130, 180], [128, 64, 128], [128, 0, 0], [0, 0, 0]])
    VOC = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))

    def test_one_file_that_fits_ids_alone_decides_for_all(self, tmp_path):
        masks = {"s0": paletted(ids(0, 1, 2, 3), *self.VOC), "s1": paletted(ids(0, 1), *self.VOC)}
        folder = folder_of(made(tmp_path, masks, self.OWN))
        notes = folder.check().notes
        assert folder.raw(1).unique().tolist() == [0, 1]
        assert "masks are read as ids; 1 of 2 files could also be colours" in notes[0]

    def test_a_set_that_nothing_decides_is_refused_with_the_key_and_read_by_it(self, tmp_path):
        root = made(tmp_path, {"s1": paletted(ids(0, 1), *self.VOC), "s2": paletted(ids(0, 1), *self.VOC)}, self.OWN)
        said = problems(root)
        assert "both fit in 2 of 2 files" in said
        assert '"reading": "ids"' in said
        (root / "classes.json").write_text(json.dumps(self.OWN | {"reading": "ids"}))
        folder = folder_of(root)
        folder.check()
        assert folder.raw(0).unique().tolist() == [0, 1]

    def test_palettes_that_differ_from_file_to_file_hold_colours(self, tmp_path):
        sky, road, car, _ = ([*one["color"]] for one in self.OWN["classes"])
        masks = {"s0": paletted(ids(0, 1), sky, car), "s1": paletted(ids(0, 1), road, sky)}
        folder = folder_of(made(tmp_path, masks, self.OWN))
        folder.check()
        assert [folder.raw(k).unique().tolist() for k in range(2)] == [[0, 2], [0, 1]]

    def test_id_maps_saved_as_rgb(self, tmp_path):
        masks = {"s0": ids(0).convert("RGB"), "s1": ids(0, 1, 2).convert("RGB")}
        classes = table("bg", "hair", "face", colours=[[255, 255, 255], [0, 0, 0], [255, 200, 150]])
        folder = folder_of(made(tmp_path, masks, classes))
        folder.check()
        assert [folder.raw(k).unique().tolist() for k in range(2)] == [[0], [0, 1, 2]]

    @pytest.mark.parametrize("name", ["03b-palette-per-file", "03c-rgb-ids-per-file"])
    def test_the_cases(self, cases, name):
        root = cases / "03-palette-per-file" / name
        folder = folder_of(root)
        folder.check()
        for pair, k in zip(folder.pairs, range(len(folder)), strict=True):
            stored = np.asarray(Image.open(str(pair.condition)))
            stored = stored if stored.ndim == 2 else stored[..., 0]
            assert np.array_equal(folder.raw(k)[0].numpy(), stored), pair.key

    def test_shards_keep_what_looking_at_all_files_decided(self, tmp_path):
        masks = {"s0": paletted(ids(0, 1, 2, 3), *self.VOC), "s1": paletted(ids(0, 1), *self.VOC)}
        report = pack_shards(PackJob(made(tmp_path / "data", masks, self.OWN), tmp_path / "shards"))
        assert report.manifest.classes is not None
        assert report.manifest.classes["reading"] == "ids"
        assert ClassTable.read(tmp_path / "shards/classes.json").reading == "ids"

    def test_black_and_white(self, cases):
        said = problems(cases / "01-binary-0-255/01-binary-0-255")
        assert "255 is the id of unlabelled pixels, or the colour of 'lesion'" in said
        with pytest.raises(DataError, match="reading"):
            check_set(PlainFolder(cases / "01-binary-0-255/01-binary-0-255"))

    def test_white_is_no_class_of_a_list_of_names_and_not_unlabelled_either(self, tmp_path):
        said = problems(made(tmp_path, {"s0": ids(0, 255)}, ["bg", "fg"]))
        assert "id 255 on" in said
        assert '"ignore": 255 if these pixels are unlabelled' in said
        assert "None" not in said

    @pytest.mark.parametrize(("values", "first"), [((1, 2, 3), 1), ((255, 1, 2, 3), 1)])
    def test_ids_that_are_all_shifted(self, tmp_path, values, first):
        said = problems(made(tmp_path, {"s0": ids(*values)}, table("sky", "road", "car")))
        assert (
            f'every id is one above an id of the table; if ids start there, begin the table with "id": {first}' in said
        )


class TestCoverage:
    def test_unlabelled_is_no_class_that_is_seen(self, tmp_path):
        mask = ids(0, 1)
        mask.info["transparency"] = 1
        root = made(tmp_path, {"s0": mask}, ["sky", "road"])
        mask.save(root / "labels/s0.png", transparency=1)
        assert [row["classes seen"] for row in check_set(PlainFolder(root)).rows()] == ["1"]

    def test_classes_that_occur_nowhere_and_what_is_unlabelled(self, tmp_path):
        root = made(tmp_path, {"s0": ids(0, 1, 255, 255), "s1": ids(0)}, table("sky", "road", "lesion"))
        note = "class 'lesion' occurs in no mask; 25% unlabelled"
        assert note in folder_of(root).check().notes
        assert note in check_set(PlainFolder(root)).notes()

    def test_masks_that_are_unlabelled_throughout_are_a_warning(self, tmp_path):
        root = made(tmp_path, {"s0": ids(0, 1), "s1": ids(255)}, table("sky", "road"))
        note = "warning: 1 of 2 masks are unlabelled throughout, so no class guides the image"
        assert note in folder_of(root).check().notes
        assert note in check_set(PlainFolder(root)).notes()

    def test_of_shards_some_samples_are_looked_at_and_how_many_is_said(self, tmp_path):
        masks = {f"s{k}": ids(0, 1, 255, 255) for k in range(4)} | {"t": ids(255)}
        root = made(tmp_path / "data", masks, table("sky", "road", "lesion"))
        notes = pack_shards(PackJob(root, tmp_path / "shards")).notes
        assert notes[0] == "of 5 of 5 masks checked: class 'lesion' occurs in no mask; 60% unlabelled"
        assert "1 of 5 masks are unlabelled throughout" in notes[1]
        spec = FolderSpec(shards=(str(tmp_path / "shards"),), size=16, shard_cache=tmp_path / "cache")
        training, _ = open_shards(spec, MaskCondition(ClassTable.read(root / "classes.json")))
        said = training.looked(2)
        assert said[0].startswith(f"in 2 of {len(training)} samples checked: class 'lesion' occurs in no mask")

    def test_a_drawing_whose_numbers_happen_to_be_ids_is_a_warning(self, tmp_path):
        page = Image.new("L", (64, 64), 255)
        page.paste(0, (5, 5, 60, 8))
        note = "1 of 2 masks are thin lines of one class, unlabelled elsewhere"
        notes = folder_of(made(tmp_path, {"s0": page, "s1": ids(0, 1)}, table("sky", "road"))).check().notes
        assert f"warning: {note}: for drawings use a sketch model (model sketch)" in notes
        labels = Image.new("L", (64, 64), 255)
        labels.paste(0, (5, 5, 40, 40))
        notes = folder_of(made(tmp_path / "b", {"s0": labels}, table("sky", "road"))).check().notes
        assert "thin lines" not in "\n".join(notes)

    def test_the_case(self, cases):
        root = cases / "21-class-never-seen/19-missing-class"
        assert "classes 'c3', 'c4', 'c5' (3 of 6) occur in no mask" in "\n".join(folder_of(root).check().notes)


class TestExactValues:
    def test_ids_in_jpegs(self, cases):
        assert "is a JPEG, a lossy format, which changes" in problems(cases / "02-jpeg-ids/02-jpeg-ids150")

    def test_lossy_files_have_a_heading_of_their_own(self, tmp_path):
        root = made(tmp_path, {"s0": ids(0, 1), "s1": ids(0, 1)}, table("sky", "road"))
        (root / "labels/s1.png").unlink()
        ids(0, 1).save(root / "labels/s1.jpg")
        heading = "conditions in lossy formats (export them as PNG from their source)"
        assert f"1 {heading}" in problems(root)
        assert [fault.kind for fault in check_set(PlainFolder(root)).faults] == [heading]

    def test_ids_in_jpegs_are_not_packed(self, cases, tmp_path):
        with pytest.raises(DataError, match="is a JPEG, a lossy format, which changes"):
            pack_shards(PackJob(cases / "02-jpeg-ids/02-jpeg-ids150", tmp_path / "shards"))

    def test_the_cause_of_unequal_sizes_is_packed_along(self, cases, tmp_path):
        with pytest.raises(DataError, match="one is rotated by its EXIF orientation"):
            pack_shards(PackJob(cases / "17-exif/16-exif-mismatch", tmp_path / "shards"))

    @pytest.mark.parametrize("depth", [10, 12, 14])
    def test_numbers_of_fewer_bits_are_refused_with_their_range(self, tmp_path, depth):
        values = np.linspace(0, 2**depth - 1, 64).astype(np.uint16).reshape(8, 8)
        for name, image in {"g.png": values, "g.tif": values.astype(np.int32)}.items():
            Image.fromarray(image).save(tmp_path / name)
            with pytest.raises(ImageError, match=rf"its grey values are 0\.\.{2**depth - 1}, .*0\.\.65535"):
                read_rgb(tmp_path / name)

    def test_the_greys(self, cases):
        place = cases / "18-grey-depths/greys"
        assert read_rgb(place / "g16.png").getextrema()[0] == (48, 176)
        for name, said in {"g12.png": r"768\.\.2816", "g32.tif": r"48\.\.176"}.items():
            with pytest.raises(ImageError, match=said):
                read_rgb(place / name)

    def test_a_wide_gamut_is_read_as_srgb(self, cases):
        one, other = (
            np.asarray(read_rgb(cases / f"20-icc/26-icc/{name}.png")).astype(int)
            for name in ("same_picture_srgb", "wide_gamut")
        )
        assert np.abs(one - other).max() <= 1


class TestWalking:
    @pytest.fixture
    def linked(self, cases, tmp_path) -> Path:
        """The case with its links, as `make_links.sh` makes them."""
        root = tmp_path / "links"
        shutil.copytree(cases / "04-symlinks", root)
        for kind in ("images", "labels"):
            (root / "10-symlink-subfolder" / kind).chmod(0o755)
            (root / "27-dangling" / kind).chmod(0o755)
            (root / "10-symlink-subfolder" / kind / "site_b").symlink_to(root / "10-other-disk" / kind / "site_b")
            ending = "jpg" if kind == "images" else "png"
            (root / "27-dangling" / kind / f"s4.{ending}").symlink_to(f"nowhere/s4.{ending}")
        return root

    def test_linked_folders_are_followed(self, linked):
        root = linked / "10-symlink-subfolder"
        assert folder_of(root).check().pairs == 8
        assert sum(check_set(PlainFolder(root)).listed.values()) == 8

    def test_links_that_lead_nowhere_are_problems(self, linked):
        said = problems(linked / "27-dangling")
        assert "2 broken links" in said
        assert "labels/s4.png" in said
        with pytest.raises(DataError, match="broken links"):
            check_set(PlainFolder(linked / "27-dangling")).problems().raise_if_any(linked)

    def test_names_are_composed(self, cases):
        assert folder_of(cases / "14-unicode-names/11-nfd").check().pairs == 5

    def test_splits_may_be_decomposed_and_have_suffixes(self, tmp_path):
        root = made(tmp_path, {name: ids(0, 1) for name in ("café", "b/s2", "s3")}, table("sky", "road"))
        keys = [unicodedata.normalize("NFD", "café.png"), "b\\s2.jpg"]
        (root / "splits.json").write_text(json.dumps({"train": keys, "val": ["./s3"]}), encoding="utf-8-sig")
        condition = MaskCondition(ClassTable.read(root / "classes.json"))
        found = {split: PairedFolder(FolderSpec(root=root, size=16), condition, split) for split in ("train", "val")}
        assert [pair.key for pair in found["train"].pairs] == ["b/s2", "café"]
        assert [pair.key for pair in found["val"].pairs] == ["s3"]
        assert check_set(PlainFolder(root)).listed == {"train": 2, "val": 1}

    @pytest.mark.parametrize("other", ["S1", "s1_mask", "s1 (1)", "s1-label", "s1_labelIds"])
    def test_near_misses_are_named(self, tmp_path, other):
        root = made(tmp_path, {"s0": ids(0, 1), "s1": ids(0, 1)}, table("sky", "road"))
        (root / "labels/s1.png").rename(root / f"labels/{other}.png")
        said = problems(root)
        assert f"s1 (almost the same: {other}" in said
        assert f"{other} (almost the same: s1" in said

    def test_formats_that_pillow_reads_are_read(self, cases):
        assert folder_of(cases / "16-unread-formats/14-formats").check().pairs == 7

    def test_others_are_named(self, tmp_path):
        root = made(tmp_path, {"s0": ids(0, 1), "s1": ids(0, 1)}, table("sky", "road"))
        (root / "images/s1.png").rename(root / "images/s1.heic")
        assert "images of an unsupported format" in problems(root)

    def test_arrays_beside_masks_are_named(self, tmp_path):
        root = made(tmp_path / "data", {"s0": ids(0, 1)}, table("sky", "road"))
        np.save(root / "labels/s1.npy", np.zeros((4, 4), np.uint8))
        said = "arrays where images are expected (save them as 8-bit"
        assert said in problems(root)
        assert said in check_set(PlainFolder(root)).faults[0].kind
        with pytest.raises(DataError, match="arrays where images are expected"):
            pack_shards(PackJob(root, tmp_path / "shards"))
        with pytest.raises(ImageError, match="arrays where images are expected"):
            walk(root / "labels").check()
        Image.new("L", (4, 4)).save(root / "labels/s1.png")
        assert walk(root / "labels").lost() == []

    def test_a_mask_of_a_kind_that_is_not_read_is_named(self, tmp_path):
        root = made(tmp_path, {"s0": ids(0, 1), "s1": ids(0, 1)}, table("sky", "road"))
        (root / "labels/s1.png").rename(root / "labels/s1.npy")
        assert "s1 (s1.npy is there, but its format is not supported)" in problems(root)


class TestOrientation:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("16-exif-mismatch", "fits the unrotated pixels"),
            ("16b-exif-180", "photographs have an EXIF orientation and are rotated by it; by their colours"),
        ],
    )
    def test_the_cases(self, cases, name, said):
        root = cases / "17-exif" / name
        try:
            text = "\n".join(folder_of(root).check().notes)
        except DataError as error:
            text = str(error)
        assert said in text

    @pytest.mark.parametrize("turn", [2, 3, 4])
    def test_masks_over_the_turned_pixels_are_told_from_others(self, tmp_path, turn):
        mask = np.zeros((16, 16), np.uint8)
        mask[:5, :3] = 1
        classes = table("sky", "road", colours=[[0, 0, 0], [1, 1, 1]])
        root = made(tmp_path, {"s0": Image.fromarray(mask), "s1": Image.fromarray(mask)}, classes)
        exif = Image.Exif()
        exif[0x0112] = turn
        for key in ("s0", "s1"):
            Image.fromarray(mask * 200).convert("RGB").save(root / f"images/{key}.png", exif=exif)
        said = problems(root)
        assert "2 pairs whose photograph is rotated by its EXIF orientation" in said
        assert "the masks of 2 fit the unrotated ones better" in said
        report = check_set(PlainFolder(root))
        assert ([fault.key for fault in report.faults], report.good) == (["s0", "s1"], [])
        for key in ("s0", "s1"):
            turned = np.asarray(read_rgb(root / f"images/{key}.png"))[..., 0] // 200
            Image.fromarray(turned).save(root / f"labels/{key}.png")
        assert "must match the rotated ones" in "\n".join(folder_of(root).check().notes)


def test_mirrored_samples_keep_left_and_right(cases):
    import torch

    root = cases / "05-left-right-flip/29-left-right"
    folder = folder_of(root, size=32)
    left, right = 1, 2
    wrong = 0
    for k in range(100):
        raw = folder.sample(k % len(folder), torch.Generator().manual_seed(k)).condition[0]
        places = [torch.nonzero(raw == index)[:, 1].float().mean() for index in (left, right)]
        wrong += bool(places[0] > places[1])
    assert wrong in (0, 100)  # as it is in the photographs
    from piti.data.shown import mirroring_notes

    assert mirroring_notes(folder.condition) == ["mirrored samples (data.flip) swap l_eye ↔ r_eye"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_names_in_another_encoding_are_names_as_others(tiny_data):
    (tiny_data / "splits.json").unlink()
    for folder in ("images", "labels"):
        (tiny_data / folder / "scene-00.png").rename(tiny_data / folder / os.fsdecode(b"stra\xdfe.png"))
    found = folder_of(tiny_data)
    assert found.check().pairs == 12
    assert found.pairs[-1].key == "stra%DFe"
    assert len(found.identity()) == 64
    packed = pack_shards(PackJob(tiny_data, tiny_data / "packed"))
    assert sum(entry.samples for entry in packed.manifest.entries) == 12


def test_captions_that_are_longer_than_what_is_read_are_counted(tmp_path):
    for k, caption in enumerate(("a street", "a street in the rain, " * 4, "x" * 64)):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(caption)
    alone = FolderSpec(photographs=(tmp_path,), size=16)
    said = "2 of 3 captions fill the context of 64 tokens (condition.context): longer ones are truncated"
    assert PairedFolder(alone, TextCondition()).check().notes == (said,)
    assert PairedFolder(alone, TextCondition(context=100)).check().notes == ()


def test_a_kind_that_does_not_say_what_it_reads_is_told_before_training(tiny_data: Path) -> None:
    """A pipeline would bring its numbers to bytes, which the networks never saw."""
    spec = FolderSpec(root=tiny_data, size=16)
    assert PairedFolder(spec, Slopes(), "train").check().pairs == 9
    said = r"kind 'slopes' reads \[2, 32, 40\] of torch.float16, and says planes 1 of raw_dtype torch.uint8; let its"
    with pytest.raises(DataError, match=said):
        PairedFolder(spec, Silent(), "train").check()
