from __future__ import annotations

import json
import logging
import os
import pickle
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from piti.conditions import NoCondition
from piti.data import FolderSpec, open_shards
from piti.data.archives import InShard, ShardIndex, ShardSample
from piti.data.batches import BatchStream
from piti.data.problems import BadSample, DataError
from piti.data.shards import cache as caching
from piti.data.shards.cache import Shard, ShardCache, ShardStore
from piti.data.shards.index import list_shards
from tests.shards import (
    MASK,
    failing,
    keys_of,
    manifest_of,
    packed,
    pairs,
    photographs,
    png,
    respond,
    serving,
    validating,
)


class TestRemote:
    @pytest.fixture
    def served(self, tmp_path):
        folder = tmp_path / "served"
        return folder, [photographs(folder / f"s-{k}.tar", 4, 10 * k) for k in range(6)]

    def everything(self, samples) -> set[str]:
        return set(keys_of(samples, range(len(samples)), 1))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_each_shard_is_fetched_once(self, spec, served, workers) -> None:
        folder, shards = served
        manifest_of(folder, shards)
        with serving(folder, failing(500), failing(503)) as (address, asked):
            training, held = open_shards(spec(f"{address}/shards.json"), NoCondition())
            assert asked == ["/shards.json"] * 3
            assert held is not None
            seen = keys_of(training, range(3 * len(training)), 1, workers=workers)
            assert Counter(seen) == dict.fromkeys(seen, 3)
            assert len(set(seen)) + len(held) == 24
            fetched = Counter(path for path in asked if path.endswith(".tar"))
            assert fetched == {f"/s-{k}.tar": 1 for k in range(6)}

    def test_without_a_manifest_they_are_counted_once(self, spec, served, caplog) -> None:
        folder, _ = served
        with serving(folder) as (address, asked):
            made = spec(f"{address}/s-{{0..5}}.tar", f"pipe:cat {folder}/s-0.tar")
            lengths = [len(open_shards(made, NoCondition())[0]) for _ in range(2)]
            assert len(asked) == 6
        assert lengths[0] == lengths[1] <= 27
        assert "no manifest gives the sample counts of 7 shards" in caplog.text

    def test_an_index_is_of_the_file_that_was_fetched_last(self, spec, served, tmp_path) -> None:
        folder, _ = served
        with serving(folder) as (address, _):
            made = spec(f"{address}/s-0.tar")
            open_shards(made, NoCondition())
            for path in (tmp_path / "cache").glob("*.tar"):
                path.unlink()
            packed(folder / "s-0.tar", {f"{k}.png": png(k, (40, 40)) for k in range(50, 54)})
            training, _ = open_shards(made, NoCondition())
            assert self.everything(training) < {f"s-0/{k}" for k in range(50, 54)}

    def test_what_is_kept_is_bounded_and_used_longest_ago_goes(self, served, tmp_path) -> None:
        folder, shards = served
        size = shards[0].stat().st_size
        with serving(folder) as (address, asked):
            cache = ShardCache(tmp_path / "cache", 2.5 * size / 2**30, 5)
            remote = [Shard(f"{address}/s-{k}.tar") for k in range(6)]
            for number, k in enumerate((0, 1, 0, 2, 0, 1)):
                with cache.opened(remote[k]) as file:
                    assert file.read() == shards[k].read_bytes()
                os.utime(cache.path_of(remote[k]), (number, number))
                assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= 2.5 * size
        assert asked == ["/s-0.tar", "/s-1.tar", "/s-2.tar", "/s-1.tar"]

    def test_files_of_others_in_the_cache_s_folder_stay(self, served, tmp_path) -> None:
        folder, _ = served
        others = [tmp_path / "my-photographs.tar", tmp_path / "my-download.partial"]
        with serving(folder) as (address, _):
            cache, remote = ShardCache(tmp_path, 1e-9, 5), [Shard(f"{address}/s-{k}.tar") for k in range(2)]
            left = cache.path_of(Shard(f"{address}/s-2.tar")).with_suffix(".tar.partial")
            for path in (*others, left):
                path.write_bytes(bytes(10_000))
            for shard in remote:
                cache.opened(shard).close()
        assert all(path.exists() for path in others)
        assert [path.exists() for path in map(cache.path_of, remote)] == [False, True]
        assert not left.exists()

    def test_windows_keeps_what_is_read(self, served, tmp_path, monkeypatch) -> None:
        """It reads at an offset from the file itself, which it does not remove while it is open."""
        folder, shards = served
        unlink = Path.unlink

        def kept(self, missing_ok=False) -> None:
            if self.suffix == ".tar":
                raise PermissionError(13, "The process cannot access the file because it is being used")
            unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", kept)
        monkeypatch.delattr(os, "pread")
        with serving(folder) as (address, _):
            store = ShardStore([Shard(f"{address}/s-{k}.tar") for k in range(2)], ShardCache(tmp_path / "c", 0, 5), 2)
            first = store.opened(0)
            with pytest.raises(PermissionError):
                store.opened(1)
            monkeypatch.setattr(caching, "WINDOWS", True)
            store.opened(1)
        found = first.index.samples[0]
        offset, size = found.files["png"]
        data = shards[0].read_bytes()[offset : offset + size]
        assert InShard(Path(first.handle.name), "a", offset, size, "s", first.handle).open().getvalue() == data
        cut = InShard(Path(first.handle.name), "a", offset, 1 << 30, "s", first.handle)
        with pytest.raises(OSError, match="cut short"):
            cut.open()

    def test_users_of_one_folder_are_told_apart(self, monkeypatch) -> None:
        assert ShardCache(None, 1, 5).folder.name == f"piti-shards-{os.getuid()}"
        monkeypatch.delattr(os, "getuid")
        monkeypatch.setattr(caching, "WINDOWS", True)
        monkeypatch.setenv("LOGNAME", "somebody")
        assert ShardCache(None, 1, 5).folder.name == "piti-shards-somebody"

    def test_a_small_cache_loses_nothing(self, spec, served) -> None:
        """Shards that are in use stay open when they are evicted."""
        folder, shards = served
        manifest_of(folder, shards)
        with serving(folder) as (address, asked):
            made = spec(f"{address}/shards.json", shard_cache_gib=shards[0].stat().st_size / 2**30, shuffle_shards=3)
            training, held = open_shards(made, NoCondition())
            assert held is not None
            assert len(self.everything(training)) + len(held) == 24
            assert len(asked) <= 1 + 6 + 3

    def test_the_next_window_is_fetched_before_it_is_needed(self, spec, served) -> None:
        folder, shards = served
        manifest_of(folder, shards)
        arrived = threading.Event()
        with serving(folder) as (address, asked):
            training, _ = open_shards(spec(f"{address}/shards.json"), NoCondition())
            store = training.store
            opened = store.cache.opened

            def watched(shard):
                handle = opened(shard)
                if sum(path.endswith(".tar") for path in asked) == 4:
                    arrived.set()
                return handle

            store.cache.opened = watched  # type: ignore[method-assign]
            BatchStream(training, 1, 0)[0]
            assert arrived.wait(30)

    def test_one_that_cannot_be_had_ends_it(self, spec, served) -> None:
        folder, shards = served
        manifest_of(folder, shards)
        shards[2].unlink()
        with serving(folder) as (address, _):
            training, _ = open_shards(spec(f"{address}/shards.json"), NoCondition())
            for workers in (0, 2):
                with pytest.raises(DataError, match=r"^http[^\n]*/s-2.tar: cannot be downloaded: HTTP 404"):
                    keys_of(training, range(24), 1, workers=workers)

    def test_checksums(self, spec, served) -> None:
        folder, shards = served
        manifest_of(folder, shards)
        other = photographs(folder / "other.tar", 4, 50).read_bytes()
        with serving(folder) as (address, asked):
            training, _ = open_shards(spec(f"{address}/shards.json"), NoCondition())
            shards[0].write_bytes(other)
            with pytest.raises(DataError, match=r"s-0.tar: cannot be downloaded after 3 attempts: its sha256 is"):
                training.store.opened(0)
            assert asked[-3:] == ["/s-0.tar"] * 3
        assert not list(training.store.cache.folder.glob("s-0*.tar"))

    def test_a_half_fetched_one_counts_as_none(self, served, tmp_path) -> None:
        folder, _ = served
        cache = ShardCache(tmp_path / "cache", 1, 5)
        cache.make()
        with serving(folder, lambda one: respond(one, b"x" * 9, 2000)) as (address, asked):
            shard = Shard(f"{address}/s-0.tar")
            path = cache.path_of(shard)
            path.with_name(path.name + ".partial").write_bytes(b"left by a process that was killed")
            assert len(cache.index_of(shard).samples) == 4
            assert len(asked) == 2
        assert not list(cache.folder.glob("*.partial"))

    def test_a_store_begins_anew_in_another_process(self, served, tmp_path) -> None:
        _, shards = served
        store = ShardStore([Shard(str(path)) for path in shards], ShardCache(tmp_path / "cache", 1, 5), 3)
        store.expect([0, 1], [2, 3, 4])
        assert [len(store.opened(k).index.samples) for k in range(6)] == [4] * 6
        assert len(store._open) == 3
        assert pickle.loads(pickle.dumps(store)).opened(2).shard == store.shards[2]


def test_what_is_no_tar_is_told_before_training(spec, tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"^pipe:echo hello: not a tar archive, or damaged at its start \(.*no sample can be read"
    ):
        open_shards(spec("pipe:echo hello"), NoCondition())
    (tmp_path / "b.tar").write_bytes(b"hello")
    training, _ = open_shards(spec(photographs(tmp_path / "a.tar", 3), tmp_path / "b.tar"), NoCondition())
    skipped = []
    for k in range(len(training)):
        try:
            training.center(k)
        except BadSample as bad:
            skipped.append(str(bad))
    assert all(one.startswith(f"{tmp_path}/b.tar: not a tar archive") for one in skipped)


def test_a_single_address_stands_for_a_list() -> None:
    values = {"shards": "a.tar", "val_shards": "b.tar"}
    assert FolderSpec.parse(values, "test") == FolderSpec(shards=("a.tar",), val_shards=("b.tar",))
    assert FolderSpec.parse({"shards": ["a", "b"]}, "test").shards == ("a", "b")


class TestManifests:
    def test_splits_classes_and_conditions(self, spec, tmp_path) -> None:
        shards = [pairs(tmp_path / f"{k}.tar", 2) for k in range(3)]
        path = manifest_of(tmp_path, shards)
        entries = json.loads(path.read_text())["splits"]["train"]
        splits = {"train": entries[:2], "val": entries[2:]}
        classes = MASK.classes.to_dict()
        manifest_of(tmp_path, shards, splits=splits, conditions={"labels": "labels"}, classes=classes)
        listed = list_shards(spec(path))
        assert ([one.name for one in listed.train], [one.name for one in listed.val]) == (["0", "1"], ["2"])
        assert listed.classes == classes
        training, held = open_shards(spec(tmp_path, conditions="elsewhere"), MASK)
        assert (len(training), held and len(held)) == (4, 2)
        assert training.sample(0, torch.Generator()).condition.shape == (1, 8, 8)
        other = manifest_of(
            tmp_path / "other", [pairs(tmp_path / "other" / "3.tar", 2)], classes=classes | {"ignore": 7}
        )
        same = manifest_of(tmp_path / "same", [pairs(tmp_path / "same" / "4.tar", 2)], classes=classes)
        assert list_shards(spec(path, same)).classes == classes
        with pytest.raises(DataError, match=r"the class tables of .*/shards.json and .*other/shards.json differ"):
            _ = list_shards(spec(path, other)).classes
        both = list_shards(spec(shards[0], val_shards=(str(path),)).model_copy(update={"shards": (str(shards[0]),)}))
        assert [one.name for one in both.val] == ["2"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"shards.json: not valid JSON"),
            ("[]", r"shards.json: is not a shard manifest"),
            ('{"splits": {}, "version": 2}', r"'version' = 2: is not 1; give one of them\n  pack the shards again"),
            ('{"splits": {"test": [], "dev": []}}', r"has no split 'train'; known: test, dev"),
            (
                '{"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1}]}}',
                r"missing key 'splits.train.0.sha256'",
            ),
            (
                '{"splits": {"train": [{"name": "../a.tar", "samples": 1, "bytes": 1, "sha256": "' + "0" * 64 + '"}]}}',
                r"'splits.train.0.name' = '../a.tar'",
            ),
            (
                '{"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": "' + "0" * 64 + '"}]}}',
                r"a.tar: listed in the manifest, but missing",
            ),
        ],
    )
    def test_mistakes(self, spec, tmp_path, text, message) -> None:
        (tmp_path / "shards.json").write_text(text)
        with pytest.raises(DataError, match=message):
            open_shards(spec(tmp_path / "shards.json"), NoCondition())

    def test_a_shard_is_named_once(self, spec, tmp_path) -> None:
        tar = photographs(tmp_path / "a.tar", 2)
        with pytest.raises(DataError, match=r"a.tar is listed more than once"):
            open_shards(spec(tar, val_shards=(str(tar),)), NoCondition())

    def test_a_shard_that_holds_less_than_its_manifest_says(self, spec, tmp_path) -> None:
        shards = [photographs(tmp_path / "a.tar", 4)]
        path = manifest_of(tmp_path, shards)
        photographs(tmp_path / "a.tar", 3)
        training, _ = open_shards(spec(path, val_shards=validating(tmp_path)), NoCondition())
        with pytest.raises(BadSample, match=r"sample 4 of 4: it has 3 samples, fewer than counted"):
            training.center(3)


class TestMemory:
    def decoded(self, training, monkeypatch) -> int:
        count = []
        decode = type(training.cutter).decode
        monkeypatch.setattr(type(training.cutter), "decode", lambda *a: count.append(1) or decode(*a))
        keys_of(training, range(2 * len(training)), 1)
        return len(count)

    @pytest.mark.parametrize(("changes", "times"), [({}, 1), ({"cache": False}, 2), ({"cache_gib": 1e-6}, 2)])
    def test_samples_are_kept_if_all_would_fit(self, spec, tmp_path, monkeypatch, changes, times) -> None:
        made = spec(photographs(tmp_path / "a.tar", 6), val_shards=validating(tmp_path), **changes)
        training, _ = open_shards(made, NoCondition())
        assert self.decoded(training, monkeypatch) == 6 * times


def test_an_index_is_kept_until_the_shard_changes(tmp_path, caplog, monkeypatch) -> None:
    caplog.set_level(logging.WARNING)
    cache = ShardCache(tmp_path / "cache", 1, 5)
    shard = Shard(str(photographs(tmp_path / "a.tar", 2)))
    with tarfile.open(tmp_path / "a.tar") as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    wanted = ShardIndex([ShardSample(str(k), {"png": places[f"{k}.png"]}, ()) for k in range(2)])
    assert cache.index_of(shard) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(caching, "index_shard", lambda *rest: pytest.fail("is kept"))
        assert cache.index_of(shard) == wanted
    assert len(list(cache.folder.glob("index-*.json"))) == 1
    photographs(tmp_path / "a.tar", 5)
    assert len(cache.index_of(shard).samples) == 5
    for kept in cache.folder.glob("index-*.json"):
        kept.write_text("{")
    assert len(cache.index_of(shard).samples) == 5


def test_a_cache_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    local = Shard(str(pairs(tmp_path / "s.tar", 4)))
    assert len(ShardCache(tmp_path / "file" / "cache", 1, 5).index_of(local).samples) == 4
    cache, remote = ShardCache(tmp_path / "cache", 1, 5), Shard("http://127.0.0.1:9/s.tar")
    cache.path_of(remote).with_suffix(".lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot hold fetched shards \(.*\); set data.shard_cache"):
        cache.opened(remote)
