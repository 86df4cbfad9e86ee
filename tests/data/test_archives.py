from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, MaskCondition, NoCondition
from piti.core.formats import IMAGE_SUFFIXES
from piti.core.images import ImageError, image_size, read_rgb
from piti.data import DataError, FolderSpec, PairedFolder
from piti.data.archives import dotted, index_shard, list_archived, list_conditions


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def packed(path, files: dict[str, bytes], mode: str = "w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


FILES = {"b/1.png": png(1), "0.PNG": png(0), "0.edge.png": png(9), "0.txt": b"words", ".hidden.png": png(8)}


def test_names_in_another_encoding_are_written_out(tmp_path) -> None:
    path = tmp_path / "old.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:  # as tar itself packs them
        info = tarfile.TarInfo("stra\udcdfe.png")
        info.size = len(png(1))
        tar.addfile(info, io.BytesIO(png(1)))
    (member,) = list_archived(path)
    assert member.key == "stra%DFe"
    assert member.open().read() == png(1)
    with path.open("rb") as file:
        assert [sample.key for sample in index_shard(file, "old.tar").samples] == ["stra%DFe"]


def test_pictures_are_found_and_read_in_any_order(tmp_path) -> None:
    members = list_archived(packed(tmp_path / "photos.tar", FILES))
    assert [member.name for member in members] == ["0.PNG", "b/1.png"]
    for seed, member in reversed(list(enumerate(members))):
        expected = Image.open(io.BytesIO(png(seed)))
        assert np.array_equal(np.asarray(read_rgb(member)), np.asarray(expected))
        assert image_size(member) == (12, 10)
    assert str(members[1]) == f"{tmp_path}/photos.tar:b/1.png"


def test_a_link_stands_for_the_file_that_it_names(tmp_path) -> None:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(1))
    (folder / "b/hard.png").hardlink_to(folder / "a.png")
    (folder / "b/soft.png").symlink_to("../a.png")
    (folder / "b/outside.png").symlink_to("../../other.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("a.png", "b/hard.png", "b/outside.png", "b/soft.png"):
            tar.add(folder / name, name)
        assert [member.isreg() for member in tar] == [True, False, False, False]
    members = list_archived(tmp_path / "photos.tar")
    assert [member.name for member in members] == ["a.png", "b/hard.png", "b/soft.png"]
    assert {member.open().read() for member in members} == {png(1)}
    with (tmp_path / "photos.tar").open("rb") as file:
        index = index_shard(file, "photos.tar")
    assert [sample.key for sample in index.samples] == ["a", "b/hard", "b/soft"]
    assert {tuple(sample.files.values()) for sample in index.samples} == {((members[0].offset, members[0].size),)}


def test_keys_are_whole_paths(tmp_path) -> None:
    names = ["./a.png", "./b.png", "v1.0/a.png", "v1.0/b.c.png", "v1.0/b.png"]
    tar = packed(tmp_path / "p.tar", {name: png(k) for k, name in enumerate(names)})
    assert [member.key for member in list_archived(tar)] == ["a", "b", "v1.0/a", "v1.0/b"]
    assert len(PairedFolder(FolderSpec(photographs=(tar,), size=8), NoCondition())) == 4


def test_pictures_whose_names_have_further_dots_are_not_lost_unseen(tmp_path) -> None:
    names = ["at 10.32.png", "b.png", "b.edge.png", "._b.c.png", "d/e.f.jpg"]
    tar = packed(tmp_path / "p.tar", {name: png(k) for k, name in enumerate(names)})
    assert [member.name for member in dotted(tar)] == ["at 10.32.png", "d/e.f.jpg"]
    with pytest.raises(DataError, match=r"(?s)2 images in archives whose names end at the first dot.*at 10\.32\.png"):
        PairedFolder(FolderSpec(photographs=(tar,), size=8), NoCondition()).check()
    with pytest.raises(ImageError, match=r"p\.tar: 2 images in archives .*at 10\.32\.png, d/e\.f\.jpg"):
        list_conditions(tar, IMAGE_SUFFIXES)


def test_of_one_extension(tmp_path) -> None:
    tar = packed(tmp_path / "p.tar", FILES | {"1.Edge.PNG": png(3), "1.edges.png": png(4)})
    for extension in ("edge", "edge.png"):
        assert [member.name for member in list_archived(tar, extension=extension)] == ["0.edge.png", "1.Edge.PNG"]
    assert list_archived(tar, {".txt"}, "edge") == []
    texts = packed(tmp_path / "t.tar", {"0.png": png(0), "0.txt": b"a", "1.txt.txt": b"b", "2.edge.txt": b"c"})
    assert [member.name for member in list_archived(texts, {".txt"}, "txt")] == ["0.txt", "1.txt.txt"]


@pytest.mark.parametrize("other", ["a.edge.jpg", "a.png", "a.depth.npy"])
def test_conditions_that_cannot_be_told_from_photographs(tmp_path, other) -> None:
    tar = packed(tmp_path / "p.tar", {"a.jpg": png(0), other: png(1), "a.txt": b"words"})
    extension = other.partition(".")[2]
    with pytest.raises(
        ImageError, match=rf"p.tar: holds a.\w+ and a.*either could be the condition; .*the files \*.({extension}|jpg)"
    ):
        list_conditions(tar, IMAGE_SUFFIXES)
    assert [member.name for member in list_conditions(tar, {".txt"})] == ["a.txt"]


def test_conditions_alone(tmp_path) -> None:
    tar = packed(tmp_path / "p.tar", {"a.png": png(0), "b/a.jpg": png(1), "a.txt": b"words", "a.json": b"{}"})
    assert [member.name for member in list_conditions(tar, IMAGE_SUFFIXES)] == ["a.png", "b/a.jpg"]


def test_archives_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"none.tar: no such file"):
        list_archived(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ImageError, match=r"text.tar: not an uncompressed tar archive"):
        list_archived(tmp_path / "text.tar")
    packed(tmp_path / "small.tar", FILES, "w:gz")
    with pytest.raises(ImageError, match=r"small.tar: not an uncompressed tar archive"):
        list_archived(tmp_path / "small.tar")


def test_a_cut_archive_names_its_last_member(tmp_path) -> None:
    whole = packed(tmp_path / "photos.tar", {"0.png": png(0), "1.png": png(1, (64, 64))}).read_bytes()
    (tmp_path / "photos.tar").write_bytes(whole[:3000])
    with pytest.raises((ImageError, DataError), match=r"photos.tar"):
        PairedFolder(FolderSpec(photographs=(tmp_path / "photos.tar",), size=8), NoCondition()).check()


class TestPhotographsAlone:
    def spec(self, tmp_path, **changes) -> FolderSpec:
        tar = packed(tmp_path / "photos.tar", {f"{k}.png": png(k) for k in range(6)})
        folder = tmp_path / "more" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.png").write_bytes(png(7))
        return FolderSpec(photographs=(tar, tmp_path / "more"), size=8, **changes)

    def test_from_folders_and_archives(self, tmp_path) -> None:
        spec = self.spec(tmp_path)
        every = PairedFolder(spec, NoCondition())
        assert {pair.key for pair in every.pairs} == {*(f"photos/{k}" for k in range(6)), "more/deep/x"}
        train, val = (PairedFolder(spec, NoCondition(), split) for split in ("train", "val"))
        assert len(train) + len(val) == 7
        assert len(val) == 1
        assert train.check().pairs == len(train)
        sample = train.center(0)
        assert sample.image.shape == (3, 8, 8)
        assert sample.condition.shape == (0, 8, 8)

    def test_beside_a_root_they_only_train(self, tmp_path) -> None:
        root = tmp_path / "root" / "images"
        root.mkdir(parents=True)
        for k in range(4):
            (root / f"r{k}.png").write_bytes(png(20 + k))
        (tmp_path / "root" / "splits.json").write_text('{"train": ["r0", "r1"], "val": ["r2", "r3"]}')
        spec = self.spec(tmp_path, root=tmp_path / "root")
        train, val = (PairedFolder(spec, NoCondition(), split) for split in ("train", "val"))
        assert [pair.key for pair in val.pairs] == ["r2", "r3"]
        assert len(train) == 2 + 7
        assert all(pair.condition is None for pair in train.pairs)

    def test_they_are_for_models_without_a_condition(self, tmp_path) -> None:
        table = ClassTable(names=("a",), ids=(0,), colours=((0, 0, 0),))
        with pytest.raises(DataError, match=r"photographs are for condition: .kind: none. or .kind: text., not for m"):
            PairedFolder(self.spec(tmp_path), MaskCondition(table))

    def test_what_is_not_there(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"data.photographs: .*gone"):
            PairedFolder(FolderSpec(photographs=(tmp_path / "gone",), size=8), NoCondition())
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty holds no images"):
            PairedFolder(FolderSpec(photographs=(tmp_path / "empty",), size=8), NoCondition())
        with pytest.raises(DataError, match=r"no data folder given"):
            PairedFolder(FolderSpec(size=8), NoCondition())

    def test_the_same_key_twice_in_one_folder(self, tmp_path) -> None:
        spec = self.spec(tmp_path)
        Image.new("RGB", (12, 10)).save(tmp_path / "more" / "deep" / "x.jpg")
        with pytest.raises(DataError, match=r"keys with several files"):
            PairedFolder(spec, NoCondition()).check()

    def test_the_same_key_twice(self, tmp_path) -> None:
        tar = packed(tmp_path / "more.tar", {"deep/x.png": png(3)})
        spec = self.spec(tmp_path)
        spec = spec.model_copy(update={"photographs": (*spec.photographs, tar)})
        with pytest.raises(DataError, match=r"keys with several files"):
            PairedFolder(spec, NoCondition()).check()

    def test_crops_are_never_enlarged_where_sharpness_is_learned(self, tmp_path) -> None:
        spec = self.spec(tmp_path, crop_scale=(0.5, 1.0))
        PairedFolder(spec, NoCondition()).check()
        with pytest.raises(DataError, match=r"(?s)needs one of 16 .*photos\.tar:0\.png: 12 x 10"):
            PairedFolder(spec, NoCondition(), sharp=True).check()
