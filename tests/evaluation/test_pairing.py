"""Files of an evaluation, and errors for unusable ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from piti.core.images import ImageError, save_png
from piti.data.problems import DataError
from piti.evaluation.pairing import (
    PairingError,
    by_name,
    check_alike,
    conditions_by_stem,
    generated_images,
    grouped,
    paired,
    photographs,
)


def made(folder: Path, *names: str, size: tuple[int, int] = (4, 4)) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / name)
    return [folder / name for name in names]


class TestGenerated:
    def test_pngs_without_the_sheet_hidden_files_and_subfolders(self, tmp_path: Path) -> None:
        made(tmp_path, "b_0.png", "a_0.png", "sheet.png", ".a_1.png")
        made(tmp_path / "deeper", "c_0.png")
        (tmp_path / "notes.txt").write_text("no picture")
        assert [path.name for path in generated_images(tmp_path)] == ["a_0.png", "b_0.png"]

    @pytest.mark.parametrize("name", ["a_1.jpg", "a_1.JPEG", "a_1.webp", "a_1.bmp"])
    def test_other_formats_are_refused_by_name(self, tmp_path: Path, name: str) -> None:
        made(tmp_path, "a_0.png", "b_0.png", name)
        with pytest.raises(PairingError, match=rf"{name}: not PNG.*write PNG"):
            generated_images(tmp_path)

    def test_a_renamed_jpeg_is_still_one(self, tmp_path: Path) -> None:
        made(tmp_path, "a_0.png", "b.jpg")
        (tmp_path / "b.jpg").rename(tmp_path / "b_0.png")
        with pytest.raises(PairingError, match=r"b_0\.png: not PNG"):
            generated_images(tmp_path)

    def test_fewer_than_two(self, tmp_path: Path) -> None:
        made(tmp_path, "a_0.png", "sheet.png")
        with pytest.raises(PairingError, match=r"1 image; at least 2"):
            generated_images(tmp_path)
        made(tmp_path / "deeper", "c_0.png")
        with pytest.raises(PairingError, match=r"deeper contains some: give that folder"):
            generated_images(tmp_path)
        with pytest.raises(PairingError, match="no such folder"):
            generated_images(tmp_path / "absent")


class TestPhotographs:
    def test_of_a_folder_in_any_depth(self, tmp_path: Path) -> None:
        made(tmp_path / "one", "a.jpg", "sheet.png")
        made(tmp_path / "two", "b.png")
        assert [path.name for path in photographs(tmp_path)] == ["a.jpg", "b.png"]

    def test_of_a_split(self, tmp_path: Path) -> None:
        made(tmp_path / "images", *(f"{k}.jpg" for k in range(6)))
        (tmp_path / "splits.json").write_text(json.dumps({"train": ["0", "1", "2"], "val": ["3", "5"]}))
        assert [path.name for path in photographs(tmp_path)] == ["3.jpg", "5.jpg"]
        assert [path.name for path in photographs(tmp_path, "train")] == ["0.jpg", "1.jpg", "2.jpg"]
        with pytest.raises(DataError, match="no split 'vla'; did you mean 'val'"):
            photographs(tmp_path, "vla")

    def test_fewer_than_two(self, tmp_path: Path) -> None:
        made(tmp_path, "a.jpg")
        with pytest.raises(PairingError, match="1 image; at least 2 photographs"):
            photographs(tmp_path)
        with pytest.raises(PairingError, match="no such folder"):
            photographs(tmp_path / "absent")


class TestPairs:
    def test_samples_of_each_condition(self, tmp_path: Path) -> None:
        images = made(tmp_path, "0001_009480_0.png", "0001_009480_1.png", "0001_009510.png", "b-1.png", "c.png")
        stems = dict.fromkeys(["0001_009480", "0001_009510", "b", "c", "unused"], Path("x.png"))
        groups = paired(images, stems, Path("labels"))
        assert {stem: [path.name for path in paths] for stem, paths in groups.items()} == {
            "0001_009480": ["0001_009480_0.png", "0001_009480_1.png"],
            "0001_009510": ["0001_009510.png"],
            "b": ["b-1.png"],
            "c": ["c.png"],
        }

    def test_images_without_a_condition_are_named(self, tmp_path: Path) -> None:
        images = made(tmp_path, "a_0.png", *(f"x{k}_0.png" for k in range(7)))
        with pytest.raises(PairingError, match=r"x0_0\.png, .*x4_0\.png and 2 more: 7 of 8 .* in labels"):
            paired(images, {"a": Path("labels/a.png")}, Path("labels"))

    def test_two_conditions_that_an_image_may_be_of(self, tmp_path: Path) -> None:
        stems = {"a": Path("a.png"), "a_1": Path("a_1.png")}
        images = made(tmp_path, "a_1.png")
        with pytest.raises(PairingError, match=r"a_1\.png: could be a sample of a or of a_1"):
            paired(images, stems, Path("labels"))
        save_png(Image.new("RGB", (4, 4)), images[0], {"piti:condition": "a.png"})
        assert list(paired(images, stems, Path("labels"))) == ["a"]

    def test_two_conditions_of_one_stem(self, tmp_path: Path) -> None:
        made(tmp_path / "one", "a.png")
        made(tmp_path / "two", "a.png")
        found = conditions_by_stem(tmp_path)
        assert list(found) == ["one-a", "two-a"]
        assert list(paired([Path("one-a_0.png")], found, tmp_path)) == ["one-a"]
        with pytest.raises(PairingError, match="have no condition"):
            paired([Path("a_0.png")], found, tmp_path)
        Image.open(tmp_path / "one/a.png").save(tmp_path / "one-a.png")
        with pytest.raises(
            PairingError, match=r"one/a\.png and .*one-a\.png have the same stem|one-a\.png and .*one/a"
        ):
            conditions_by_stem(tmp_path)
        with pytest.raises(PairingError, match="contains no conditions"):
            conditions_by_stem(tmp_path / "one", frozenset({".npy"}))

    def test_a_file_in_a_subfolder_may_go_by_its_own_name(self) -> None:
        conditions = {"b-s2": Path("labels/b/s2.png"), "s0": Path("labels/s0.png")}
        images = [Path("b-s2_0.png"), Path("s2_1.png"), Path("s0.png")]
        assert paired(images, conditions, Path("labels")) == {"b-s2": images[:2], "s0": images[2:]}

    def test_without_conditions_names_of_photographs_and_metadata_tell(self, tmp_path: Path) -> None:
        images = made(tmp_path, "a_0.png", "a_1.png", "frame_10.png", "frame_11.png", "words_0.png", "words_1.png")
        for path in images[-2:]:
            save_png(Image.new("RGB", (4, 4)), path, {"piti:condition": "some words"})
        assert {stem: len(paths) for stem, paths in grouped(images, ["a"]).items()} == {
            "a": 2,
            "frame_10.png": 1,
            "frame_11.png": 1,
            "some words": 2,
        }


class TestSizes:
    def test_proportions_may_differ_short_sides_not(self, tmp_path: Path) -> None:
        images = made(tmp_path, "a.png", size=(64, 85)) + made(tmp_path, "b.png", size=(96, 64))
        check_alike(images, None)
        images += made(tmp_path, "c.png", size=(256, 341))
        with pytest.raises(PairingError, match=r"a\.png with 64 px, c\.png with 256 px.*resize"):
            check_alike(images, None)
        check_alike(images, 64)

    def test_what_is_no_picture_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        with pytest.raises(ImageError, match=r"a\.png: not a readable image"):
            check_alike([tmp_path / "a.png"], None)


def test_pictures_that_are_missing_are_told(tmp_path: Path) -> None:
    """Links that lead nowhere and formats that are not read were left out, and the set was another."""
    made(tmp_path / "real", "a.png", "b.png")
    (tmp_path / "real/statistics.npz").touch()  # no picture
    assert len(photographs(tmp_path / "real")) == len(generated_images(tmp_path / "real")) == 2
    (tmp_path / "real/c.heic").touch()
    (tmp_path / "real/d.png").symlink_to(tmp_path / "nowhere.png")
    for look in (photographs, generated_images):
        with pytest.raises(ImageError, match=r"1 broken links.*d\.png; 1 images of an unsupported format.*c\.heic"):
            look(tmp_path / "real")
    made(tmp_path / "root/images", "a.jpg", "b.jpg", "c.jpg")
    splits = tmp_path / "root/splits.json"
    splits.write_text(json.dumps({"train": ["elsewhere"], "val": ["a", "b"]}))
    assert len(photographs(tmp_path / "root")) == 2
    splits.write_text(json.dumps({"train": ["c"], "val": ["a", "b", "d"]}))
    with pytest.raises(DataError, match=r"root: photographs of the split 'val' are missing: d; add them"):
        photographs(tmp_path / "root")


def test_photographs_by_the_names_of_their_samples(tmp_path: Path) -> None:
    a1, a2, b1 = made(tmp_path / "a", "1.jpg", "2.jpg") + made(tmp_path / "b", "1.jpg")
    assert by_name([a1, a2, b1], tmp_path) == {"a-1": a1, "a-2": a2, "b-1": b1, "2": a2}
    root = tmp_path / "root"
    (one, two), three = made(root / "images", "a.jpg", "x-b.jpg"), made(root / "images/x", "b.jpg")[0]
    assert by_name([one, two, three], root) == {"a": one, "b": three}  # x-b is the name of two
