"""Bodies that are too large or too slow, and page messages that would make the server fetch addresses."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from piti.studio.http.limits import BodyLimits
from piti.studio.service.schema import Limits
from tests.studio.http.asgi import asked, echo

LIMITS = Limits(upload_bytes=1000, upload_seconds=1)


def test_bodies_are_counted_as_they_arrive() -> None:
    limited = BodyLimits(echo, LIMITS)
    assert asked(limited, [b"x" * 500, b"x" * 500])[::2] == (200, b"1000")
    for parts, headers in (([b"x" * 600, b"x" * 600], {}), ([b"x" * 10], {"content_length": "1001"})):
        status, _, body = asked(limited, parts, **headers)
        assert status == 413
        assert json.loads(body)["error"].startswith("the request is larger than the 1000 bytes")


@pytest.mark.parametrize("path", ["/api/edit", "/gradio_api/queue/join"])
def test_a_body_that_never_ends_is_given_up(path: str) -> None:
    limited = BodyLimits(echo, Limits(upload_seconds=1, upload_bytes=1000))
    limited._limits.__dict__["upload_seconds"] = 0.05
    status, _, body = asked(limited, [b"x" * 10, None, b"x"], path=path)
    assert status == 408
    assert "longer than 0.05 s to arrive" in json.loads(body)["error"]


def test_messages_of_the_page_that_name_other_servers_are_refused() -> None:
    limited, path = BodyLimits(echo, LIMITS), "/gradio_api/queue/join"
    file = {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
    for data in (
        {"data": [file]},
        {"data": [[{"deep": file | {"path": " HTTP://x"}}]]},
        {"data": [file | {"url": "//x"}]},
        {"data": [file | {"path": "/tmp/a.png", "url": "http://studio.example/x.png"}]},
        {"data": [file | {"path": "/tmp/a.png", "url": "http://[/x.png"}]},
    ):
        status, _, body = asked(limited, [json.dumps(data).encode()], path=path, content_type="application/json")
        assert status == 400, data
        assert b"another server" in body
    own = {"path": "/tmp/a.png", "url": "http://localhost:7860/gradio_api/file=/tmp/a.png", "meta": {}}
    fine = json.dumps({"data": [own, "https://example.com", {"url": None}]}).encode()
    sent = asked(limited, [fine[:20], fine[20:]], path=path, content_type="application/json")
    assert sent[::2] == (200, str(len(fine)).encode())
    assert asked(limited, [], path=path)[::2] == (200, b"0")


def test_a_proxy_that_asks_under_another_name_may_hand_on_what_was_uploaded() -> None:
    """As Apache does, whose X-Forwarded-Host Gradio takes for the addresses of files: no upload was ever read."""
    limited, path = BodyLimits(echo, LIMITS, frozenset({"studio.example"})), "/gradio_api/queue/join"
    named = {"path": "/tmp/a.png", "meta": {}}
    for url, status in (
        ("https://studio.example/gradio_api/file=/tmp/a.png", 200),
        ("https://Studio.example:8443/gradio_api/file=/tmp/a.png", 200),
        ("https://studio.example.org/gradio_api/file=/tmp/a.png", 400),
        ("https://studio.example@evil.example/a.png", 400),
        ("file:///tmp/a.png", 400),
    ):
        assert asked(limited, [json.dumps({"data": [named | {"url": url}]}).encode()], path=path)[0] == status, url
    there = named | {"path": "https://studio.example/a.png"}
    assert asked(limited, [json.dumps({"data": [there]}).encode()], path=path)[0] == 400


FAR = json.dumps({"data": [{"path": "http://93.184.216.34:81/x.png", "meta": {"_type": "gradio.FileData"}}]}).encode()


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/JSON",
        " Application/Json;x=y",
        "application/x+json",
        "text/plain",
        "",
        None,
        "multipart/form-data; boundary=x",
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/x", "/gradio_api/component_server", "/x"])
def test_no_name_of_its_type_gets_a_message_past(kind: str | None, path: str) -> None:
    headers = {} if kind is None else {"content_type": kind}
    for body in (FAR, FAR.decode().encode("utf-16"), b" " + FAR):
        assert asked(BodyLimits(echo, LIMITS), [body], path=path, **headers)[0] == 400
    for path in ("/gradio_api/upload", "/api/edit"):  # a file, whatever it holds
        assert asked(BodyLimits(echo, LIMITS), [FAR], path=path, **headers)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"not json", 400, "not JSON"),
        (b"[" * 19_000, 400, "not JSON"),
        (b"[" + b"{}," * 50_000 + b"{}]", 400, "more parts than"),
        (b'"' + rb"\u0041" * 50_000 + b'"', 400, "more parts than"),
        (b'"' + bytes(9 * 2**20) + b'"', 413, "larger than the 8388608 bytes"),
        (b'{"data": "' + b"A" * 6 * 2**20 + b'"}', 200, ""),
    ],
)
def test_messages_of_the_page_are_bounded(body: bytes, status: int, words: str) -> None:
    limited = BodyLimits(echo, Limits())
    for headers in ({}, {"content_length": str(len(body))}):
        found, _, answer = asked(limited, [body[:1000], body[1000:]], path="/gradio_api/queue/join", **headers)
        assert found == status
        assert words.encode() in answer


@pytest.mark.parametrize(
    "headers", [{"content_length": "1001"}, {"content_length": "9" * 20, "expect": "100-continue"}]
)
def test_a_body_that_is_too_large_is_refused_before_it_is_read(headers: dict[str, str]) -> None:
    async def unread(scope: dict, receive: Callable, send: Callable) -> None:
        pytest.fail("was asked")

    assert asked(BodyLimits(unread, LIMITS), [None], path="/api/edit", **headers)[0] == 413


def test_an_error_names_the_bound_that_was_exceeded() -> None:
    for headers in ({}, {"content_length": "1001"}):
        ours = asked(BodyLimits(echo, LIMITS), [b"x" * 600, b"x" * 401], **headers)
        theirs = asked(RequestBodyLimitMiddleware(echo, 1000), [b"x" * 600, b"x" * 401], **headers)
        assert ours[0] == theirs[0] == 413
        assert json.loads(ours[2])["error"].startswith("the request is larger than the 1000 bytes")
        assert b"1000" not in theirs[2]  # else Starlette's middleware would do


def test_an_error_of_the_application_stays_its_own() -> None:
    async def broken(scope: dict, receive: Callable, send: Callable) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        asked(BodyLimits(broken, LIMITS))


def test_limits_hold_below_the_path_of_a_proxy() -> None:
    for path in ("/gradio_api/queue/join", "/studio/gradio_api/queue/join"):
        assert asked(BodyLimits(echo, LIMITS), [FAR], path=path, root_path="/studio")[0] == 400
    for path in ("/api/edit", "/studio/api/edit"):
        assert asked(BodyLimits(echo, LIMITS), [FAR], path=path, root_path="/studio")[0] == 200
