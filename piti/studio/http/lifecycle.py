"""Lifecycle of connections: incomplete requests, and shutdown with open streams.

Uvicorn offers `timeout_keep_alive` between requests, `h11_max_incomplete_event_size` for the size of headers,
`limit_concurrency` and `timeout_graceful_shutdown`; all are used (`app.serve`, h11's 16 KiB of headers by default). It
has no timeout for the headers of a request (`test_a_request_whose_headers_never_end_is_given_up`), nor for the rest of
a body that was responded to before its end (`test_a_body_that_was_refused_is_not_awaited_for_ever`); and it reports
each event stream that a shutdown ends as an error, with a traceback
(`test_the_whole_studio_reaches_nobody_and_ends_when_told`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""Until a request's headers are complete."""
REST_SECONDS = 5.0
"""For the rest of a body after the response; many clients read no response before everything is sent."""


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections with incomplete requests. Bodies are timed by `BodyLimits`."""

    _timer: asyncio.TimerHandle | None = None
    _awaited: float | None = None

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._close_after(None)
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._close_after(HEADER_SECONDS)
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._close_after(REST_SECONDS)
        else:
            self._close_after(None)

    def _close_after(self, seconds: float | None) -> None:
        """Close the connection after so many seconds, counted from the first of consecutive calls."""
        if seconds == self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited = seconds
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)


class Server(uvicorn.Server):
    """A server that reports when it is ready, and shuts down quietly.

    ready: called when it is ready. ending: called from the signal handler when it should shut down.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready, self._ending = ready, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by uvicorn."""
        self._ending()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn. Event streams of open pages are cancelled, which is not reported."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
