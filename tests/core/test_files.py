"""Atomic files and folders, also with failures."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from piti.core.files import OutputError, alone, filled_folder, follow_umask, whole_file, whole_folder

FULL = OSError(errno.ENOSPC, "No space left on device")


def ours(folder: Path) -> bool:
    return (folder / "mark").is_file()


def tree(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else "" for p in sorted(root.rglob("*"))}


def fill(target: Path, text: str, overwrite: bool = False, error: BaseException | None = None) -> None:
    with whole_folder(target, overwrite, ours) as folder:
        (folder / "mark").write_text(text)
        (folder / "inside").mkdir()
        (folder / "inside/data").write_text(text)
        if error is not None:
            raise error


def write_and_fail(path: Path) -> None:
    path.write_text("half")
    raise FULL


def write_and_stop(path: Path) -> None:
    path.write_text("half")
    signal.raise_signal(signal.SIGTERM)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a/b", False, ours) as folder:
        (folder / "mark").write_text("1")
        assert not (tmp_path / "a/b").exists()
    assert tree(tmp_path) == {"a": "", "a/b": "", "a/b/mark": "1"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "1")
    assert tree(tmp_path / "out")["mark"] == "1"


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("bad")])
@pytest.mark.parametrize("before", [False, True])
def test_nothing_remains_of_a_failure_and_nothing_is_lost(tmp_path: Path, error: BaseException, before: bool) -> None:
    target = tmp_path / "deep/out" if not before else tmp_path / "out"
    if before:
        fill(target, "old")
    was = tree(tmp_path)
    with pytest.raises(OutputError if error is FULL else type(error)) as raised:
        fill(target, "new", overwrite=True, error=error)
    assert tree(tmp_path) == was
    if error is FULL:
        assert "out: cannot be written (No space left on device)" in str(raised.value)


@pytest.mark.parametrize("before", [False, True])
def test_termination_leaves_nothing(tmp_path: Path, before: bool) -> None:
    if before:
        fill(tmp_path / "out", "old")
    was, handler = tree(tmp_path), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=r"^143$"), whole_folder(tmp_path / "out", True, ours) as folder:
        write_and_stop(folder / "mark")
    with pytest.raises(SystemExit, match=r"^143$"), whole_file(tmp_path / "a.pt", True) as path:
        write_and_stop(path)
    assert tree(tmp_path) == was
    assert signal.getsignal(signal.SIGTERM) is handler


KILLED = """
import sys, time
from pathlib import Path
from piti.core.files import whole_folder
with whole_folder(Path(sys.argv[1]), False, Path.is_dir) as folder:
    (folder / "half").write_text("")
    print("begun", flush=True)
    time.sleep(100)
"""


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, tmp_path / "deep/out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert tree(tmp_path)
        process.terminate()
    assert process.returncode == 143
    assert tree(tmp_path) == {}


def test_another_s_answer_to_termination_stays(tmp_path: Path) -> None:
    came: list[int] = []
    was = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with whole_file(tmp_path / "a", False) as path:
            path.write_text("1")
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, was)
    assert came == [signal.SIGTERM]
    assert tree(tmp_path) == {"a": "1"}


def test_other_threads_write_too(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    thread = threading.Thread(target=fill, args=(tmp_path / "out", "new", True))
    thread.start()
    thread.join()
    assert tree(tmp_path)["out/mark"] == "new"


@pytest.fixture
def listens() -> Iterator[None]:
    """SIGINT as in a terminal; where the tests run in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(real: Callable[..., None], number: int) -> Callable[..., None]:
    def call(*arguments: object, **options: object) -> None:
        signal.raise_signal(number)
        real(*arguments, **options)

    return call


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("listens")
def test_an_interruption_waits_until_what_is_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException], fails: bool
) -> None:
    """While the old folder is removed, or, of a failure, the new one."""
    fill(tmp_path / "out", "old")
    monkeypatch.setattr(shutil, "rmtree", interrupted(shutil.rmtree, number))
    with pytest.raises(raised):
        fill(tmp_path / "out", "new", overwrite=True, error=ValueError("bad") if fails else None)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert tree(tmp_path)["out/mark"] == ("old" if fails else "new")


def test_an_old_folder_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    fill(tmp_path / "out", "old")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OutputError, match=r"out: is written, but .*Permission denied.*remove .*\.old"):
        fill(tmp_path / "out", "new", overwrite=True)
    assert tree(tmp_path)["out/mark"] == "new"


def test_overwriting_replaces_all_of_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    fill(target, "old")
    (target / "more").write_text("old")
    fill(target, "new", overwrite=True)
    assert tree(tmp_path) == {"out": "", "out/inside": "", "out/inside/data": "new", "out/mark": "new"}


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "old")
    was, real = tree(tmp_path), Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise FULL
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError):
        fill(tmp_path / "out", "new", overwrite=True)
    assert tree(tmp_path) == was


def test_other_things_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat").write_text("1")
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    fill(tmp_path / "model", "1")
    was = tree(tmp_path)
    for name, message in (("photos", "other files"), ("file", "is not a folder"), ("link", "is not a folder")):
        with pytest.raises(OutputError, match=message):
            fill(tmp_path / name, "2", overwrite=True)
    with pytest.raises(OutputError, match="add overwrite"):
        fill(tmp_path / "model", "2")
    assert tree(tmp_path) == was


def test_files(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    with whole_file(target, False) as path:
        path.write_text("1")
    with pytest.raises(OutputError, match="overwrite"), whole_file(target, False):
        raise AssertionError("refused first")
    with pytest.raises(OutputError, match="No space left"), whole_file(target, True) as path:
        write_and_fail(path)
    assert tree(tmp_path) == {"a.pt": "1"}
    with whole_file(target, True) as path:
        path.write_text("3")
    assert tree(tmp_path) == {"a.pt": "3"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"), whole_file(tmp_path / "folder", True):
        raise AssertionError("refused first")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    path.touch(0o600)
    before = os.umask(umask)
    try:
        follow_umask(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def put(target: Path, text: str, error: BaseException | None = None) -> None:
    with filled_folder(target) as folder:
        (folder / "inside/new").mkdir(parents=True)
        (folder / "inside/data").write_text(text)
        (folder / "mark").write_text(text)
        if error is not None:
            raise error


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_is_filled_when_all_is_written(tmp_path: Path, before: bool) -> None:
    target = tmp_path / "deep/out"
    if before:
        fill(target, "old")
        (target / "inside/own").write_text("theirs")
        (tmp_path / "link").symlink_to(target)
    was = tree(tmp_path)
    for error in (FULL, KeyboardInterrupt()):
        with pytest.raises(OutputError if error is FULL else KeyboardInterrupt):
            put(target, "new", error)
        assert tree(tmp_path) == was
    put(tmp_path / "link" if before else target, "new")
    assert tree(target) == {"inside": "", "inside/data": "new", "mark": "new"} | (
        {"inside/own": "theirs"} if before else {"inside/new": ""}
    )
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="is a file, not a folder; give another save_directory"):
        put_named(target / "mark")


def put_named(target: Path) -> None:
    with filled_folder(target, "save_directory"):
        raise AssertionError("it was let in")


def test_one_process_at_a_time_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(tmp_path / "a/out"):
        with pytest.raises(
            OutputError, match=r"out: another process is writing there; wait for it, or give another out$"
        ):
            alone(tmp_path / "a/out").__enter__()
        with alone(tmp_path / "a/other"):
            pass
    assert not list((tmp_path / "a").iterdir())

    def without_locks(*rest: object, **more: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", without_locks)
    with alone(tmp_path / "a/out"), alone(tmp_path / "a/out"):
        pass
