"""Plain words for people: what stands before the application answers as it does, and no error speaks of a terminal."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.core.errors import UserError

NOWHERE = "there is nothing at this address; /docs lists what there is"
WRONG_METHOD = "use another method; see /docs"
_OURS = "/gradio_api/"  # answers below this are for the page's own scripts
_SUBSTITUTED = {404: NOWHERE, 405: WRONG_METHOD}
_LONGEST = 64 * 1024  # bytes of an answer that is looked into
_REWORDED = (
    (re.compile(r"add the (class|colour) to classes\.json, or relabel these pixels"), "relabel these pixels"),
    (re.compile(r"add the (class|colour) to classes\.json, or "), ""),
    (re.compile(r"; give --text, or a \.txt file"), "; write what is to be seen"),
    (re.compile(r", or take the square at its centre \([^()]*--square\)"), ""),
    (re.compile(r", as --keep exact asks"), ", though the rest is to be kept exactly"),
    (re.compile(r"leave --keep exact out"), "do not ask for that"),
    (re.compile(r" \((?:[^()]*\W)?--[a-z][^()]*\)"), ""),
    (re.compile(r"(?<![\w-])--([a-z][a-z-]*)"), r"\1"),
)
"""What a command line's errors say, and what a person without one is told; in this order."""


def reworded(message: str) -> str:
    """A message without flags and files of a command line."""
    for found, instead in _REWORDED:
        message = found.sub(instead, message)
    return message


@contextlib.contextmanager
def in_plain_words() -> Iterator[None]:
    """UserErrors that pass through here speak to people who have no terminal; they stay of their kind."""
    try:
        yield
    except UserError as error:
        error.args = (reworded(str(error)),)
        raise


async def answer_in_words(send: Send, status: int, words: str, last: bool = True) -> None:
    """An error as `ErrorAnswer` has it. last: else the answer, though whole, is ended by another empty part."""
    body = _body(words)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


class InWords:
    """Gives addresses and methods that nobody knows an answer in the form that errors have (ASGI middleware).

    The page takes whatever address no route has, and would say it in a form of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OURS):
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _Substituting(send).send)


class _Substituting:
    """Holds a 404 or 405 back until it is whole, and says it in words if it is not an `ErrorAnswer` yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._seen = b""

    async def send(self, message: Message) -> None:
        """As ASGI's."""
        if message["type"] == "http.response.start" and message["status"] in _SUBSTITUTED:
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._seen += message.get("body", b"")[:_LONGEST]
        if message.get("more_body", False):
            return
        start, status = self._start, self._start["status"]
        body = self._seen if _is_error(self._seen) else _body(_SUBSTITUTED[status])
        kept = {b"allow", b"connection"} & {key for key, _ in start["headers"]}
        headers = [(key, value) for key, value in start["headers"] if key in kept]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _body(words: str) -> bytes:
    return json.dumps({"error": words, "details": []}, ensure_ascii=False).encode()


def _is_error(body: bytes) -> bool:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "error" in said
