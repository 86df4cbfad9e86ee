"""Bodies that are too large, too slow, or that would send the server elsewhere, stopped before anything reads them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.studio.plain import answer_in_words
from piti.studio.requests import Limits

_DRAINED_BYTES = 4  # times what is allowed: read and thrown away, so that the client gets to see the answer
_DRAINED_SECONDS = 5.0
_PAGE = "/gradio_api/"
_ADDRESSES = ("http://", "https://", "//", "ftp:", "file:")


class _Stopped(Exception):
    """The body goes no further; why."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class BodyLimits:
    """Counts every request's body as it arrives, whatever length it said that it has (ASGI middleware).

    More than `limits.upload_bytes` gets 413, more than `limits.upload_seconds` 408. Messages of the page that name
    files at addresses of other servers, which Gradio would fetch, get 400.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers, most = Headers(scope=scope), self._limits.upload_bytes
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > most:
            await _drain(receive, _DRAINED_BYTES * most)
            await answer_in_words(send, 413, _too_large(most))
            return
        body = _Body(receive, self._limits, headers.get("host", ""))
        if scope["path"].startswith(_PAGE) and "json" in headers.get("content-type", ""):
            body.whole = True
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
            if stopped.status == 413 and not body.done:
                await _drain(body.source, _DRAINED_BYTES * self._limits.upload_bytes)
            await answer_in_words(send, stopped.status, stopped.words)
            if not isinstance(error, _Stopped):
                raise


class _Body:
    """A request's body, counted and timed."""

    def __init__(self, source: Receive, limits: Limits, host: str) -> None:
        self.source, self._limits, self._host = source, limits, host
        self.whole = False
        """Whether the body is looked through as JSON before any of it is handed on."""
        self.stopped: _Stopped | None = None
        self.done = False
        """Whether all of it has arrived."""
        self._seen, self._ends = 0, time.monotonic() + limits.upload_seconds

    async def receive(self) -> Message:
        """The next part. Raises _Stopped."""
        if self.done:
            return await self.source()  # which tells that the client has gone, whenever that is
        if not self.whole:
            return await self._next()
        parts = []
        while not self.done:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
        data = b"".join(parts)
        if _names_address(data, self._host):
            self._stop(400, "the message names a file on another server; upload the file itself")
        return {"type": "http.request", "body": data, "more_body": False}

    async def _next(self) -> Message:
        left = self._ends - time.monotonic()
        try:
            message = await asyncio.wait_for(self.source(), max(left, 0.001))
        except TimeoutError:
            self._stop(408, f"the request took longer than {self._limits.upload_seconds:g} s to arrive; send it again")
        self._seen += len(message.get("body", b""))
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        if self._seen > self._limits.upload_bytes:
            self._stop(413, _too_large(self._limits.upload_bytes))
        return message

    def _stop(self, status: int, words: str) -> NoReturn:
        self.stopped = _Stopped(status, words)
        raise self.stopped


def _too_large(most: int) -> str:
    return f"the request is larger than the {most} bytes that are taken; send a smaller picture"


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


def _names_address(data: bytes, host: str) -> bool:
    """Whether JSON holds an object whose "path" or "url" leads to another server; Gradio takes such for files.

    host: under which the page asks; files that it uploaded have addresses there.
    """
    try:
        waiting = [json.loads(data)]
    except (ValueError, RecursionError):
        return False  # which Gradio will refuse
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
