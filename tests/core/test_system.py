"""Other systems than Linux, simulated on Linux."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.core import files, system
from piti.core.files import whole_folder
from tests.conftest import ROOT
from tests.elsewhere import everything
from tests.forked import Forked


def test_the_package_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(16):
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / f"photos/{number}.png")
    photographs, out = str(tmp_path / "photos"), str(tmp_path / "out")
    run = Forked(everything, photographs, out, folder=tmp_path, environment={})
    said, errors = run.communicate()
    assert run.returncode == 0, errors
    sources = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "piti").rglob("*.py"))
    modules = {".".join(path.parts).removesuffix(".__init__") for path in sources}
    assert modules - {"piti.__main__"} <= set(said.split())
    assert len(list((tmp_path / "out/sketches").iterdir())) == 16


def test_cores_are_those_of_the_process_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert system.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert system.cores() == cores


def test_where_links_are_forbidden_windows_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    system.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_symlink()

    def forbidden(self: Path, target: Path) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    with pytest.raises(OSError, match="privilege"):
        system.link(tmp_path / "a", tmp_path / "c")
    monkeypatch.setattr(system, "WINDOWS", True)
    system.link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"
    assert not (tmp_path / "c").is_symlink()


def test_every_message_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for windows, encoding, written in (
        (False, "ascii", b"32 \\xd7 1, \\udcdf"),
        (True, "utf-8", b"32 \xc3\x97 1, \\udcdf"),
    ):
        stream = io.TextIOWrapper(bytes_of := io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(system, "WINDOWS", windows)
        system.write_all_letters()
        assert stream.encoding == encoding
        print("32 × 1, \udcdf", end="", file=stream, flush=True)
        assert bytes_of.getvalue() == written


def test_windows_flushes_files_that_may_be_written_and_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, into = [], os.open
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((Path(path).name, flags)) or into(path, flags))
    with whole_folder(tmp_path / "out", False, Path.is_dir) as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "out/file").read_text() == "whole"
    assert opened == [("file", os.O_RDWR)]
