"""What stands before the application: bodies that are too large or slow, foreign names and pages, headers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from piti.studio.http.errors import NOWHERE, WRONG_METHOD, InWords, in_plain_words, reworded
from piti.studio.http.limits import BodyLimits
from piti.studio.http.security import Guard, Sealed, cleaned, hosts_of
from piti.studio.service.schema import LimitError, Limits

LIMITS = Limits(upload_bytes=1000, upload_seconds=1)
Answer = tuple[int, dict[str, str], bytes]


async def echo(scope: dict, receive: Callable, send: Callable) -> None:
    """Answers with the body's length."""
    seen = 0
    while True:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(seen).encode()})


async def swallowing(scope: dict, receive: Callable, send: Callable) -> None:
    """Takes a body that breaks for a mistake of its own."""
    try:
        await echo(scope, receive, send)
    except Exception:  # noqa: BLE001
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"cannot parse"})


def asked(
    app: Any,
    parts: Iterable[bytes | None] = (),
    method: str = "POST",
    path: str = "/api/translate",
    **headers: str,
) -> Answer:
    """What an application answers. parts: of the body; None: nothing comes for a long time."""
    named = {"host": "localhost:7860"} | {key.replace("_", "-"): value for key, value in headers.items()}
    raw = [(key.encode(), value.encode()) for key, value in named.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    return asyncio.run(_asked(app, scope, list(parts)))


async def _asked(app: Callable[..., Awaitable[None]], scope: dict, parts: list[bytes | None]) -> Answer:
    sent: list[dict] = []

    async def receive() -> dict:
        part = parts.pop(0) if parts else b""
        if part is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message["type"] for message in sent[:2]] == ["http.response.start", "http.response.body"]
    headers = {key.decode().lower(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


# Bodies


@pytest.mark.parametrize("app", [echo, swallowing])
def test_bodies_are_counted_as_they_arrive(app: Any) -> None:
    limited = BodyLimits(app, LIMITS)
    assert asked(limited, [b"x" * 500, b"x" * 500])[::2] == (200, b"1000")
    for parts, headers in (([b"x" * 600, b"x" * 600], {}), ([b"x" * 10], {"content_length": "1001"})):
        status, _, body = asked(limited, parts, **headers)
        assert status == 413
        assert json.loads(body)["error"].startswith("the request is larger than the 1000 bytes")


@pytest.mark.parametrize("app", [echo, swallowing])
def test_a_body_that_never_ends_is_given_up(app: Any) -> None:
    limited = BodyLimits(app, Limits(upload_seconds=1, upload_bytes=1000))
    limited._limits.__dict__["upload_seconds"] = 0.05
    status, _, body = asked(limited, [b"x" * 10, None, b"x"])
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
        (b"not json", 400, "no JSON"),
        (b"[" * 19_000, 400, "no JSON"),
        (b"[" + b"{}," * 50_000 + b"{}]", 400, "too many parts"),
        (b'"' + rb"\u0041" * 50_000 + b'"', 400, "too many parts"),
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
    order: list[str] = []

    async def run() -> None:
        async def receive() -> dict:
            order.append("read")
            return {"type": "http.request", "body": b"x" * 500, "more_body": len(order) < 6}

        async def send(message: dict) -> None:
            order.append(f"{message['type']} {message.get('more_body', '')}".strip())

        raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/api/edit", "headers": raw}
        await BodyLimits(echo, LIMITS)(scope, receive, send)

    asyncio.run(run())
    assert order[:3] == ["http.response.start", "http.response.body True", "read"]
    assert order[-2:] == ["read", "http.response.body"]


def test_an_error_of_the_application_stays_its_own() -> None:
    async def broken(scope: dict, receive: Callable, send: Callable) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        asked(BodyLimits(broken, LIMITS))


# Names and pages


@pytest.mark.parametrize(
    ("host", "more", "name", "status"),
    [
        ("127.0.0.1", (), "localhost:7860", 200),
        ("127.0.0.1", (), "LOCALHOST", 200),
        ("127.0.0.1", (), "127.0.0.1:9000", 200),
        ("127.0.0.1", (), "[::1]:7860", 200),
        ("127.0.0.1", (), "evil.example", 421),
        ("127.0.0.1", (), "localhost.evil.example:7860", 421),
        ("127.0.0.1", (), "192.168.0.7:7860", 421),
        ("127.0.0.1", (), "evil@localhost", 421),
        ("127.0.0.1", (), "", 421),
        ("127.0.0.1", (), "[::1", 421),
        ("0.0.0.0", (), "[", 421),
        ("127.0.0.1", (), "[nonsense]:80", 421),
        ("127.0.0.1", ("Studio.example",), "studio.example", 200),
        ("0.0.0.0", (), "192.168.0.7:7860", 200),
        ("0.0.0.0", (), "[fe80::1]:7860", 200),
        ("0.0.0.0", (), "evil.example", 421),
        ("192.168.0.7", (), "192.168.0.7:7860", 200),
        ("192.168.0.7", (), "192.168.0.8:7860", 421),
    ],
)
def test_a_studio_answers_to_its_names_alone(host: str, more: tuple[str, ...], name: str, status: int) -> None:
    for method in ("GET", "POST"):
        assert asked(Guard(echo, hosts_of(host, more)), method=method, host=name)[0] == status


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 200),
        ("POST", {"origin": "http://localhost:7860"}, 200),
        ("POST", {"origin": "https://studio.example"}, 200),
        ("POST", {"origin": "http://localhost:3000"}, 403),
        ("POST", {"origin": "http://evil.example"}, 403),
        ("GET", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://[::1"}, 403),
        ("GET", {"origin": "http://[nonsense]"}, 403),
        ("POST", {"origin": ""}, 403),
        ("POST", {"sec_fetch_site": "cross-site"}, 403),
        ("POST", {"sec_fetch_site": "same-site"}, 403),
        ("POST", {"sec_fetch_site": "same-origin"}, 200),
        ("GET", {"sec_fetch_site": "cross-site"}, 200),  # a link
        ("OPTIONS", {"origin": "http://evil.example"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(method: str, headers: dict[str, str], status: int) -> None:
    guard = Guard(echo, hosts_of("127.0.0.1", ["studio.example"]))
    assert asked(guard, method=method, **headers)[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/file=https://example.com/a",
        "/gradio_api/file=//example.com",
        "/gradio_api/run-history/connect",
        "/gradio_api/deep_link",
        "/monitoring",
    ],
)
def test_what_gradio_offers_beyond_the_page_is_closed(path: str) -> None:
    assert asked(Guard(echo, hosts_of("127.0.0.1")), method="GET", path=path)[0] == 403
    assert asked(Guard(echo, hosts_of("127.0.0.1")), method="GET", path="/gradio_api/file=/tmp/a.png")[0] == 200


async def foreign(scope: dict, receive: Callable, send: Callable) -> None:
    """Refuses as its path says, in a form of its own, in parts."""
    status, body = scope["path"][-3:], b'{"error": "ours"}' if "ours" in scope["path"] else b'{"detail":"Not Found"}'
    headers = [(b"content-length", str(len(body)).encode()), (b"allow", b"GET")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


def test_addresses_and_methods_that_nobody_knows_are_told_in_words() -> None:
    for path, words in (("/404", NOWHERE), ("/405", WRONG_METHOD), ("/ours404", "ours")):
        status, headers, body = asked(InWords(foreign), path=path)
        assert (status, json.loads(body)["error"]) == (int(path[-3:]), words)
        assert (headers["content-length"], headers["allow"]) == (str(len(body)), "GET")
    for path in ("/gradio_api/404", "/403"):
        assert asked(InWords(foreign), path=path)[2] == b'{"detail":"Not Found"}'


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("size 5 (--size): this model was", "size 5: this model was"),
        ("64 px, its base alone (because of --base-only, or because it has none); give", "64 px, its base alone; give"),
        ("a, b (--upsampler-sampler, --upsampler-steps): no", "a, b: no"),
        ("cut it into pieces, or take the square at its centre (square=True, --square)", "cut it into pieces"),
        (
            "id 77; add the class to classes.json, or relabel these pixels (or so)",
            "id 77; relabel these pixels (or so)",
        ),
        ("add the colour to classes.json, or save the mask as PNG", "save the mask as PNG"),
        ("this model reads text; give --text, or a .txt file", "this model reads text; write what is to be seen"),
        (
            "give another one to show, or a region (--region) to repaint",
            "give another one to show, or a region to repaint",
        ),
        ("choose another --model, or", "choose another model, or"),
        ("my--photo.png: is damaged (at 5); copy it", "my--photo.png: is damaged (at 5); copy it"),
    ],
)
def test_no_flag_is_told_to_people_without_a_terminal(said: str, told: str) -> None:
    assert reworded(said) == told
    with pytest.raises(LimitError) as caught, in_plain_words():
        raise LimitError(said)
    assert str(caught.value) == told


def test_every_answer_is_sealed_and_the_page_names_no_other_server() -> None:
    async def page(scope: dict, receive: Callable, send: Callable) -> None:
        assert not [1 for key, _ in scope["headers"] if key == b"accept-encoding"]
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"999")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        html = b'<head>\n<meta property="og:image"\n content="https://raw.example/x" />\n<meta charset="utf-8" />'
        await send({"type": "http.response.body", "body": html[:30], "more_body": True})
        await send({"type": "http.response.body", "body": html[30:]})

    status, headers, body = asked(Sealed(page), method="GET", path="/", accept_encoding="br")
    assert (status, body) == (200, b'<head>\n<meta charset="utf-8" />')
    assert headers["content-length"] == str(len(body))
    for answered in (headers, asked(Sealed(echo))[1], asked(Sealed(echo), method="GET", path="/")[1]):
        assert "default-src 'self'" in answered["content-security-policy"]
        assert "http" not in answered["content-security-policy"]
        assert answered["x-content-type-options"] == "nosniff"
        assert answered["referrer-policy"] == "no-referrer"


def test_gradios_own_template_is_cleaned() -> None:
    found = importlib.util.find_spec("gradio")
    assert found is not None
    assert found.origin is not None
    template = Path(found.origin).parent / "templates/frontend/index.html"
    page = cleaned(template.read_bytes())
    assert b"http" not in page.replace(b"http://www.w3.org", b"")
    assert b"<gradio-app" in page
