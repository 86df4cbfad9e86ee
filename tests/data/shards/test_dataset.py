from __future__ import annotations

import io
import os
import tarfile
from collections import Counter

import pytest
import torch

from piti.conditions import NoCondition, SeveralCondition, SketchCondition, TextCondition
from piti.core.files import OutputError
from piti.data import FolderSpec, PairedFolder, open_shards
from piti.data.archives import index_shard
from piti.data.batches import BatchStream, centers, loader
from piti.data.problems import BadSample, DataError, Skipped, Tally
from tests.shards import (
    MASK,
    keys_of,
    manifest_of,
    mask,
    packed,
    pairs,
    photographs,
    png,
    validating,
)


class TestCoverage:
    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (2, 2)])
    def test_every_epoch_has_each_sample_once_over_all_ranks_and_workers(self, spec, tmp_path, world, workers) -> None:
        """Also where neither samples nor shards are divisible."""
        for k, count in enumerate((5, 2, 7, 3)):
            photographs(tmp_path / f"s-{k}.tar", count)
        made = spec(tmp_path / "s-{0..3}.tar", val_shards=(str(photographs(tmp_path / "v.tar", 2)),))
        training, validation = open_shards(made, NoCondition())
        assert (len(training), validation and len(validation)) == (17, 2)
        epochs, batch = 3, 2
        steps = range(epochs * 17 // (world * batch))
        seen = Counter(keys_of(training, steps, batch, world, workers))
        assert set(seen) == {f"s-{k}/{n}" for k, count in enumerate((5, 2, 7, 3)) for n in range(count)}
        missing = epochs * 17 - len(steps) * world * batch
        assert epochs * 17 - sum(seen.values()) == missing < world * batch
        assert all(epochs - missing <= count <= epochs for count in seen.values())

    def test_resuming_in_the_middle_is_as_if_never_stopped(self, spec, tmp_path) -> None:
        shards = [photographs(tmp_path / f"{k}.tar", 5, 10 * k) for k in range(3)]
        whole = list(loader(BatchStream(open_shards(spec(*shards), NoCondition())[0], 4, 1), 0, 9))
        for workers in (0, 2):
            again = BatchStream(open_shards(spec(*shards), NoCondition())[0], 4, 1)
            for step, batch in enumerate(loader(again, 4, 9, workers), start=4):
                assert batch.keys == whole[step].keys
                assert torch.equal(batch.image, whole[step].image)

    def test_what_is_held_out_where_nobody_chose(self, spec, tmp_path) -> None:
        shards = [photographs(tmp_path / f"{k}.tar", 60, 100 * k) for k in range(3)]
        training, validation = open_shards(spec(*shards), NoCondition())
        assert validation is not None
        parts = [{one.center(k).key for k in range(len(one))} for one in (training, validation)]
        assert not parts[0] & parts[1]
        assert len(parts[0] | parts[1]) == 180
        assert 2 <= len(parts[1]) <= 20
        fewer, held = open_shards(spec(*shards[:2]), NoCondition())
        assert held is not None
        assert {held.center(k).key for k in range(len(held))} == {key for key in parts[1] if not key.startswith("2/")}
        assert set(keys_of(training, range(len(training)), 1)) == parts[0]
        assert len(fewer) + len(held) == 120

    def test_a_sample_is_that_of_a_folder(self, spec, tmp_path) -> None:
        """The same crops, mirrored alike, of the same pixels."""
        (tmp_path / "d/images").mkdir(parents=True)
        (tmp_path / "d/labels").mkdir()
        for k in range(3):
            (tmp_path / f"d/images/{k}.jpg").write_bytes(png(k))
            (tmp_path / f"d/labels/{k}.png").write_bytes(mask(k))
        folder = PairedFolder(FolderSpec(root=tmp_path / "d", size=8), MASK)
        training, _ = open_shards(spec(pairs(tmp_path / "a.tar", 3), flip=True, val_shards=validating(tmp_path)), MASK)
        for k in range(3):
            for one, other in (
                (folder.center(k), training.center(k)),
                (
                    folder.sample(k, torch.Generator().manual_seed(k)),
                    training.sample(k, torch.Generator().manual_seed(k)),
                ),
            ):
                assert torch.equal(one.image, other.image)
                assert torch.equal(one.condition, other.condition)


class TestConditions:
    def open(self, spec, tar, condition, **changes):
        return open_shards(spec(tar, val_shards=(str(tar.with_name("v.tar")),), **changes), condition)[0]

    def test_by_extension(self, spec, tmp_path) -> None:
        files = {"k.jpg": png(0), "k.Edge.PNG": mask(1), "k.edge2.png": mask(2), "k.txt": b"words", "k.json": b"{}"}
        for name in ("a.tar", "v.tar"):
            packed(tmp_path / name, files)
        for extension in ("edge.png", ".edge.png", "edge"):
            training = self.open(spec, tmp_path / "a.tar", MASK, shard_condition=extension, shard_image="jpg")
            assert training.center(0).condition.shape == (1, 8, 8)
        text = self.open(spec, tmp_path / "a.tar", TextCondition(), shard_image="jpg").center(0)
        assert TextCondition().text(text.condition) == "words"
        one = self.open(spec, tmp_path / "a.tar", NoCondition(), shard_image="jpg").center(0)
        assert (one.key, one.condition.shape) == ("a/k", (0, 8, 8))

    def test_several(self, spec, tmp_path) -> None:
        several = SeveralCondition({"mask": MASK, "sketch": SketchCondition()})
        files = {
            "0.jpg": png(0),
            "0.labels.png": mask(1),
            "0.lines.png": mask(2),
            "1.jpg": png(1),
            "1.lines.png": mask(3),
        }
        for name in ("a.tar", "v.tar"):
            packed(tmp_path / name, files)
        named = {"mask": "labels", "sketch": "lines"}
        for changes in ({"conditions": named}, {"shard_condition": named}):
            training = self.open(spec, tmp_path / "a.tar", several, **changes)
            assert len(training.center(0).condition) == several.planes
            with pytest.raises(BadSample, match=r"a.tar: 1: has no 1.labels beside 1.jpg"):
                training.center(1)
            assert len(self.open(spec, tmp_path / "a.tar", several, partial=True, **changes).center(1).condition)
        for changes, message in (
            ({"shard_condition": "labels"}, r"one extension for several parts; write \{mask: EXTENSION"),
            ({"shard_condition": {"mask": "labels"}}, r"names mask; the parts are mask, sketch"),
        ):
            with pytest.raises(DataError, match=message):
                self.open(spec, tmp_path / "a.tar", several, **changes)


class TestBad:
    BAD = {  # noqa: RUF012
        "_2__jpg": b"no picture",
        "_3__labels__png": mask(0, (4, 4)),
        "_4__labels__png": mask(0, most=9),
        "_5__jpg": png(0, (6, 6)),
        "_5__labels__png": mask(0, (6, 6)),
        "_6__labels__png": b"",
        "_7__png": png(1),
    }

    def stream(self, spec, tmp_path, max_bad=0.5, **changes) -> BatchStream:
        tar = pairs(tmp_path / "a.tar", 12, **self.BAD)
        with tarfile.open(tar, "a") as more:
            info = tarfile.TarInfo("8.jpg")
            info.size = 1
            more.addfile(info, io.BytesIO(b"x"))
            info = tarfile.TarInfo("alone.jpg")
            info.size = len(png(0))
            more.addfile(info, io.BytesIO(png(0)))
        training, _ = open_shards(spec(tar, val_shards=validating(tmp_path), max_bad=max_bad, **changes), MASK)
        assert len(training) == 13
        return BatchStream(training, 4, 0, max_bad=max_bad)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_they_are_left_out_counted_and_named(self, spec, tmp_path, workers) -> None:
        tally = Tally(0.9, tmp_path / "skipped.txt")
        for _ in range(2):
            keys = {key for one in loader(self.stream(spec, tmp_path), 0, 13, workers, tally) for key in one.keys}
            assert keys == {f"a/{k}" for k in (0, 1, 9, 10, 11)}
        lines = (tmp_path / "skipped.txt").read_text().splitlines()
        assert len(lines) == 8
        assert tally.bad > 8
        assert tally.read == tally.bad + 2 * 13 * 4
        for key, what in {
            "2": "not a readable image",
            "3": "the image is 12 x 10, its condition 4 x 4",
            "4": "not in the class table",
            "5": "is 6 x 6, samples need a short side of 8",
            "6": "not a readable image",
            "7": "has several photographs (jpg, png; set data.shard_image)",
            "8": "contains 8.jpg more than once",
            "alone": "has no alone.labels beside alone.jpg",
        }.items():
            assert sum(f"a.tar: {key}: " in line and what in line for line in lines) == 1, (key, lines)

    def test_what_stands_in_is_the_same_every_time(self, spec, tmp_path) -> None:
        one, other = (self.stream(spec, tmp_path) for _ in range(2))
        batches = [one[step] for step in range(8)]
        for step in (7, 2, 5):
            assert other[step].keys == batches[step].keys

    @pytest.mark.parametrize("workers", [0, 1])
    def test_too_many_end_it(self, spec, tmp_path, workers) -> None:
        stream = self.stream(spec, tmp_path, max_bad=0.01)
        with pytest.raises(DataError, match=r"(?s)^6 of \d+ samples cannot be used, more than data.max_bad = 0.01"):
            list(loader(stream, 0, 13, workers))

    def test_none_may_be(self, spec, tmp_path) -> None:
        with pytest.raises(DataError, match=r"^1 of \d+ samples cannot be used, more than data.max_bad = 0 "):
            list(loader(self.stream(spec, tmp_path, max_bad=0.0), 0, 13))

    def test_a_disk_that_fails_is_told(self, tmp_path) -> None:
        with pytest.raises(
            OutputError, match=r"skipped.txt: .* cannot be written \(No such .*; free disk space, then continue"
        ):
            Tally(0.01, tmp_path / "gone/skipped.txt").add(1, [Skipped("x", "is torn")])

    def test_a_share_is_of_many(self) -> None:
        tally = Tally(0.01)
        tally.add(400, [Skipped(str(k), "") for k in range(5)])
        assert not tally.too_many
        tally.add(1, [Skipped("x", "")])
        assert tally.too_many
        tally.add(10_000, [])
        assert not tally.too_many

    def test_all(self, spec, tmp_path) -> None:
        tar = packed(tmp_path / "a.tar", {f"{k}.jpg": b"x" for k in range(3)})
        training, held = open_shards(spec(tar, val_shards=validating(tmp_path)), NoCondition())
        with pytest.raises(DataError, match=r"neither this sample nor those near it can be used; .*\n  .*a.tar: \d: "):
            BatchStream(training, 2, 0, max_bad=1.0)[0]
        assert held is not None
        assert len(centers(held, 5)) == 1
        with pytest.raises(DataError, match=r"split 'train' has no usable sample; check"):
            centers(training, 5)


class TestDamage:
    def test_of_a_cut_shard_the_rest_counts_as_bad(self, spec, tmp_path, caplog) -> None:
        tar = photographs(tmp_path / "a.tar", 8)
        manifest = manifest_of(tmp_path, [tar])
        offsets = [place for one in index_shard(tar.open("rb"), "x").samples for place, _ in one.files.values()]
        tar.write_bytes(tar.read_bytes()[: offsets[5] + 10])
        counts = []
        for shards in (manifest, tar):
            training, _ = open_shards(spec(shards, val_shards=validating(tmp_path)), NoCondition())
            counts.append(len(training))
            stream, tally = BatchStream(training, 8, 0, max_bad=1.0), Tally(1.0)
            assert {key for one in loader(stream, 0, 6, tally=tally) for key in one.keys} == {
                f"a/{k}" for k in range(5)
            }
            assert any("damaged after 5 samples" in str(one) for one in tally._first)
        assert counts == [8, 6]
        assert "a.tar: damaged after 5 samples" in caplog.text

    @pytest.mark.parametrize("what", ["header", "end"])
    def test_damage_that_the_reader_would_pass_over(self, tmp_path, what) -> None:
        tar = photographs(tmp_path / "a.tar", 8)
        content = bytearray(tar.read_bytes())
        fifth = [place for one in index_shard(tar.open("rb"), "x").samples for place, _ in one.files.values()][5]
        if what == "header":
            content[fifth - 500 : fifth - 400] = b"x" * 100
        else:
            del content[fifth - 512 :]
        tar.write_bytes(content)
        index = index_shard(tar.open("rb"), "x")
        assert len(index.samples) == 5
        assert index.damage is not None
        assert f"at byte {fifth - 512}" in index.damage

    def test_no_tar_at_all(self, spec, tmp_path) -> None:
        (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
        training, _ = open_shards(spec(tmp_path / "a.tar", val_shards=validating(tmp_path)), NoCondition())
        assert len(training) == 1
        with pytest.raises(BadSample, match=r"a.tar: not a tar archive, or damaged at its start \("):
            training.center(0)

    def test_compressed(self, spec, tmp_path) -> None:
        packed(tmp_path / "a.tar", {"0.jpg": png(0)}, "w:gz")
        with pytest.raises(DataError, match=r"a.tar: is compressed by gzip.*pipe:gzip -dc"):
            open_shards(spec(tmp_path / "a.tar"), NoCondition())
        training, _ = open_shards(
            spec(f"pipe:gzip -dc {tmp_path}/a.tar", val_shards=validating(tmp_path)), NoCondition()
        )
        assert training.center(0).key == "a/0"

    def test_empty(self, spec, tmp_path) -> None:
        with pytest.raises(DataError, match=r"a.tar: no samples"):
            open_shards(
                spec(packed(tmp_path / "a.tar", {"readme": b"x", ".hidden.jpg": b"x", "__m__.jpg": b""})), NoCondition()
            )

    def test_what_is_gone_later(self, spec, tmp_path) -> None:
        training, _ = open_shards(spec(photographs(tmp_path / "a.tar", 3)), NoCondition())
        os.unlink(tmp_path / "a.tar")
        for workers in (0, 1):
            with pytest.raises(
                DataError, match=r"^/[^\n]*a.tar: cannot be opened \(No such file or directory\); check"
            ):
                list(loader(BatchStream(training, 1, 0), 0, 1, workers))
