"""Who may speak to a studio, and what its pages and Gradio may load: nothing of other servers."""

from __future__ import annotations

import inspect
import ipaddress
import re
import socket
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.core.errors import UserError
from piti.studio.http.errors import answer_in_words

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
"""What a browser may load for the studio's pages. Gradio's page is made by scripts and styles within it."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_CLOSED = re.compile(
    r"/gradio_api/(proxy=|run-history|runs|deep_link|vibe|undo-vibe|mcp|process_recording|file=(https?:|//|ftp:))"
    r"|/(monitoring|proxy=)",
    re.IGNORECASE,
)
"""What Gradio offers that this page does not use, and that would reach other servers or tell of other visitors."""
_FETCHERS = (
    ("gradio", "async_ssrf_protected_get"),
    ("gradio", "async_ssrf_protected_download"),
    ("gradio", "ssrf_protected_download"),
    ("gradio", "save_url_to_cache"),
    ("gradio", "unsafe_download"),
    ("safehttpx", "get"),
    ("safehttpx", "async_validate_url"),
)
"""Where Gradio fetches files that a visitor's message names."""
_META = re.compile(rb"<meta\b[^>]*\b(?:property|name)=\"(?:og|twitter):[^>]*>\s*", re.IGNORECASE)
_EXAMPLE = re.compile(rb"https://github\.com/gradio-app/[^\"\\]*/", re.IGNORECASE)
_MANIFEST = re.compile(rb"<link rel=\"manifest\"[^>]*>\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Hosts:
    """The names under which a studio answers."""

    names: frozenset[str]
    """Lower case, without a port."""
    trusted: frozenset[str] = frozenset()
    """Those that a person named: a proxy may stand before them, so their pages may have another port."""
    any_address: bool = False
    """Whether every numeric address is one of them, as where a studio listens on all of a machine's."""

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.trusted or (self.any_address and _is_address(name))


def hosts_of(host: str, more: Collection[str] = ()) -> Hosts:
    """The names of a studio that listens on `host`. more: others that it may be called by."""
    names = set(_LOOPBACK) | {host.lower().strip("[]")}
    everywhere = host in _EVERYWHERE
    if everywhere:
        names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    return Hosts(frozenset(names), frozenset(name.lower() for name in more), everywhere)


class Guard:
    """Refuses requests that other pages make a browser send, or that come under a foreign name (ASGI middleware).

    A page elsewhere could otherwise drive a studio on the same machine: by posting to it (its Origin tells), or by a
    name of its own that leads to 127.0.0.1 (DNS rebinding; the Host header tells). 403, and 421 for a name.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return  # none are used
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        problem = (403, "this address is closed") if _CLOSED.match(scope["path"]) else None
        if _name_of(host) not in self._hosts:
            problem = (421, f"'{host[:100]}' is no name of this studio; start it with --allow-host to answer to it")
        elif not self._own_page(headers, host, scope["method"]):
            problem = (403, "the request comes from a page of another site; open the studio itself")
        if problem is not None:
            await answer_in_words(send, *problem)
            return
        await self._app(scope, receive, send)

    def _own_page(self, headers: Headers, host: str, method: str) -> bool:
        """Whether a request comes from a page of this studio, or from no page at all."""
        origin = headers.get("origin")
        if origin is None:
            return method in ("GET", "HEAD") or headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as of a bracket that does not close
            return False
        return parts.netloc.lower() == host.lower() or (parts.hostname or "") in self._hosts.trusted


class Sealed:
    """Headers that keep a browser to this server, and a page without addresses of others (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page = scope["path"] in ("/", "") and scope["method"] == "GET"
        if page:  # its text is changed, so it is not to be compressed before
            kept = [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, _Page(send).send if page else _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            _add_headers(message)
        await send(message)

    return sent


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    for key, value in _HEADERS.items():
        headers.setdefault(key, value)


class _Page:
    """Holds an HTML answer back until it is whole, and takes out what names other servers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        """As ASGI's."""
        if message["type"] == "http.response.start":
            _add_headers(message)
            if "text/html" in Headers(raw=message["headers"]).get("content-type", ""):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = cleaned(b"".join(self._parts))
        MutableHeaders(scope=self._start)["content-length"] = str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


class Fetching(UserError):
    """Something was to be fetched from another server. The studio never does."""


def shut_downloads() -> None:
    """From now on nothing that Gradio has for fetching files fetches any, in this whole process: it raises Fetching.

    `BodyLimits` refuses messages that ask for it; this holds where one should get past.
    """
    import safehttpx
    from gradio import processing_utils

    def refused(url: object, *rest: object, **more: object) -> NoReturn:
        raise Fetching(f"{str(url)[:100]}: is on another server, and the studio fetches nothing; upload the file")

    async def refused_later(url: object, *rest: object, **more: object) -> NoReturn:
        refused(url)

    for module, name in _FETCHERS:
        place = {"gradio": processing_utils, "safehttpx": safehttpx}[module]
        found = getattr(place, name)  # an AttributeError here tells that this Gradio has another way
        setattr(place, name, refused_later if inspect.iscoroutinefunction(found) else refused)


def cleaned(page: bytes) -> bytes:
    """Gradio's page without descriptions for other sites, which name servers of theirs."""
    return _EXAMPLE.sub(b"", _MANIFEST.sub(b"", _META.sub(b"", page)))


def _name_of(host: str) -> str:
    """A Host header without its port, lower case; nothing where it is none."""
    if not host or "/" in host or "@" in host:
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # such as of a bracket that does not close
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
