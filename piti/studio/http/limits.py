"""Limits for large and slow request bodies, and for messages of the page that Gradio must not process.

The libraries' limits are used where they suffice: Starlette limits a form's fields and files (`forms`), Gradio the size
of each uploaded file. Three things remain here, each with a test that shows why:

- The size of a whole request. Starlette's `RequestBodyLimitMiddleware` counts it too, but responds in plain text
  without the limit (`test_an_error_names_the_bound_that_was_exceeded`).
- The time of a body. Uvicorn has timeouts only between requests
  (`test_an_upload_that_never_ends_holds_nobody_up`).
- The contents of messages of the page. Gradio parses JSON of any size and fetches files from any public address
  (`test_messages_of_the_page_are_bounded`, `test_gradio_is_not_sent_elsewhere`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.studio.service.schema import Limits

_MESSAGE_BYTES = 8 * 2**20
"""Largest size of a message of the page in bytes; a painting has at most 5.4 MB."""
_MESSAGE_PARTS = 20_000
"""Largest number of values, keys and escapes in a message of the page; parsing more would block other requests."""
_PARTS = (b",", b":", b"[", b"{", b"\\")
_FORMS = re.compile(r"/api/|/gradio_api/upload/?$")
"""Paths that accept forms; all other bodies are messages of the page."""
_REMOTE = ("http://", "https://", "//", "ftp:", "file:")


class BodyLimits:
    """Limits the size and the time of every request's body, whatever its Content-Length (ASGI middleware).

    Raises HTTPException, either at once or when the application reads the body: 413 beyond `limits.upload_bytes`, 408
    after `limits.upload_seconds`. A body other than a form, whatever its content type, is parsed as a message of the
    page: 8 MiB at most, and 400 if it is not JSON or refers to files on other servers, which Gradio would download.

    trusted: host names of a proxy, which may use another name for the studio.
    """

    def __init__(self, app: ASGIApp, limits: Limits, trusted: Collection[str] = ()) -> None:
        self._app, self._limits, self._trusted = app, limits, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers, is_form = Headers(scope=scope), bool(_FORMS.match(get_route_path(scope)))
        most = self._limits.upload_bytes if is_form else min(self._limits.upload_bytes, _MESSAGE_BYTES)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        receive = _bounded(receive, most, self._limits.upload_seconds)
        if not is_form:
            own = _Own(headers.get("host", "").lower(), self._trusted)
            receive = await _checked_message(scope, receive, own)
        await self._app(scope, receive, send)


def _bounded(receive: Receive, most: int, seconds: float) -> Receive:
    """The body with limits: HTTPException after `most` bytes (413), or `seconds` from now (408)."""
    ends = asyncio.get_running_loop().time() + seconds
    seen, complete = 0, False

    async def bounded() -> Message:
        nonlocal seen, complete
        if complete:
            return await receive()  # when the client disconnects
        try:
            async with asyncio.timeout_at(ends):
                message = await receive()
        except TimeoutError:
            words = f"the request took longer than {seconds:g} s to arrive; send it again"
            raise HTTPException(408, words, {"Connection": "close"}) from None
        seen += len(message.get("body", b""))
        if seen > most:
            raise _too_large(most)
        complete = not message.get("more_body", False)
        return message

    return bounded


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than the {most} bytes allowed; send a smaller image")


class _Own(NamedTuple):
    """The studio's own addresses."""

    host: str
    """Host name of the page's requests, with port."""
    trusted: Collection[str]
    """Host names accepted with any port."""


async def _checked_message(scope: Scope, receive: Receive, own: _Own) -> Receive:
    """A message of the page once all of it has arrived. Raises HTTPException."""
    body = await Request(scope, receive).body()
    if problem := await asyncio.to_thread(_problem_of, body, own):
        raise HTTPException(400, problem)
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> Message:
        return next(messages, None) or await receive()

    return replayed


def _problem_of(body: bytes, own: _Own) -> str:
    """Why a message of the page is refused; empty if it is not."""
    if not body:
        return ""
    if sum(body.count(part) for part in _PARTS) > _MESSAGE_PARTS:
        return "the message has more parts than any of the page"
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return "the message is not JSON; send forms to /api"
    return "the message names a file on another server; upload the file itself" if _names_remote(message, own) else ""


def _names_remote(message: Any, own: _Own) -> bool:
    """Whether JSON contains an object that Gradio treats as a file, with "path" or "url" on another server.

    Files uploaded by the page have a "url" of the studio.
    """
    remaining = [message]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            for key in ("path", "url"):
                named = value.get(key)
                if isinstance(named, str) and "meta" in value and _is_remote(named, own if key == "url" else None):
                    return True
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value
    return False


def _is_remote(named: str, own: _Own | None) -> bool:
    """Whether a path or URL is on another server than the studio."""
    if not named.strip().lower().startswith(_REMOTE):
        return False
    try:
        parts = urlsplit(named.strip())
        if own is None or not parts.netloc:
            return True
        return parts.netloc.lower() != own.host and parts.hostname not in own.trusted
    except ValueError:
        return True
