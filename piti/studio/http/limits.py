"""Request bodies that are too large or too slow, and messages of the page that Gradio must not act on.

What the libraries offer is used where it suffices: Starlette bounds a form's fields and files (`forms`), Gradio the
size of each uploaded file. Three things stay here, each with the test that shows why:

- The size of a whole request. Starlette's `RequestBodyLimitMiddleware` counts it too, but answers in plain text and
  names no bound (`test_an_error_names_the_bound_that_was_exceeded`).
- The time that a body takes. Uvicorn has timeouts between requests only
  (`test_an_upload_that_never_ends_holds_nobody_up`).
- What a message of the page holds. Gradio parses JSON of any size and fetches files from any public address
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
"""Of a message of the page; a painting is at most 5.4 MB of them."""
_MESSAGE_PARTS = 20_000
"""Values, keys and escapes of a message of the page; parsing more would hold up every other request."""
_PARTS = (b",", b":", b"[", b"{", b"\\")
_FORMS = re.compile(r"/api/|/gradio_api/upload/?$")
"""Paths that take forms; whatever else has a body is a message of the page."""
_REMOTE = ("http://", "https://", "//", "ftp:", "file:")


class BodyLimits:
    """Bounds the size and the time of every request's body, whatever length its header states (ASGI middleware).

    Raises HTTPException, either at once or when the application reads on: 413 beyond `limits.upload_bytes`, 408 after
    `limits.upload_seconds`. A body that is no form, whatever its content type, is parsed as a message of the page:
    8 MiB at most, and 400 if it is not JSON or names files on other servers, which Gradio would fetch.

    trusted: names under which a proxy serves the page, which may call the studio by another.
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
    """The same body. It raises HTTPException after `most` bytes (413), or `seconds` from now (408)."""
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
    return HTTPException(413, f"the request is larger than the {most} bytes that are taken; send a smaller picture")


class _Own(NamedTuple):
    """The studio's own addresses."""

    host: str
    """Under which the page asks, with its port."""
    trusted: Collection[str]
    """Under any port."""


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
        return "the message has too many parts; no message of the page has"
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return "the message is no JSON; pages send that, and forms go to /api"
    return "the message names a file on another server; upload the file itself" if _names_remote(message, own) else ""


def _names_remote(message: Any, own: _Own) -> bool:
    """Whether JSON holds an object that Gradio takes for a file, and whose "path" or "url" is on another server.

    Files that the page itself uploaded have a "url" of its own.
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
    """Whether a path or an address is on a server, and none of the studio's own addresses."""
    if not named.strip().lower().startswith(_REMOTE):
        return False
    try:
        parts = urlsplit(named.strip())
        if own is None or not parts.netloc:
            return True
        return parts.netloc.lower() != own.host and parts.hostname not in own.trusted
    except ValueError:
        return True
