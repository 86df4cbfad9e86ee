"""`piti prepare`: pairs made of photographs, downloaded sets written; interrupted, resumed, and refused."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from piti.cli import app as cli
from piti.conditions import SketchCondition
from piti.core.files import OutputError
from piti.core.images import ImageError, read_rgb
from piti.data import DataError, FolderSpec, PairedFolder
from piti.data.archives import list_archived
from piti.data.edges import DETECTORS, Detector, LineSpec, detector_spec, draw_lines
from piti.prepare import datasets, sketches
from piti.prepare.datasets import check_set, write_set
from piti.prepare.layouts import Ade20k, Diode, SceneParse, ade20k
from piti.prepare.sketches import SketchJob, SketchReport, prepare_sketches
from piti.prepare.writer import PrepareError, place
from tests.conftest import ROOT
from tests.forked import forked_context
from tests.prepare import trees

QUICK = LineSpec(smoothing=0, shortest=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs of squares, in two depths, with dots in their names."""
    for k, name in enumerate(("a.jpg", "b.v2.png", "deep/er/c.webp", "deep/d.JPG")):
        pixels = np.full((30, 40, 3), 250, np.uint8)
        pixels[8:20, 6 + k : 24 + k] = (10, 40, 90)
        trees.save(tmp_path / "photos" / name, pixels)
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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
        assert "leads out of the folder" in report.skipped[0][1]
        assert (out / "images/more/deep/d.JPG").read_bytes() == (photos / "deep/d.JPG").read_bytes()
        assert (out / "sketches/photos/deep/er/c.png").is_file()
        assert not (tmp_path / "outside.jpg").exists()
        assert prepare_sketches([photos, tar], job, 1, max_bad=0.5).kept == 6
        tar.write_bytes(tar.read_bytes()[:700])
        with pytest.raises(ImageError, match=r"more.tar: not an uncompressed tar archive"):
            prepare_sketches([tar], job, 1)

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
            assert "lead nowhere" in report.skipped[0][1]
            assert report.notes() == [
                f"left out: 2 files that are no pictures, such as {photos}/deep/y.txt",
                "4 are smaller than 64 px, which training at that size refuses",
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
        with pytest.raises(OutputError, match="is no folder"):
            drawn(photos, self.a_file(tmp_path))
        trees.photograph(tmp_path / "mine/images/holiday.png")
        before = files(tmp_path / "mine")
        with pytest.raises(OutputError, match="images/ holds other things"):
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

    def test_real_photographs(self, scenes: Path, tmp_path: Path) -> None:
        members = list_archived(sorted(scenes.glob("*.tar"))[0])[:3]
        for k, member in enumerate(members):
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / f"photos/{k}.jpg").write_bytes(member.open().getvalue())
        drawn(tmp_path / "photos", tmp_path / "out", spec=None)
        condition = SketchCondition()
        for path in (tmp_path / "out/sketches").iterdir():
            assert 0.005 < condition.load(path).float().mean() < 0.3


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
        assert report.notes()[0] == "only val is there: 5% are held out by a hash of their names"

    def test_a_split_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        root = trees.scene_parse(tmp_path / "src") / "ADEChallengeData2016"
        for path in (root / "images/validation").iterdir():
            trees.truncate(path)
        with pytest.raises(PrepareError, match=r"nothing would be left of the split val \(\d pairs, all bad\)"):
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
            with pytest.raises(PrepareError, match="holds the data set itself"):
                write_set(check_set(PlainFolder(tiny_data)), out)


class TestCommands:
    def run(self, *arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["prepare", *map(str, arguments)])
        assert result.exception is None or not isinstance(result.exception, TypeError), result.exception
        return result.exit_code, result.stdout

    def test_sketch_and_the_recipe_that_it_names(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        drawing = ["--smoothing", "0", "--shortest", "2", "--thin", "--processes", "1"]
        run = CliRunner().invoke(cli.app, ["prepare", "sketch", str(photos), str(out), *drawing])
        assert run.exit_code == 0
        assert "note: 4 are smaller than 64 px, which training at that size refuses" in run.stderr
        assert run.stdout == f"4 pairs made, drawn by lines; train on them: piti train sketch --data {out}\n"
        recipe = yaml.safe_load((ROOT / "recipes/sketch.yaml").read_text())
        assert recipe["data"]["conditions"] == "sketches"
        assert recipe["condition"]["kind"] == "sketch"
        settings = json.loads((out / "prepare.json").read_text())["settings"]
        _, spec = detector_spec("lines", {"smoothing": 0, "shortest": 2, "thin": True})
        assert settings == {"detector": "lines", **spec.to_dict()}

    def test_another_detector(self, photos: Path, tmp_path: Path, monkeypatch) -> None:
        kind = Detector(LineSpec, lambda spec: lambda pixels: draw_lines(pixels, QUICK))
        monkeypatch.setitem(DETECTORS, "mine", kind)
        assert self.run("sketch", photos, tmp_path / "out", "--detector", "mine", "--processes", 1)[0] == 0

    def test_stopped_it_says_how_to_go_on(self, tmp_path: Path) -> None:
        trees.save(tmp_path / "photos/0.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        for k in range(1, 1000):
            os.link(tmp_path / "photos/0.png", tmp_path / f"photos/{k}.png")
        out = tmp_path / "out"
        line = ["prepare", "sketch", str(tmp_path / "photos"), str(out), "--processes", "2"]
        command = [sys.executable, "-m", "piti", *line]
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job would ignore it
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heard
        ) as run:
            while not list(out.glob("sketches/*.png")) and run.poll() is None:
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to the processes that draw too
            said = run.communicate()[1].decode()
        assert run.returncode == 130, said
        assert "stopped; the same command goes on where it was" in said
        assert "leaked" not in said
        assert "Traceback" not in said
        assert 0 < len(list(out.glob("sketches/*.png"))) < 1000
        assert not list(out.rglob(".*"))

    def test_ended_from_outside_it_says_so_too(self, photos: Path, tmp_path: Path, monkeypatch) -> None:
        def draw(pixels: np.ndarray) -> object:
            if list((tmp_path / "out/sketches").glob("*.png")):
                signal.raise_signal(signal.SIGTERM)
            return draw_lines(pixels, QUICK)

        monkeypatch.setitem(DETECTORS, "ending", Detector(LineSpec, lambda spec: draw))  # type: ignore[arg-type]
        line = ["prepare", "sketch", str(photos), str(tmp_path / "out"), "--detector", "ending", "--processes", "1"]
        run = CliRunner().invoke(cli.app, line)
        assert run.exit_code == 143
        assert "stopped; the same command goes on where it was" in run.stderr
        assert [path.name for path in (tmp_path / "out").rglob("*.png")].count("a.png") == 1
        assert not list((tmp_path / "out").rglob(".*"))

    @pytest.mark.parametrize("inside", ["out", "ADEChallengeData2016/out", "ADEChallengeData2016/images/out"])
    def test_out_inside_the_source(self, inside: str, tmp_path: Path) -> None:
        source = trees.scene_parse(tmp_path / "src")
        before = files(source)
        assert self.run("ade20k", source, source / inside)[0] == 1
        assert files(source) == before

    def test_check_writes_nothing(self, tmp_path: Path) -> None:
        code, said = self.run("ade20k", trees.scene_parse(tmp_path / "src"), "--check")
        assert code == 0
        assert "train" in said
        assert said.endswith("all is well; nothing was written\n")

    def test_out_is_needed_to_write(self, tmp_path: Path) -> None:
        assert self.run("ade20k", trees.scene_parse(tmp_path / "src"))[0] == 1

    @pytest.mark.parametrize(
        ("command", "make", "recipe"),
        [
            (["ade20k"], trees.scene_parse, "street"),
            (["ade20k", "--top", 3], trees.ade_full, "street"),
            (["coco-stuff", "--train-ids"], trees.coco, "street"),
            (["cityscapes", "--train-ids"], trees.cityscapes, "street"),
            (["diode"], trees.diode, "geometry"),
        ],
    )
    def test_every_layout(self, command: list[object], make, recipe: str, tmp_path: Path) -> None:
        code, said = self.run(*command, make(tmp_path / "src"), tmp_path / "out", "--copy")
        assert code == 0
        assert f"train on them: piti train {recipe} --data {tmp_path}/out" in said
        assert (ROOT / f"recipes/{recipe}.yaml").is_file()
        conditions = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())["data"].get("conditions", "labels")
        assert (tmp_path / "out" / conditions).is_dir()

    def test_a_plain_folder_with_problems(self, tiny_data: Path, tmp_path: Path) -> None:
        (tiny_data / "images/scene-02.png").unlink()
        assert self.run("folder", tiny_data, tmp_path / "out")[0] == 1
        assert not (tmp_path / "out").exists()
        assert self.run("folder", tiny_data, "--check")[0] == 1
        code, said = self.run("folder", tiny_data, tmp_path / "out", "--skip-bad")
        assert code == 0
        assert "11 pairs made, 1 problems skipped" in said

    def test_starting_is_light(self) -> None:
        code = "import sys, piti.cli.data; print(*(m for m in ('torch', 'kornia', 'PIL') if m in sys.modules))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == ""


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    layout = ade20k(trees.scene_parse(tmp_path / "src"))
    report = check_set(layout, lambda done, total: told.append((done, total)))
    datasets.write_set(report, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 6) for k in range(1, 7)] * 2
