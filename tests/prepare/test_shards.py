"""Packing: reproducible bytes, no files that look finished too early, and compatibility with other tools."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.conditions import ClassTable, MaskCondition, NoCondition, SketchCondition, TextCondition
from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.data import FolderSpec, PairedFolder, near_names, open_shards
from piti.data.problems import DataError
from piti.prepare import shards as packing
from piti.prepare.packable import PackItem, PackJob, find_samples
from piti.prepare.shards import pack_shards, verify_shards
from tests.shards import png


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five photographs with captions beside them."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for k in range(5):
        (folder / "deep" / f"p.{k}.PNG").write_bytes(png(k))
        (folder / "deep" / f"p.{k}.txt").write_text(f"photograph {k}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_packed_trains_as_the_folder_does(tiny_data, tmp_path) -> None:
    report = pack_shards(PackJob(tiny_data, tmp_path / "out", samples=4))
    assert str(report).startswith("4 shards of 40 KiB in all; samples: train 9, val 3")
    names = {f"out-train-00000{k}.tar" for k in range(3)} | {"out-val-000000.tar", "classes.json", "shards.json"}
    assert set(contents(tmp_path / "out")) == names
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    mask = MaskCondition(ClassTable.read(tiny_data / "classes.json"))
    spec = FolderSpec(shards=(str(tmp_path / "out"),), size=16, shard_cache=tmp_path / "cache")
    for ours, split in zip(open_shards(spec, mask), ("train", "val"), strict=True):
        folder = PairedFolder(FolderSpec(root=tiny_data, size=16), mask, split)
        assert ours is not None
        assert len(ours) == len(folder)
        for k in range(len(folder)):
            one, other = folder.center(k), ours.center(k)
            assert other.key.partition("/")[2] == one.key
            assert (one.image == other.image).all()
            assert (one.condition == other.condition).all()
    assert verify_shards(tmp_path / "out") == report.manifest


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (900, "900 bytes"), (1536, "1.5 KiB"), (40 * 2**20, "40 MiB"), (1500 * 2**30, "1,500 GiB")],
)
def test_sizes_have_a_unit_that_fits(count, told) -> None:
    assert packing._size(count) == told


def test_files_are_packed_as_they_are_and_the_same_every_time(tiny_data, tmp_path) -> None:
    job = PackJob(tiny_data, tmp_path / "a" / "out", samples=5)
    pack_shards(job)
    first = contents(job.out)
    for path in tiny_data.rglob("*.png"):
        os.utime(path, (1, 1))
    again = PackJob(tiny_data, tmp_path / "b" / "out", samples=5)
    pack_shards(again)
    assert contents(again.out) == first
    with tarfile.open(job.out / "out-train-000000.tar") as tar:
        assert tar.getnames()[:3] == ["scene-00.png", "scene-00.labels.png", "scene-01.png"]
        for member in tar:
            key, _, extension = member.name.partition(".")
            folder = "labels" if extension == "labels.png" else "images"
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == (tiny_data / folder / f"{key}.png").read_bytes()
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_a_shard_ends_before_it_is_too_large(tmp_path) -> None:
    (tmp_path / "p").mkdir()
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 256, (256, 512, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "p" / f"{k}.png")
    report = pack_shards(PackJob(tmp_path / "p", tmp_path / "out", shard_mib=1))
    sizes = [entry.bytes for entry in report.manifest.entries]
    assert [entry.samples for entry in report.manifest.splits["train"]] == [2, 2, 1]
    assert all(size <= 2**20 + 10240 for size in sizes)


def test_photographs_with_captions_and_alone(photos, tmp_path) -> None:
    pack_shards(PackJob(photos, tmp_path / "captions"))
    spec = FolderSpec(shards=(str(tmp_path / "captions"),), size=8, shard_cache=tmp_path / "cache")
    for condition in (TextCondition(), NoCondition()):
        training, held = open_shards(spec, condition)
        assert held is not None
        assert (len(training), len(held)) == (4, 1)
        key = training.center(0).key
        assert key.startswith("captions-train-000000/deep/p_")
    for path in photos.rglob("*.txt"):
        path.unlink()
    report = pack_shards(PackJob(photos, tmp_path / "alone"))
    assert report.manifest.conditions == {}
    with tarfile.open(tmp_path / "alone" / "alone-val-000000.tar") as tar:
        assert [name.partition(".")[2] for name in tar.getnames()] == ["png"]


def test_several_conditions_and_none(tiny_data, tmp_path) -> None:
    (tiny_data / "sketches").mkdir()
    for path in (tiny_data / "labels").iterdir():
        (tiny_data / "sketches" / path.name).write_bytes(path.read_bytes())
    report = pack_shards(PackJob(tiny_data, tmp_path / "out", conditions=("labels", "sketches")))
    assert report.manifest.conditions == {"labels": "labels", "sketches": "sketches"}
    spec = FolderSpec(shards=(str(tmp_path / "out"),), size=8, shard_cache=tmp_path / "cache", conditions="sketches")
    assert open_shards(spec, SketchCondition())[0].center(0).condition.shape == (1, 8, 8)
    alone = pack_shards(PackJob(tiny_data, tmp_path / "alone", conditions=()))
    assert alone.manifest.conditions == {}
    with pytest.raises(DataError, match=r"no folder depth/ beside images/; give those of the conditions with cond"):
        pack_shards(PackJob(tiny_data, tmp_path / "none", conditions=("depth",)))


class TestBad:
    def spoiled(self, tiny_data: Path) -> Path:
        (tiny_data / "images" / "scene-03.png").write_bytes(b"no picture")
        (tiny_data / "labels" / "scene-04.png").unlink()
        Image.new("L", (4, 4)).save(tiny_data / "labels" / "scene-10.png")
        return tiny_data

    def test_they_are_left_out_counted_and_named(self, tiny_data, tmp_path) -> None:
        report = pack_shards(PackJob(self.spoiled(tiny_data), tmp_path / "out", samples=3, max_bad=0.25))
        assert {name: sum(one.samples for one in found) for name, found in report.manifest.splits.items()} == {
            "train": 7,
            "val": 2,
        }
        lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
        assert len(lines) == len(report.skipped) == 3
        for what in (
            "scene-03.png: not a readable image",
            "scene-04: has no file in labels/",
            "scene-10: its images",
        ):
            assert sum(what in line for line in lines) == 1

    def test_many_without_a_partner_take_no_longer_each(self, tmp_path, monkeypatch) -> None:
        looked, plain = [], near_names._loose
        monkeypatch.setattr(near_names, "_loose", lambda key: looked.append(key) or plain(key))
        for folder, names in (("images", range(30)), ("labels", [f"{k}_mask" for k in range(28)] + [28, 29])):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / f"{name}.png").touch()
        found = find_samples(PackJob(tmp_path, tmp_path / "out"))
        assert list(found.items) == ["28", "29"]
        assert "7: has no file in labels/; labels/7_mask has almost the same name" in map(str, found.skipped)
        assert "7_mask: has no file in images/; images/7 has almost the same name" in map(str, found.skipped)
        assert len(looked) < 200

    def test_too_many_end_it(self, tiny_data, tmp_path) -> None:
        with pytest.raises(DataError, match=r"(?s)\d of 12 samples cannot be used, more than max_bad 0.01.*scene-04"):
            pack_shards(PackJob(self.spoiled(tiny_data), tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_what_cannot_be_packed(self, tiny_data, photos, tmp_path) -> None:
        (photos / "deep" / "p_0.png").write_bytes(png(9))
        (photos / "deep" / "p_0.txt").write_text("words")
        with pytest.raises(
            DataError, match=r"keys that collide in tars, where dots are replaced .*:\n.*deep/p.0, deep/p_0"
        ):
            pack_shards(PackJob(photos, tmp_path / "out"))
        for source, message in (
            (tmp_path / "none", r"none: no such folder"),
            (tmp_path / "e", r"holds nothing to pack"),
        ):
            (tmp_path / "e").mkdir(exist_ok=True)
            with pytest.raises(DataError, match=message):
                pack_shards(PackJob(source, tmp_path / "out"))
        splits = json.loads((tiny_data / "splits.json").read_text())
        (tiny_data / "splits.json").write_text(json.dumps({**splits, "test": ["gone", "scene-00"]}))
        with pytest.raises(
            DataError, match=r"(?s)keys in splits.json without files.*gone.*listed more than once.*scene-00"
        ):
            pack_shards(PackJob(tiny_data, tmp_path / "out"))


def test_splits_whose_shards_would_have_the_same_names(tiny_data, tmp_path) -> None:
    (tiny_data / "splits.json").write_text(
        json.dumps({"train": ["scene-00"], "день": ["scene-01"], "ночь": ["scene-02"]})
    )
    with pytest.raises(DataError, match=r"(?s)splits whose shards would have the same names .*день, ночь"):
        pack_shards(PackJob(tiny_data, tmp_path / "out"))


class TestInterrupted:
    def stop_after(self, monkeypatch, count: int) -> None:
        read, done = packing._read, []

        def until(item: object) -> object:
            done.append(item)
            if len(done) > count:
                raise KeyboardInterrupt
            return read(item)  # type: ignore[arg-type]

        monkeypatch.setattr(packing, "_read", until)

    def test_nothing_looks_finished_and_the_same_call_goes_on(self, tiny_data, tmp_path, monkeypatch) -> None:
        whole = PackJob(tiny_data, tmp_path / "whole" / "out", samples=3)
        pack_shards(whole)
        job = PackJob(tiny_data, tmp_path / "out", samples=3)
        with monkeypatch.context() as patch:
            self.stop_after(patch, 7)
            with pytest.raises(KeyboardInterrupt):
                pack_shards(job)
        assert not job.out.exists()
        left = tmp_path / ".out.packing"
        assert sorted(path.name for path in left.glob("*.tar")) == ["out-train-000000.tar", "out-train-000001.tar"]
        inodes = {path.name: path.stat().st_ino for path in left.glob("*.tar")}
        (left / "leftover.tar").write_bytes(b"")
        report = pack_shards(job)
        assert report.kept == 2
        assert contents(job.out) == contents(whole.out)
        assert all((job.out / name).stat().st_ino == inode for name, inode in inodes.items())
        assert not left.exists()

    def test_what_has_changed_meanwhile_is_packed_anew(self, tiny_data, tmp_path, monkeypatch) -> None:
        job = PackJob(tiny_data, tmp_path / "out", samples=3)
        with monkeypatch.context() as patch:
            self.stop_after(patch, 7)
            with pytest.raises(KeyboardInterrupt):
                pack_shards(job)
        Image.new("RGB", (40, 32), "red").save(tiny_data / "images" / "scene-04.png")
        (tmp_path / ".out.packing" / "out-train-000000.tar").write_bytes(b"cut")
        assert pack_shards(job).kept == 0
        verify_shards(job.out)

    def test_one_process_at_a_time_packs_into_a_folder(self, tiny_data, tmp_path, monkeypatch) -> None:
        job, said, read = PackJob(tiny_data, tmp_path / "out", samples=3), [], packing._read

        def meanwhile(item: PackItem) -> object:
            monkeypatch.setattr(packing, "_read", read)
            try:
                pack_shards(PackJob(tiny_data, tmp_path / "out", samples=5))
            except OutputError as error:
                said.append(str(error))
            return read(item)

        monkeypatch.setattr(packing, "_read", meanwhile)
        pack_shards(job)
        assert "out: another process is writing there; wait for it, or give another OUT" in said[0]
        assert len(verify_shards(job.out).entries) == 4
        assert {path.name for path in tmp_path.iterdir()} == {tiny_data.name, "out"}

    def test_an_earlier_result_stays_until_it_is_replaced(self, tiny_data, tmp_path, monkeypatch) -> None:
        job = PackJob(tiny_data, tmp_path / "out", samples=3)
        pack_shards(job)
        before = contents(job.out)
        with pytest.raises(OutputError, match=r"out: already exists; add overwrite .*or give another OUT$"):
            pack_shards(job)
        other = PackJob(tiny_data, tmp_path / "out", samples=5, overwrite=True)
        with monkeypatch.context() as patch:
            self.stop_after(patch, 7)
            with pytest.raises(KeyboardInterrupt):
                pack_shards(other)
        assert contents(job.out) == before
        pack_shards(other)
        assert len(list(job.out.glob("*.tar"))) == 3
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("keep")
        with pytest.raises(OutputError, match=r"mine: holds other files, .* give another OUT$"):
            pack_shards(PackJob(tiny_data, tmp_path / "mine", overwrite=True))


def test_a_split_that_is_left_empty_stays_so(tiny_data, tmp_path) -> None:
    (tiny_data / "splits.json").write_text(json.dumps({"train": ["scene-00", "scene-01"], "val": []}))
    report = pack_shards(PackJob(tiny_data, tmp_path / "out"))
    assert report.manifest.splits["val"] == ()
    assert "not used, since they are in no split of splits.json: 10 pairs" in report.notes
    mask = MaskCondition(ClassTable.read(tiny_data / "classes.json"))
    training, held = open_shards(FolderSpec(shards=(str(tmp_path / "out"),), size=8), mask)
    assert (len(training), held) == (2, None)


def test_verifying_names_what_differs(tiny_data, tmp_path) -> None:
    pack_shards(PackJob(tiny_data, tmp_path / "out", samples=3))
    first, second, third = sorted((tmp_path / "out").glob("*train*.tar"))
    content = bytearray(first.read_bytes())
    content[600] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-512])
    third.unlink()
    with pytest.raises(DataError) as error:
        verify_shards(tmp_path / "out")
    for what in (
        f"{first.name}: different contents",
        f"{second.name}: 9728 bytes instead of 10240",
        f"{third.name}: cannot",
    ):
        assert what in str(error.value)


def test_the_command(tiny_data, tmp_path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["prepare", "shards", str(tiny_data), str(out), "--samples", "4", "--verify"])
    assert run.exit_code == 0, run.output
    assert f"--set data.shards='[{out}/shards.json]'" in run.output
    assert "as in the manifest: 4 shards" in run.output
    assert CliRunner().invoke(app, ["prepare", "shards", str(out), "--verify"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE"], "OUT is missing; give a folder for the shards, or --verify to check"),
        (["SOURCE", "--verify", "--samples", "4"], "--samples has no effect with --verify alone"),
        (["SOURCE", "OUT", "--alone", "--conditions", "sketches"], "--conditions has no effect with --alone"),
        (["SOURCE", "OUT", "--samples", "4", "--shard-mib", "1"], "--shard-mib has no effect with --samples"),
    ],
)
def test_flags_without_effect_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["prepare", "shards", *arguments], catch_exceptions=False)


class TestWebDataset:
    """The library that others read and write shards with."""

    webdataset = pytest.importorskip("webdataset", reason="webdataset: not installed")

    def test_it_reads_what_we_pack(self, tiny_data, tmp_path) -> None:
        pack_shards(PackJob(tiny_data, tmp_path / "out", samples=4))
        shards = sorted(map(str, (tmp_path / "out").glob("*train*.tar")))
        found = list(self.webdataset.WebDataset(shards, shardshuffle=False))
        assert [one["__key__"] for one in found] == [f"scene-{k:02d}" for k in range(9)]
        for one in found:
            assert one["png"] == (tiny_data / "images" / f"{one['__key__']}.png").read_bytes()
            assert one["labels.png"] == (tiny_data / "labels" / f"{one['__key__']}.png").read_bytes()

    def test_we_read_what_it_writes(self, tmp_path) -> None:
        with self.webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
            for k in range(4):
                writer.write({"__key__": f"deep/k{k}", "png": png(k), "txt": f"picture {k}"})
        text = TextCondition()
        spec = FolderSpec(shards=(str(tmp_path / "a.tar"),), size=8, shard_cache=tmp_path / "cache")
        training, held = open_shards(spec, text)
        assert held is not None
        found = {}
        for part in (training, held):
            for k in range(len(part)):
                sample = part.center(k)
                found[sample.key] = text.text(sample.condition)
        assert found == {f"a/deep/k{k}": f"picture {k}" for k in range(4)}
