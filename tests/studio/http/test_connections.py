"""Connections to the studio: endless bodies, many clients, disconnecting clients."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from piti.studio.http import lifecycle
from piti.studio.service.jobs import Job
from piti.studio.service.service import Studio
from tests.studio.http.asking import MASK, translated


def test_a_request_whose_headers_never_end_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEADER_SECONDS", 0.05)
    host, port = address.removeprefix("http://").split(":")
    for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "):
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(sent)
            assert slow.recv(100) == b""  # closed
    with socket.create_connection((host, int(port))) as twice:  # the second on the same connection too
        twice.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert twice.recv(15).startswith(b"HTTP/1.1 200")
        twice.sendall(b"GET /healthz")
        while twice.recv(1000):
            pass


def test_a_body_that_was_refused_is_not_awaited_for_ever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "REST_SECONDS", 0.2)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\nx")
        assert slow.recv(15).startswith(b"HTTP/1.1 413")
        sent = 0
        with contextlib.suppress(OSError):  # closed, though something comes all the time
            while sent < 200:
                sent += slow.send(b"x")
                time.sleep(0.02)
        assert sent < 200


def test_whoever_sends_a_large_body_sees_that_it_is_too_large(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sender:  # reads nothing before all is sent, as many clients do
        sender.sendall(b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n")
        sender.sendall(bytes(20_000_000))
        assert sender.recv(15).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_amid_its_upload_is_no_error(
    address: str, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(
            b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 5000\r\n\r\n--x\r\n"
        )
        assert client.get("/healthz").status_code == 200  # so that the server has begun with the other
    time.sleep(0.1)
    assert client.get("/healthz").status_code == 200
    assert not caplog.records


def test_a_chunked_body_is_counted(client: httpx.Client) -> None:
    def parts():  # type: ignore[no-untyped-def]
        yield b'--x\r\nContent-Disposition: form-data; name="condition"; filename="m.png"\r\n\r\n'
        for _ in range(60):
            yield b"x" * 10_000

    answer = client.post("/api/translate", content=parts(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


# Crowds


class Held:
    """Holds the worker until it is let go."""

    def __init__(self, studio: Studio) -> None:
        self.go = threading.Event()
        self.job: Job[None] = studio.queue.submit(self._wait)

    def _wait(self, job: Job[None]) -> None:
        while not self.go.wait(0.002):
            job.check()


def waiting(studio: Studio, count: int) -> None:
    """Until so many jobs wait or run."""
    while len(studio.queue) != count:
        time.sleep(0.002)


def test_twenty_at_once_are_answered_in_their_order(client: httpx.Client, studio: Studio) -> None:
    held, done, before = Held(studio), [], len(studio._store)

    def one(k: int) -> int:
        answer = translated(client, num=1, seed=k, steps=2)
        done.append(answer.json()["seed"])
        return answer.status_code

    with ThreadPoolExecutor(20) as pool:
        answers = []
        for k in range(20):
            answers.append(pool.submit(one, k))
            waiting(studio, k + 2)
        held.go.set()
        assert [answer.result() for answer in answers] == [200] * 20
    # Answers are sent at once, but two may overtake each other on the way to their threads.
    assert all(abs(k - place) <= 2 for place, k in enumerate(done))
    assert len(studio._store) - before == 20
    waiting(studio, 0)


def test_a_full_queue_says_when_to_come_again(client: httpx.Client, studio: Studio) -> None:
    first = Held(studio)
    while first.job.snapshot().state.value != "running":
        time.sleep(0.002)
    held = [first, *(Held(studio) for _ in range(studio.limits.waiting))]
    answer = translated(client)
    for one in held:
        one.go.set()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert "24 jobs are already waiting" in answer.json()["error"]
    waiting(studio, 0)


# Clients that leave


def left(address: str, fields: dict[str, str]) -> socket.socket:
    """A connection on which a whole translation was asked for."""
    request = httpx.Request("POST", f"{address}/api/translate", data=fields, files={"condition": ("m.png", MASK)})
    body = request.read()
    head = "".join(f"{key}: {value}\r\n" for key, value in request.headers.items())
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"POST /api/translate HTTP/1.1\r\n{head}\r\n".encode() + body)
    return connection


def test_a_client_that_leaves_while_it_waits_gives_its_place_up(address: str, studio: Studio) -> None:
    held = Held(studio)
    connection = left(address, {"model": "mask"})
    waiting(studio, 2)
    connection.close()
    waiting(studio, 1)
    assert held.job.snapshot().state.value == "running"
    held.go.set()


def test_a_client_that_leaves_stops_its_job(address: str, studio: Studio) -> None:
    waiting(studio, 0)
    before = len(studio._store)
    connection = left(address, {"model": "mask", "num": "4", "steps": "500", "sampler": "ddpm"})
    waiting(studio, 1)
    job = studio.queue._running
    while job is None or job.snapshot().done < 2:
        time.sleep(0.002)
        job = studio.queue._running
    connection.close()
    waiting(studio, 0)
    assert job.snapshot().state.value == "cancelled"
    assert job.snapshot().done < 500
    assert len(studio._store) == before


def test_an_upload_that_never_ends_holds_nobody_up(address: str, client: httpx.Client, studio: Studio) -> None:
    host, port = address.removeprefix("http://").split(":")
    slow = socket.create_connection((host, int(port)))
    slow.sendall(
        b"POST /api/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 5000\r\n\r\n--x\r\n"
    )
    assert translated(client, num=1).status_code == 200
    answer = b"".join(iter(lambda: slow.recv(4096), b""))  # until the studio closes the connection
    slow.close()
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"longer than 1 s to arrive" in answer
