"""`piti prepare`: its output, interruption, and every layout."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from piti.cli import app as cli
from piti.data.edges import DETECTORS, Detector, LineSpec, detector_spec, draw_lines
from tests.conftest import ROOT
from tests.prepare import trees
from tests.prepare.trees import QUICK, files


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
        assert "note: smaller than 64 px, which training at that size refuses: 4 photographs" in run.stderr
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
        assert "stopped; run the same command to continue" in said
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
        assert "stopped; run the same command to continue" in run.stderr
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
        assert said.endswith("no problems; nothing was written\n")

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

    @pytest.mark.parametrize(("command", "own_files"), [("coco-stuff", True), ("cityscapes", False)])
    def test_help_names_the_masks_that_train_ids_are_read_from(self, command: str, own_files: bool) -> None:
        assert ("labelTrainIds" in self.run(command, "--help")[1]) is own_files

    def test_a_plain_folder_with_problems(self, tiny_data: Path, tmp_path: Path) -> None:
        (tiny_data / "images/scene-02.png").unlink()
        assert self.run("folder", tiny_data, tmp_path / "out")[0] == 1
        assert not (tmp_path / "out").exists()
        assert self.run("folder", tiny_data, "--check")[0] == 1
        code, said = self.run("folder", tiny_data, tmp_path / "out", "--skip-bad")
        assert code == 0
        assert "11 pairs made, 1 problem skipped" in said

    def test_starting_is_light(self) -> None:
        code = "import sys, piti.cli.data; print(*(m for m in ('torch', 'kornia', 'PIL') if m in sys.modules))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == ""
