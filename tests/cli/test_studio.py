"""`piti studio`: its errors, and the settings from its flags."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from piti.cli.app import app
from piti.core.errors import UserError
from piti.pipelines.computing import Computing
from piti.studio.http import app as server
from piti.studio.service import service as engine
from piti.studio.service.schema import Limits


def run(*arguments: str) -> Any:
    """What the command did; errors go through."""
    return CliRunner().invoke(app, ["studio", "--port", "0", *arguments], catch_exceptions=False)


def test_flags_become_limits_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(engine, "Studio", lambda *given: seen.update(studio=given))
    monkeypatch.setattr(server, "serve", lambda *given: given[4]("http://127.0.0.1:1/") or seen.update(serve=given))
    limits = "--max-upload 3 --max-samples 2"
    done = run(*f"--model a --model b {limits} --allow-host x.example --root-path /studio".split())
    assert done.exit_code == 0
    assert "the studio is at http://127.0.0.1:1/" in done.stdout
    names, limits, computing = seen["studio"]
    assert (names, computing) == (("a", "b"), Computing(engine="torch"))
    assert limits == Limits(upload_bytes=3 * 2**20, samples=2)
    assert (seen["serve"][3], seen["serve"][6]) == (["x.example"], "/studio")
    run()
    assert seen["studio"][:2] == (("street", "sketch"), Limits())  # the flags' defaults are the limits' own


def test_a_host_that_others_reach_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(engine, "Studio", lambda *given: None)
    monkeypatch.setattr(server, "serve", lambda *given: None)
    said = []
    monkeypatch.setattr("piti.cli.console.log.print", lambda text, **how: said.append(str(text)))
    run("--host", "0.0.0.0")
    assert any("no password" in line for line in said)
    said.clear()
    run()
    assert not any("password" in line for line in said)


def test_mistakes_are_told_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "serve", lambda *given: pytest.fail("was served"))
    with pytest.raises(UserError, match=r"bundled models: .*street"):
        run("--model", "strete")
    with pytest.raises(UserError, match="device nosuch"):
        run("--device", "nosuch")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Studio", lambda *given: pytest.fail("models were loaded"))
        with pytest.raises(UserError, match=r"allow_host https://a\.example: is not a host name"):
            run("--allow-host", "https://a.example")
        with pytest.raises(UserError, match="is not a valid path"):
            run("--root-path", "http://a/b")
    with server.listening("127.0.0.1", 0) as bound, pytest.raises(UserError, match="is in use"):
        run("--port", str(bound.getsockname()[1]))


@pytest.mark.parametrize("missing", ["gradio", "threadpoolctl"])
def test_without_the_extra_it_says_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"piti studio needs {missing}.*pip install 'piti\[ui\]'"):
        run()
