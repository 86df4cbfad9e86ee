"""Bodies that are too large, too slow, or that would send the server elsewhere, stopped before anything reads them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.studio.http.errors import answer_in_words
from piti.studio.service.schema import Limits

_DRAINED_BYTES = 4  # times what is allowed: read and thrown away, so that the client gets to see the answer
_DRAINED_SECONDS = 5.0
_PAGE_BYTES = 8 * 2**20
"""Of a message of the page; a painting is at most 5.4 MB of them."""
_PAGE_PARTS = 20_000
"""Of a message of the page: values, keys and escapes. More would hold everybody up while they are taken apart."""
_PARTS = (b",", b":", b"[", b"{", b"\\")
_FORMS = re.compile(r"/api/|/gradio_api/upload/?$")
"""Where forms are sent, which no one takes for messages of the page."""
_ADDRESSES = ("http://", "https://", "//", "ftp:", "file:")


class _Stopped(Exception):
    """The body goes no further; why."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class BodyLimits:
    """Counts every request's body as it arrives, whatever length it said that it has (ASGI middleware).

    More than `limits.upload_bytes` gets 413, more than `limits.upload_seconds` 408. Whatever type it says that it has,
    every body that is no form is looked through as a message of the page: it may be smaller, and gets 400 where it is
    no JSON or names files at addresses of other servers, which Gradio would fetch.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers, most, message = Headers(scope=scope), self._limits.upload_bytes, not _FORMS.match(scope["path"])
        most = min(most, _PAGE_BYTES) if message else most
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            await _refuse(send, receive, 413, _too_large(most), _DRAINED_BYTES * most)
            return
        body = _Body(receive, most, self._limits.upload_seconds, headers.get("host", "") if message else None)
        await self._guarded(scope, body, send)

    async def _guarded(self, scope: Scope, body: _Body, send: Send) -> None:
        """Run the application; whatever it says of a body that was stopped, the answer tells why."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            if body.stopped is not None and not begun:
                raise body.stopped
            begun = True
            await send(message)

        try:
            await self._app(scope, body.receive, sent)
        except Exception as error:
            stopped = body.stopped
            if stopped is None or begun:
                raise
            rest = _DRAINED_BYTES * body.most if stopped.status == 413 and not body.done else 0
            await _refuse(send, body.source, stopped.status, stopped.words, rest)
            if not isinstance(error, _Stopped):
                raise


class _Body:
    """A request's body, counted and timed."""

    def __init__(self, source: Receive, most: int, seconds: float, host: str | None) -> None:
        """most: bytes; seconds: until all of it is here. host: of the page whose message it is; None: it is a form."""
        self.source, self.most = source, most
        self._host, self._seconds = host, seconds
        self.stopped: _Stopped | None = None
        self.done = False
        """Whether all of it has arrived."""
        self._seen, self._ends = 0, time.monotonic() + seconds

    async def receive(self) -> Message:
        """The next part. Raises _Stopped."""
        if self.done:
            return await self.source()  # which tells that the client has gone, whenever that is
        if self._host is None:
            return await self._next()
        parts = []
        while not self.done:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
        data = b"".join(parts)
        problem = await asyncio.to_thread(_problem_of, data, self._host)
        if problem:
            self._stop(400, problem)
        return {"type": "http.request", "body": data, "more_body": False}

    async def _next(self) -> Message:
        left = self._ends - time.monotonic()
        try:
            message = await asyncio.wait_for(self.source(), max(left, 0.001))
        except TimeoutError:
            self._stop(408, f"the request took longer than {self._seconds:g} s to arrive; send it again")
        self._seen += len(message.get("body", b""))
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        if self._seen > self.most:
            self._stop(413, _too_large(self.most))
        return message

    def _stop(self, status: int, words: str) -> NoReturn:
        self.stopped = _Stopped(status, words)
        raise self.stopped


def _too_large(most: int) -> str:
    return f"the request is larger than the {most} bytes that are taken; send a smaller picture"


async def _refuse(send: Send, receive: Receive, status: int, words: str, rest: int) -> None:
    """Answer at once, then take what the client still sends, up to so many bytes.

    A connection that is closed with a body under way would take the answer with it.
    """
    await answer_in_words(send, status, words, last=rest == 0)
    if rest:
        await _drain(receive, rest)
        await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive, most: int) -> None:
    """Read what is left of a body and throw it away, up to a bound."""
    ends, seen = time.monotonic() + _DRAINED_SECONDS, 0
    while seen <= most and (left := ends - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        seen += len(message.get("body", b""))


def _problem_of(data: bytes, host: str) -> str:
    """Why a message of the page goes no further; nothing where it may. host: under which the page asks."""
    if not data:
        return ""
    if sum(data.count(part) for part in _PARTS) > _PAGE_PARTS:
        return "the message has too many parts; no message of the page has"
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return "the message is no JSON; pages send that, and forms go to /api"
    return "the message names a file on another server; upload the file itself" if _names_address(message, host) else ""


def _names_address(message: Any, host: str) -> bool:
    """Whether JSON holds an object whose "path" or "url" leads to another server; Gradio takes such for files.

    host: under which the page asks; files that it uploaded have addresses there.
    """
    waiting = [message]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key in ("path", "url"):
                named = value.get(key)
                if isinstance(named, str) and "meta" in value and _leads_away(named, host if key == "url" else ""):
                    return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _leads_away(named: str, host: str) -> bool:
    """Whether a path or an address is that of another server than `host`."""
    if not named.strip().lower().startswith(_ADDRESSES):
        return False
    try:
        return not host or urlsplit(named.strip()).netloc.lower() != host.lower()
    except ValueError:
        return True
