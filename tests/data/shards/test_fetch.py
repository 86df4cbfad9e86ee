from __future__ import annotations

import hashlib
import select
import signal
import subprocess
import time
from pathlib import Path, PureWindowsPath

import pytest

from piti.data.problems import DataError
from piti.data.shards import fetch as fetching
from piti.data.shards import sources
from piti.data.shards.fetch import Expected, fetch
from piti.data.shards.sources import beside, expanded, is_manifest, is_remote, name_of, shown
from tests.shards import failing, respond, serving

BODY = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(BODY)
    return tmp_path / "served"


def only(tmp_path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name != "served"]


class TestHttp:
    def test_a_file_comes_whole(self, served, tmp_path) -> None:
        with serving(served) as (address, asked):
            fetch(f"{address}/a.tar", tmp_path / "got", 5)
        assert (tmp_path / "got").read_bytes() == BODY
        assert asked == ["/a.tar"]
        assert only(tmp_path) == ["got"]

    @pytest.mark.parametrize(
        "trouble",
        [failing(500), failing(503), failing(429), lambda one: respond(one, BODY[:1000], len(BODY)), lambda one: None],
        ids=["500", "503", "429", "short", "dropped"],
    )
    def test_what_may_pass_is_tried_again(self, served, tmp_path, trouble) -> None:
        with serving(served, trouble, trouble) as (address, asked):
            fetch(f"{address}/a.tar", tmp_path / "got", 5)
        assert (tmp_path / "got").read_bytes() == BODY
        assert len(asked) == 3

    def test_what_does_not_pass_ends(self, served, tmp_path) -> None:
        with serving(served, *[failing(500)] * 9) as (address, asked), pytest.raises(DataError) as error:
            fetch(f"{address}/a.tar", tmp_path / "got", 5)
        assert f"{address}/a.tar: cannot be downloaded after 4 attempts: HTTP 500" in str(error.value)
        assert len(asked) == 4
        assert only(tmp_path) == []

    def test_what_is_not_there_is_not_tried_again(self, served, tmp_path) -> None:
        with (
            serving(served) as (address, asked),
            pytest.raises(DataError, match=r"b\.tar: cannot be downloaded: HTTP 404"),
        ):
            fetch(f"{address}/b.tar", tmp_path / "got", 5)
        assert len(asked) == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_a_full_disk_is_named(self, served, tmp_path) -> None:
        (served / "a.tar").write_bytes(BODY[:1000])  # less than what is written at once
        (tmp_path / "got.partial").symlink_to("/dev/full")
        with (
            serving(served) as (address, asked),
            pytest.raises(DataError, match=r"cannot be written \(No space left on device\); change data.shard_cache"),
        ):
            fetch(f"{address}/a.tar", tmp_path / "got", 5)
        assert len(asked) == 1
        assert only(tmp_path) == []

    def test_a_server_that_falls_silent(self, served, tmp_path) -> None:
        def silent(handler) -> None:
            respond(handler, BODY[:1000], len(BODY))
            handler.wfile.flush()
            time.sleep(1)

        with serving(served, silent) as (address, _):
            fetch(f"{address}/a.tar", tmp_path / "got", 0.2)
        assert (tmp_path / "got").read_bytes() == BODY

    def test_nobody_answers(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"cannot be downloaded after 4 attempts: .*refused"):
            fetch("http://127.0.0.1:9/a.tar", tmp_path / "got", 5)

    def test_checksums(self, served, tmp_path) -> None:
        right = Expected(len(BODY), hashlib.sha256(BODY).hexdigest())
        other = BODY[:-1] + b"x"
        with serving(served, lambda one: respond(one, other)) as (address, asked):
            fetch(f"{address}/a.tar", tmp_path / "got", 5, right)
            assert len(asked) == 2
            with pytest.raises(DataError, match=r"its sha256 is [0-9a-f]{64}, the manifest says 0000"):
                fetch(f"{address}/a.tar", tmp_path / "other", 5, Expected(None, "0" * 64))
            with pytest.raises(DataError, match=rf"{len(BODY)} bytes were received, the manifest says 7"):
                fetch(f"{address}/a.tar", tmp_path / "other", 5, Expected(7))
        assert only(tmp_path) == ["got"]

    def test_what_is_secret_is_not_told(self, tmp_path) -> None:
        with pytest.raises(DataError) as error:
            fetch("http://me:word@127.0.0.1:9/a.tar?signature=abc", tmp_path / "got", 5)
        assert "word" not in str(error.value)
        assert "abc" not in str(error.value)


class TestPipes:
    def test_a_commands_output(self, served, tmp_path) -> None:
        fetch(f"pipe:gzip -c {served}/a.tar | gzip -dc", tmp_path / "got", 5)
        assert (tmp_path / "got").read_bytes() == BODY

    def test_a_command_that_fails_is_tried_again_and_quoted(self, tmp_path) -> None:
        count = tmp_path / "served"
        with pytest.raises(DataError, match=r"after 4 attempts: the command ended with exit code 3: no credentials;"):
            fetch(f"pipe:echo x >> {count}; echo some; echo no credentials >&2; exit 3", tmp_path / "got", 5)
        assert count.read_text() == "x\n" * 4
        assert only(tmp_path) == []

    def test_one_that_recovers(self, served, tmp_path) -> None:
        fetch(f"pipe:test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}; cat {served}/a.tar",
              tmp_path / "got", 5)  # fmt: skip
        assert (tmp_path / "got").read_bytes() == BODY

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("false", r"after 2 attempts: the command ended with exit code 1;"),
            ("echo denied >&2; exit 3", r"after 2 attempts: the command ended with exit code 3: denied;"),
            (
                "echo no such key >&2",
                r"after 2 attempts: nothing was received; the command ended with exit code 0: no such key;",
            ),
        ],
    )
    def test_one_that_fails_at_once_without_output_is_tried_twice(self, tmp_path, caplog, command, said) -> None:
        (tmp_path / "served").mkdir()
        count = tmp_path / "served" / "count"
        with pytest.raises(DataError, match=said):
            fetch(f"pipe:echo x >> {count}; {command}", tmp_path / "got", 5)
        assert count.read_text() == "x\n" * 2
        assert caplog.text.count("trying again in 0 s") == 1
        assert "exit code" in caplog.text

    def test_one_that_fails_after_a_while_is_tried_as_often_as_a_server(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(fetching, "_AT_ONCE", 0.0)
        with pytest.raises(DataError, match=r"after 4 attempts: the command ended with exit code 1;"):
            fetch("pipe:false", tmp_path / "got", 5)

    def test_the_first_of_a_pipeline_fails(self, served, tmp_path) -> None:
        with pytest.raises(DataError, match=r"exit code 1"):
            fetch(f"pipe:cat {served}/none.tar | cat", tmp_path / "got", 5)

    def test_there_is_no_such_command(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"cannot be downloaded: the command ended with exit code 127: .*not found"):
            fetch("pipe:no-such-command-here a.tar", tmp_path / "got", 5)

    def test_one_that_hangs_is_ended_with_its_children(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(fetching, "PAUSES", ())
        with pytest.raises(DataError, match=r"wrote nothing for 0.2 s \(data.shard_timeout\)"):
            fetch("pipe:echo some; sleep 600 | cat", tmp_path / "got", 0.2)
        assert only(tmp_path) == []

    def test_a_command_can_be_terminated_whatever_its_starter_blocks(self, tmp_path) -> None:
        """A loader's worker blocks SIGTERM, by which `timeout` within a command ends another."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            fetch("pipe:bash -c 'kill -TERM $$; echo survived' || echo ended", tmp_path / "got", 5)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert (tmp_path / "got").read_text() == "ended\n"

    def test_where_pipes_cannot_be_polled_a_thread_reads(self, served, tmp_path, monkeypatch) -> None:
        monkeypatch.delattr(select, "poll")
        fetch(f"pipe:cat {served}/a.tar", tmp_path / "got", 5)
        assert (tmp_path / "got").read_bytes() == BODY
        monkeypatch.setattr(fetching, "PAUSES", ())
        with pytest.raises(DataError, match=r"wrote nothing for 0.2 s \(data.shard_timeout\)"):
            fetch("pipe:echo some; sleep 600 | cat", tmp_path / "other", 0.2)
        assert only(tmp_path) == ["got"]

    def test_windows_has_a_shell_and_an_end_of_its_own(self, monkeypatch) -> None:
        monkeypatch.setattr(fetching, "WINDOWS", True)
        assert fetching._shell('type "a b.tar"') == 'cmd /d /s /c "type "a b.tar""'  # whose outer quotes it takes off
        with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE) as process:
            ran: list[list[str]] = []
            monkeypatch.setattr(subprocess, "run", lambda line, **more: ran.append(line) or process.kill())
            fetching._end(process)
        assert ran == [["taskkill", "/f", "/t", "/pid", str(process.pid)]]

    def test_nothing_comes(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"nothing was received"):
            fetch("pipe:true", tmp_path / "got", 5)


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("http://h/a-{000..002}.tar", ["http://h/a-000.tar", "http://h/a-001.tar", "http://h/a-002.tar"]),
            ("http://h/{a,b}{9..10}.tar", [f"http://h/{x}.tar" for x in ("a9", "a10", "b9", "b10")]),
            ("pipe:cat {8..9}.tar | awk '{print, $1}'", [f"pipe:cat {n}.tar | awk '{{print, $1}}'" for n in (8, 9)]),
        ],
    )
    def test_ranges(self, given, expected) -> None:
        assert expanded(given, "data.shards") == expected

    def test_paths(self, tmp_path) -> None:
        for name in ("b.tar", "a.tar", "c.txt"):
            (tmp_path / name).touch()
        both = [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
        assert expanded(f"{tmp_path}/*.tar", "k") == expanded(str(tmp_path), "k") == both
        assert expanded(f"{tmp_path}/{{a,b}}.tar", "k") == both
        (tmp_path / "shards.json").touch()
        assert expanded(str(tmp_path), "k") == [f"{tmp_path}/shards.json"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("none.tar", r"data.shards: none.tar: no such file"),
            ("no*.tar", r"no file matches no\*.tar"),
            ("a{3..1}.tar", r"expected an ascending range"),
            ("a{0..9999999}.tar", r"expected an ascending range"),
            ("s3://bucket/a.tar", r"'pipe:aws s3 cp s3://bucket/a.tar -'"),
            ("ftp://host/a.tar", r"addresses are paths, http\(s\):// and pipe:COMMAND"),
        ],
    )
    def test_mistakes(self, given, message, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=message):
            expanded(given, "data.shards")

    def test_paths_with_backslashes(self, monkeypatch) -> None:
        monkeypatch.setattr(sources, "PurePath", PureWindowsPath)
        assert name_of("D:\\shards\\s-000.tar") == name_of("https://host/shards/s-000.tar?x=1") == "s-000"
        assert beside("D:\\shards\\shards.json", "s-000.tar") == "D:\\shards\\s-000.tar"

    def test_an_empty_folder(self, tmp_path) -> None:
        with pytest.raises(DataError, match=r"contains neither shards.json nor .tar files"):
            expanded(str(tmp_path), "data.shards")

    def test_parts(self) -> None:
        assert shown("https://me:word@host:8/a/b.tar?sign=1") == "https://host:8/a/b.tar"
        assert name_of("https://host/a/b-0.1.tar?sign=x/y.tar") == "b-0"
        assert name_of("pipe:aws s3 cp 's3://b/d/c-001.tar' - --quiet") == "c-001"
        assert is_remote("pipe:x")
        assert not is_remote("a/b.tar")
        assert is_manifest("https://h/d/shards.json?s=1")
        assert beside("https://h/d/shards.json?s=1", "a.tar") == "https://h/d/a.tar?s=1"
        assert beside("pipe:aws s3 cp s3://b/shards.json -", "a.tar") == "pipe:aws s3 cp s3://b/a.tar -"
        assert beside("/d/other.json", "a.tar") == "/d/a.tar"
