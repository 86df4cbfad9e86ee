"""Pairs of photographs and extracted lines: interruption, resuming, and errors."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.conditions import SketchCondition
from piti.core.files import OutputError
from piti.core.images import ImageError, read_rgb
from piti.data import DataError, FolderSpec, PairedFolder
from piti.data.archives import list_archived
from piti.data.edges import DETECTORS, Detector, HEDSpec, LineSpec, draw_lines
from piti.prepare import sketches
from piti.prepare.sketches import SketchJob, SketchReport, prepare_sketches
from piti.prepare.writer import PrepareError, place
from tests.forked import forked_context
from tests.prepare import trees
from tests.prepare.trees import QUICK, files


def drawn(photos: Path | list[Path], out: Path, **changes: object) -> SketchReport:
    job = SketchJob(out, **{"spec": QUICK, **changes})  # type: ignore[arg-type]
    return prepare_sketches(photos if isinstance(photos, list) else [photos], job, processes=1)


class TestSketches:
    def test_pairs_are_what_training_reads(self, photos: Path, tmp_path: Path) -> None:
        report = drawn(photos, tmp_path / "out")
        assert (report.made, report.kept, report.skipped) == (4, 0, [])
        condition = SketchCondition()
        folder = PairedFolder(FolderSpec(root=tmp_path / "out", conditions="sketches", size=8), condition)
        folder.check()
        assert [pair.key for pair in folder.pairs] == ["a", "b.v2", "deep/d", "deep/er/c"]
        for pair in folder.pairs:
            assert pair.condition is not None
            lines = draw_lines(np.asarray(read_rgb(pair.image)), QUICK)
            assert lines.any()
            assert np.array_equal(condition.load(pair.condition)[0].bool(), lines)
            with Image.open(str(pair.condition)) as image:
                assert image.mode == "P"
        original = photos / "deep/er/c.webp"
        assert (tmp_path / "out/images/deep/er/c.webp").samefile(original)

    def test_dense_lines_are_read_exactly_back(self) -> None:
        import torch

        for share in (0.0, 0.3, 0.9, 1.0):
            lines = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < share
            file = io.BytesIO()
            sketches.picture_of(lines).save(file, "PNG")
            assert torch.equal(SketchCondition().read(Image.open(file), "it")[0].bool(), lines)

    def test_a_photograph_on_its_side(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (40, 20), "white")
        exif = image.getexif()
        exif[0x0112] = 6
        (tmp_path / "photos").mkdir()
        image.save(tmp_path / "photos/turned.jpg", exif=exif)
        drawn(tmp_path / "photos", tmp_path / "out")
        PairedFolder(FolderSpec(root=tmp_path / "out", conditions="sketches", size=8), SketchCondition(), None).check()

    def test_a_second_run_keeps_what_is_there(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        drawn(photos, out)
        before = files(out)
        (out / "sketches/a.png").unlink()
        trees.truncate(out / "sketches/b.v2.png")
        (out / "images/deep/d.JPG").unlink()
        report = drawn(photos, out)
        assert (report.made, report.kept) == (3, 1)
        assert files(out) == before

    def test_a_changed_photograph_is_drawn_anew(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        drawn(photos, out, link=False)
        pixels = np.zeros((30, 40, 3), np.uint8)
        pixels[10:20] = 255
        trees.save(photos / "b.v2.png", pixels)
        os.utime(photos / "b.v2.png", ns=(1, 1))
        assert drawn(photos, out, link=False).made == 1
        assert (out / "images/b.v2.png").read_bytes() == (photos / "b.v2.png").read_bytes()

    def test_pairs_of_photographs_that_are_gone_are_told(self, photos: Path, tmp_path: Path) -> None:
        drawn(photos, tmp_path / "out")
        assert drawn(photos, tmp_path / "out").left == []
        (photos / "deep/er/c.webp").unlink()
        (note, _) = drawn(photos, tmp_path / "out").notes()
        assert "1 pair of an earlier run whose photographs were not given this time, such as deep/er/c: " in note

    def test_copies_leave_the_originals_alone(self, photos: Path, tmp_path: Path) -> None:
        before = files(photos)
        drawn(photos, tmp_path / "out", link=False)
        copy = tmp_path / "out/images/a.jpg"
        assert copy.read_bytes() == before["a.jpg"]
        assert not copy.samefile(photos / "a.jpg")
        assert files(photos) == before

    def test_without_hard_links_it_copies(self, photos: Path, tmp_path: Path, monkeypatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        assert place(photos / "a.jpg", tmp_path / "there/a.jpg", link=True)
        assert not place(photos / "a.jpg", tmp_path / "there/a.jpg", link=True)
        assert [p.name for p in (tmp_path / "there").iterdir()] == ["a.jpg"]

    def test_other_settings_are_refused_unless_overwritten(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        drawn(photos, out)
        before = files(out)
        other = LineSpec(smoothing=0, shortest=60)
        with pytest.raises(OutputError, match=r"other settings \(shortest: 2 there, 60 now\); add overwrite"):
            drawn(photos, out, spec=other)
        assert files(out) == before
        assert drawn(photos, out, spec=other, overwrite=True).made == 4
        assert files(out)["sketches/a.png"] != before["sketches/a.png"]
        assert drawn(photos, out, spec=other).kept == 4

    def test_other_weights_are_refused_like_other_settings(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quick = Detector(HEDSpec, lambda spec: lambda photograph: draw_lines(photograph, QUICK))
        monkeypatch.setitem(DETECTORS, "hed", quick)
        first, second, moved = (tmp_path / f"{name}.pt" for name in ("first", "second", "moved"))
        first.write_text("weights")
        second.write_text("others")
        drawn(photos, tmp_path / "out", detector="hed", spec=HEDSpec(weights=str(first)))
        first.rename(moved)
        assert drawn(photos, tmp_path / "out", detector="hed", spec=HEDSpec(weights=str(moved))).kept == 4
        with pytest.raises(OutputError, match=r"other settings \(weights_sha256: [0-9a-f]+ there, [0-9a-f]+ now\)"):
            drawn(photos, tmp_path / "out", detector="hed", spec=HEDSpec(weights=str(second)))

    def test_bad_photographs_are_named_and_skipped(self, photos: Path, tmp_path: Path) -> None:
        trees.truncate(photos / "a.jpg")
        (photos / "empty.png").touch()
        trees.save(photos / "deep/d.png", np.zeros((9, 9, 3), np.uint8))  # beside d.JPG
        out = tmp_path / "out"
        with pytest.raises(DataError, match=r"3 photographs skipped, 50.0% of all and more than max_bad 0.01"):
            drawn(photos, out)
        assert len(list((out / "sketches").rglob("*.png"))) == 3
        skipped = (out / "skipped.txt").read_text()
        assert all(part in skipped for part in ("a.jpg", "empty.png", "has the same key as"))
        report = prepare_sketches([photos], SketchJob(out, spec=QUICK), 1, max_bad=0.5)
        assert (report.made, report.kept, len(report.skipped)) == (0, 3, 3)
        for path in ("a.jpg", "empty.png", "deep/d.png"):
            (photos / path).unlink()
        assert drawn(photos, out).kept == 3
        assert not (out / "skipped.txt").exists()

    def test_archives(self, photos: Path, tmp_path: Path) -> None:
        tar = tmp_path / "more.tar"
        with tarfile.open(tar, "w") as archive:
            for name in ("a.jpg", "deep/d.JPG"):
                archive.add(photos / name, name)
            archive.add(photos / "a.jpg", "../outside.jpg")
        out = tmp_path / "out"
        job = SketchJob(out, spec=QUICK)
        report = prepare_sketches([photos, tar], job, 1, max_bad=0.5)
        assert report.made == 6
        assert "leads outside the folder" in report.skipped[0][1]
        assert (out / "images/more/deep/d.JPG").read_bytes() == (photos / "deep/d.JPG").read_bytes()
        assert (out / "sketches/photos/deep/er/c.png").is_file()
        assert not (tmp_path / "outside.jpg").exists()
        assert prepare_sketches([photos, tar], job, 1, max_bad=0.5).kept == 6
        tar.write_bytes(tar.read_bytes()[:700])
        with pytest.raises(ImageError, match=r"more.tar: not an uncompressed tar archive"):
            prepare_sketches([tar], job, 1)

    def test_an_archive_in_which_names_have_further_dots(self, photos: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "more.tar", "w") as archive:
            archive.add(photos / "a.jpg", "a.jpg")
            archive.add(photos / "b.v2.png", "b.v2.png")
        report = prepare_sketches([tmp_path / "more.tar"], SketchJob(tmp_path / "out", spec=QUICK), 1, max_bad=0.5)
        assert report.made == 1
        ((name, why),) = report.skipped
        assert name.endswith("more.tar:b.v2.png")
        assert "names end at the first dot" in why

    def test_single_pictures(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        report = drawn([photos / "a.jpg", photos / "deep"], out)
        assert report.made == 3
        assert sorted(files(out / "sketches")) == ["a.png", "deep/d.png", "deep/er/c.png"]
        assert (out / "images/a.jpg").samefile(photos / "a.jpg")
        with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
            drawn(photos / "nothing.png", tmp_path / "other")

    def test_what_is_left_out_and_what_is_small_is_noted(self, photos: Path, tmp_path: Path) -> None:
        for name in ("x.csv", "deep/y.txt", ".hidden.gif"):
            (photos / name).write_bytes(b"")
        (photos / "lost.heic").write_bytes(b"")
        (photos / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
        trees.save(photos / "large.png", np.zeros((64, 64, 3), np.uint8))
        for _ in range(2):  # also of pairs that are kept
            report = prepare_sketches([photos], SketchJob(tmp_path / "out", spec=QUICK), 1, max_bad=0.5)
            assert report.made + report.kept == 5
            assert [name for name, _ in report.skipped] == [str(photos / "lost.jpg"), str(photos / "lost.heic")]
            assert "broken links" in report.skipped[0][1]
            assert report.notes() == [
                f"skipped, not images: 2 files, such as {photos}/deep/y.txt",
                "smaller than 64 px, which training at that size refuses: 4 photographs",
            ]

    def test_photographs_in_place(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        photos.rename(tmp_path / "data/images")
        assert drawn(tmp_path / "data/images", tmp_path / "data").made == 4
        assert drawn(tmp_path / "data/images", tmp_path / "data").kept == 4

    def test_places_that_do_not_suit(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(PrepareError, match="no photographs there"):
            drawn(tmp_path / "empty", tmp_path / "out")
        with pytest.raises(PrepareError, match="lies inside the photographs' folder"):
            drawn(photos, photos / "out")
        with pytest.raises(OutputError, match="is not a folder"):
            drawn(photos, self.a_file(tmp_path))
        trees.photograph(tmp_path / "mine/images/holiday.png")
        before = files(tmp_path / "mine")
        with pytest.raises(OutputError, match="images/ holds other files"):
            drawn(photos, tmp_path / "mine")
        assert files(tmp_path / "mine") == before
        with pytest.raises(ImageError, match="no such file"):
            drawn(tmp_path / "nowhere", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @staticmethod
    def a_file(tmp_path: Path) -> Path:
        (tmp_path / "file").write_text("mine")
        return tmp_path / "file"

    def test_a_full_disk_ends_it_and_the_next_run_goes_on(self, photos: Path, tmp_path: Path, monkeypatch) -> None:
        out, calls = tmp_path / "out", []

        def full(source: Path, target: Path, link: bool) -> bool:
            calls.append(target)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
            return place(source, target, link)

        with monkeypatch.context() as patch:
            patch.setattr(sketches, "place", full)
            with pytest.raises(OSError, match="No space left"):
                drawn(photos, out)
        assert drawn(photos, out).kept == 2

    def test_processes_draw_the_same_and_an_interrupted_run_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its processes are forked, which is quicker; those that are spawned are stopped below."""
        context = forked_context()
        monkeypatch.setattr(sketches.multiprocessing, "get_context", lambda kind: context)
        for k in range(24):
            pixels = np.kron(np.eye(4) * 255, np.ones((9, 9 + k))).astype(np.uint8)
            trees.save(tmp_path / f"photos/{k:02d}.png", pixels)
        drawn(tmp_path / "photos", tmp_path / "one")

        def interrupt(done: int, total: int) -> None:
            assert total == 24
            if done == 6:
                raise KeyboardInterrupt

        out = tmp_path / "two"
        with pytest.raises(KeyboardInterrupt):
            prepare_sketches([tmp_path / "photos"], SketchJob(out, spec=QUICK), 2, progress=interrupt)
        assert not [name for name in files(out) if Path(name).name.startswith(".")]
        count = len(list((out / "sketches").iterdir()))
        assert 6 <= count < 24
        report = drawn(tmp_path / "photos", out)
        assert (report.made, report.kept) == (24 - count, count)
        assert files(out) == files(tmp_path / "one")

    def test_windows_waits_for_no_more_than_61_processes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Counted(Exception):
            pass

        def counted(count: int) -> None:
            raise Counted(count)

        monkeypatch.setattr(sketches, "_workers", counted)
        photographs = [sketches.Photograph(str(k), tmp_path / f"{k}.png") for k in range(800)]
        for windows, count in ((False, 90), (True, 61)):
            monkeypatch.setattr(sketches, "WINDOWS", windows)
            with pytest.raises(Counted, match=f"^{count}$"):
                next(sketches._drawn(photographs, SketchJob(tmp_path), 90))

    def test_real_photographs(self, scenes: Path, tmp_path: Path) -> None:
        members = list_archived(sorted(scenes.glob("*.tar"))[0])[:3]
        for k, member in enumerate(members):
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / f"photos/{k}.jpg").write_bytes(member.open().getvalue())
        drawn(tmp_path / "photos", tmp_path / "out", spec=None)
        condition = SketchCondition()
        for path in (tmp_path / "out/sketches").iterdir():
            assert 0.005 < condition.load(path).float().mean() < 0.3
