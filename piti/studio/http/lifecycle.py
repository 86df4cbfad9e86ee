"""Connections on which nobody asks anything, closed after a while."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0
"""Seconds until a request's headers are complete."""


class Patient(H11Protocol):
    """HTTP that waits so long for a request, and no longer; bodies are `BodyLimits`' to time.

    Uvicorn waits for ever for the headers of a connection's first request, and for those that were begun.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As asyncio's."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The time runs from the first that is seen of a request until all its headers are there."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADERS, self._closed)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _closed(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Ending:
    """When `ended` is set, tells the application that its clients have gone (ASGI middleware)."""

    def __init__(self, app: ASGIApp, ended: asyncio.Event) -> None:
        self._app, self._ended = app, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def received() -> Message:
            if self._ended.is_set():
                return {"type": "http.disconnect"}
            message, ended = asyncio.ensure_future(receive()), asyncio.ensure_future(self._ended.wait())
            try:
                await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                for task in (message, ended):
                    task.cancel()

        await self._app(scope, received, send)
