"""Downloaded sets written as pairs: a second run, other settings, problems, progress."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from piti.conditions import ClassTable, MaskCondition
from piti.core.files import OutputError
from piti.data import FolderSpec, PairedFolder
from piti.prepare import datasets
from piti.prepare.datasets import check_set, write_set
from piti.prepare.layouts import Ade20k, Diode, SceneParse, ade20k
from piti.prepare.writer import PrepareError
from tests.prepare import trees
from tests.prepare.trees import files


class TestSets:
    def test_a_second_run_keeps_what_is_there(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        source = trees.ade_full(tmp_path / "src")
        write_set(check_set(ade20k(source)), out)
        before = files(out)
        next((out / "labels").rglob("*.png")).unlink()
        trees.truncate(sorted((out / "labels").rglob("*.png"))[-1])
        assert write_set(check_set(ade20k(source)), out) == "2 pairs made, 1 kept"
        assert files(out) == before

    def test_depth_too(self, tmp_path: Path) -> None:
        source, out = trees.diode(tmp_path / "src"), tmp_path / "out"
        write_set(check_set(Diode(source)), out)
        before = files(out)
        trees.truncate(sorted((out / "depth").rglob("*.npz"))[0])
        np.save(sorted(source.rglob("*_depth.npy"))[1], np.full((16, 24), 9, np.float32))
        assert write_set(check_set(Diode(source)), out) == "2 pairs made, 3 kept"
        changed = [name for name, data in files(out).items() if before[name] != data]
        assert [Path(name).suffix for name in changed] == [".npz"]

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        out, source = tmp_path / "out", trees.ade_full(tmp_path / "src")
        write_set(check_set(Ade20k(source)), out)
        with pytest.raises(OutputError, match=r"top: None there, 2 now"):
            write_set(check_set(Ade20k(source, 2)), out)
        with pytest.raises(OutputError, match="was made by piti prepare ade20k"):
            write_set(check_set(Diode(trees.diode(tmp_path / "diode"))), out)
        assert write_set(check_set(Ade20k(source, 2)), out, overwrite=True).startswith("3 pairs made")

    def test_interrupted_it_has_no_class_table_and_goes_on(self, tmp_path: Path) -> None:
        out, source = tmp_path / "out", trees.ade_full(tmp_path / "src")

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_set(check_set(ade20k(source)), out, progress=interrupt)
        assert not {"classes.json", "splits.json"} & files(out).keys()
        assert not [name for name in files(out) if Path(name).name.startswith(".")]
        assert "kept" in write_set(check_set(ade20k(source)), out)
        assert {"classes.json", "splits.json"} <= files(out).keys()

    def test_what_cannot_be_written_leaves_nothing_half(self, tmp_path: Path, monkeypatch) -> None:
        out, source = tmp_path / "out", trees.ade_full(tmp_path / "src")

        def full(self: Ade20k, entry: object, target: Path, mark: str) -> None:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        report = check_set(ade20k(source))
        with monkeypatch.context() as patch:
            patch.setattr(Ade20k, "write", full)
            with pytest.raises(OSError, match="No space left"):
                write_set(report, out)
        assert files(out).keys() == {"prepare.json"}

    def test_one_split_alone_is_divided_by_hash(self, tmp_path: Path) -> None:
        root = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016"
        for folder in ("images", "annotations"):
            for path in (root / folder / "training").iterdir():
                path.unlink()
        report = check_set(SceneParse(root))
        write_set(report, tmp_path / "out")
        assert not (tmp_path / "out/splits.json").exists()
        assert report.notes()[0] == "only val exists: 5% are held out by a hash of their names"

    def test_pairs_of_an_earlier_run_are_not_trained_on(self, tmp_path: Path) -> None:
        root, out = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016", tmp_path / "out"
        for folder in ("images", "annotations"):
            shutil.rmtree(root / folder / "validation")
        write_set(check_set(SceneParse(root)), out)
        next((root / "images/training").glob("*2.jpg")).unlink()
        next((root / "annotations/training").glob("*2.png")).unlink()
        write_set(check_set(SceneParse(root)), out)
        mask = MaskCondition(ClassTable.read(out / "classes.json"))
        folders = [PairedFolder(FolderSpec(root=out, size=16), mask, split) for split in ("train", "val")]
        trained = [pair.key for folder in folders for pair in folder.pairs]
        assert sorted(trained) == [f"training/ADE_train_0000000{k}" for k in (1, 3, 4)]

    def test_a_split_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        root = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016"
        for path in (root / "images/validation").iterdir():
            trees.truncate(path)
        with pytest.raises(PrepareError, match=r"nothing would remain of the split val \(\d pairs, all bad\)"):
            write_set(check_set(SceneParse(root)), tmp_path / "out", skip_bad=True)
        for path in (root / "annotations/validation").iterdir():
            path.unlink()
        with pytest.raises(PrepareError, match=r"split val \(0 pairs"):
            write_set(check_set(SceneParse(root)), tmp_path / "out", skip_bad=True)
        assert not (tmp_path / "out").exists()
        for path in (root / "images/validation").iterdir():
            path.unlink()
        assert write_set(check_set(SceneParse(root)), tmp_path / "out", skip_bad=True).startswith("4 pairs made")

    def test_out_must_not_lie_in_the_source(self, tmp_path: Path) -> None:
        source = trees.diode(tmp_path / "src")
        with pytest.raises(PrepareError, match=r"lies inside .*, which is only read; give an OUT beside it"):
            write_set(check_set(Diode(source)), source / "made/out")
        assert not (source / "made").exists()

    def test_out_must_not_hold_the_source(self, tiny_data: Path) -> None:
        from piti.prepare.layouts import PlainFolder

        for out in (tiny_data, tiny_data.parent):
            with pytest.raises(PrepareError, match="contains the data set itself"):
                write_set(check_set(PlainFolder(tiny_data)), out)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    layout = ade20k(trees.scene_parse(tmp_path / "src"))
    report = check_set(layout, lambda done, total: told.append((done, total)))
    datasets.write_set(report, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 6) for k in range(1, 7)] * 2
