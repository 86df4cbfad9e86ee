"""Requests to an ASGI application without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware

from piti.studio.http.api import error_answer

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


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


def asked(
    app: Any,
    parts: Iterable[bytes | None] = (),
    method: str = "POST",
    path: str = "/api/translate",
    root_path: str = "",
    **headers: str,
) -> Answer:
    """What an application answers, its HTTPExceptions as the studio's. parts: of the body; None: a long pause."""
    named = {"host": "localhost:7860"} | {key.replace("_", "-"): value for key, value in headers.items()}
    raw = [(key.encode(), value.encode()) for key, value in named.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": raw,
        "query_string": b"",
        "root_path": root_path,
    }
    handled = ExceptionMiddleware(app, {HTTPException: error_answer})
    return asyncio.run(_asked(handled, scope, list(parts)))


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
