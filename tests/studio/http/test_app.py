"""The studio's address and messages, its shutdown, and no outgoing connections."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from piti.studio.http.app import ServerError, address_of, build_app, checked_root, listening, warning_of
from piti.studio.http.security import Fetching
from piti.studio.service.service import Studio
from tests.conftest import ROOT
from tests.studio.tiny import file_of, ids, painted, tiny_model

# Runs the command, and tells of every other machine that it looks up or connects to.
RECORDED = """
import socket, sys
met = open(sys.argv.pop(1), "a", buffering=1)
lookup, connect = socket.getaddrinfo, socket.socket.connect
def looked_up(host, *rest, **more):
    met.write(f"{host}\\n")
    return lookup(host, *rest, **more)
def connected(self, where):
    met.write(f"{where[0] if isinstance(where, tuple) else '127.0.0.1'}\\n")
    return connect(self, where)
socket.getaddrinfo, socket.socket.connect = looked_up, connected
def noted(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.gethostbyname"):
        met.write(f"{values[1][0] if event != 'socket.gethostbyname' else values[0]}\\n")
sys.addaudithook(noted)
from piti.cli.app import main
main()
"""


def test_a_taken_port_is_told_with_what_to_do() -> None:
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address_of(bound) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ServerError, match=rf"port {port}: is in use.* on 127\.0\.0\.1; give another"):
            listening("127.0.0.1", port)
    listening("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70000, "port 70000: expected 0"),
        ("127.0.0.1", -1, "port -1"),
        ("no such host", 0, "host no such host"),
        ("192.0.2.7", 0, "port 0: cannot be used"),
    ],
)
def test_addresses_that_cannot_be_listened_on(host: str, port: int, words: str) -> None:
    with pytest.raises(ServerError, match=words):
        listening(host, port)


def test_others_may_come_in_only_with_a_warning() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.1.1"):
        assert not warning_of(host)
    for host in ("0.0.0.0", "192.168.0.7", "::"):
        assert "no password" in warning_of(host)
    with listening("0.0.0.0", 0) as bound:
        assert address_of(bound).startswith("http://127.0.0.1:")


@pytest.fixture(scope="module")
def whole(studio: Studio) -> FastAPI:
    """The application with its page."""
    return build_app(studio)


def answered(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["application/json", "application/JSON", "Application/Json", "text/plain", None])
def test_gradio_is_not_sent_elsewhere(whole: FastAPI, kind: str | None) -> None:
    file = {"path": "http://93.184.216.34:81/x.png", "meta": {"_type": "gradio.FileData"}}
    message = json.dumps({"data": [file, None], "fn_index": 1, "session_hash": "x", "event_data": None})
    headers = {} if kind is None else {"Content-Type": kind}
    answer = answered(whole, "POST", "/gradio_api/queue/join", content=message, headers=headers)
    assert (answer.status_code, "another server" in answer.json()["error"]) == (400, True)
    fine = answered(
        whole,
        "POST",
        "/gradio_api/queue/join",
        content=message.replace("http://93.184.216.34:81", "/tmp"),
        headers=headers,
    )
    assert "another server" not in fine.text  # whatever Gradio says of it


def test_gradio_fetches_nothing_whoever_asks_it(whole: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio
    import safehttpx
    from gradio import processing_utils

    monkeypatch.setattr(socket.socket, "connect", lambda self, where: pytest.fail(f"connects to {where}"))
    far = "http://93.184.216.34:81/x.png"
    block = gradio.UploadButton()
    for fetch in (block.async_move_resource_to_block_cache, processing_utils.async_ssrf_protected_get, safehttpx.get):
        with pytest.raises(Fetching, match="downloads nothing"):
            asyncio.run(fetch(far))
    with pytest.raises(Fetching, match="downloads nothing"):
        block.move_resource_to_block_cache(far)


def test_whatever_nobody_knows_beside_the_page_is_told_in_words(whole: FastAPI) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("PUT", "/healthz", 405),
        ("PATCH", "/api/models", 405),
        ("POST", "/", 405),
        ("TRACE", "/", 405),
        ("TRACE", "/nothing", 404),
        ("BREW", "/api/translate", 405),
        ("TRACE", "/healthz", 405),
        ("GET", "/gradio_api/deep_link", 403),
    ):
        answer = answered(whole, method, path)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "details"}), path
    assert answered(whole, "HEAD", "/healthz").status_code == 200
    assert set(answered(whole, "GET", "/gradio_api/nothing").json()) == {"detail"}  # as the page's scripts have it
    page = answered(whole, "GET", "/").text
    assert "<gradio-app" in page
    assert "og:image" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://x.hf.space/",
        "/proxy=https://x.hf.space/",
        "/gradio_api/file=https://example.com/a",
        "/gradio_api/file=//example.com",
        "/gradio_api/run-history/connect",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit/",
        "/gradio_api/mcp/",
        "/gradio_api/mcp/http",
        "/monitoring",
        "/monitoring/summary",
        "/monitoring/x",
    ],
)
def test_what_gradio_offers_beyond_the_page_is_closed(whole: FastAPI, path: str) -> None:
    for method in ("GET", "POST"):
        assert answered(whole, method, path).status_code in (403, 404, 405), method


@pytest.mark.parametrize("passed_on", [True, False])
def test_a_proxy_may_serve_the_studio_under_a_path(studio: Studio, passed_on: bool) -> None:
    app, prefix = build_app(studio, root_path="studio/"), "/studio" if passed_on else ""
    page = answered(app, "GET", f"{prefix}/").text
    assert '"root":"http://127.0.0.1/studio"' in page  # where the page's scripts send their requests
    scripts = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page)
    assert scripts
    for path in (*scripts, "config", "theme.css", "gradio_api/info", "docs", "healthz"):
        assert answered(app, "GET", f"{prefix}/{path}").status_code == 200, path
    docs = answered(app, "GET", f"{prefix}/docs").text
    assert "'/studio/openapi.json'" in docs
    assert '"/studio/static-offline-docs/swagger-ui-bundle.js"' in docs
    files = {"condition": ("m.png", file_of(painted(ids())))}
    made = answered(app, "POST", f"{prefix}/api/translate", data={"model": "mask", "num": "1"}, files=files)
    address = made.json()["pictures"][0]["address"]
    assert address.startswith("/studio/pictures/")
    picture = answered(app, "GET", address if passed_on else address.removeprefix("/studio"))
    assert picture.headers["content-type"] == "image/png"
    for path, status in (("nothing", 404), ("api/nothing", 404), ("api/edit", 405), ("gradio_api/deep_link", 403)):
        assert answered(app, "GET", f"{prefix}/{path}").status_code == status
    if passed_on:
        assert answered(app, "GET", "/studio").headers["location"] == "http://127.0.0.1/studio/"
        assert answered(app, "GET", "/studiox/healthz").status_code == 404


def test_paths_that_no_proxy_can_serve() -> None:
    assert [checked_root(path) for path in ("", "/", "studio", "/a/b/")] == ["", "", "/studio", "/a/b"]
    for path in ("/a b", "http://x/y", "/a?b", "/a//b"):
        with pytest.raises(ServerError, match="give one such as /studio"):
            checked_root(path)


@pytest.mark.browser
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_whole_studio_reaches_nobody_and_ends_when_told(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    tiny_model(tmp_path / "tiny")
    command = [sys.executable, "-c", RECORDED, str(tmp_path / "met"), "studio", "--model", str(tmp_path / "tiny")]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    process = subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("the studio is at http://127.0.0.1:"), line
        address = line.split()[4].rstrip("/")
        with httpx.Client(base_url=address, timeout=60) as client:
            page = client.get("/")
            assert "<gradio-app" in page.text
            assert "og:image" not in page.text
            assert "https://" not in page.text
            assert "default-src 'self'" in page.headers["content-security-policy"]
            for path in ("/config", "/theme.css", "/docs", "/gradio_api/info", "/gradio_api/startup-events"):
                assert client.get(path).status_code == 200, path
            upload = client.post("/gradio_api/upload", files={"files": ("big.png", bytes(25 * 2**20))})
            assert upload.status_code == 413
            files = {"condition": ("m.png", file_of(painted(ids())))}
            made = client.post("/api/translate", data={"model": str(tmp_path / "tiny"), "num": "1"}, files=files)
            assert made.status_code == 200
            with (
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))),  # both stay open
                client.stream("GET", "/gradio_api/heartbeat/x"),
            ):
                process.send_signal(sent)
                assert process.wait(30) == status
                assert process.stderr is not None
                assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    met = set((tmp_path / "met").read_text().split())
    assert met <= {"127.0.0.1", "localhost", "None"}
