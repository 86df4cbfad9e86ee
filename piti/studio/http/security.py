"""Access control of a studio, and restriction of its pages and Gradio to its own server.

The libraries' protections, and their gaps:

- Host names. Starlette's `TrustedHostMiddleware` supports names and `*.example.com`, but not "every numeric
  address", as for a studio on 0.0.0.0, and its response gives no remedy (`test_a_studio_answers_to_its_names_alone`).
- Origins. Starlette's `CORSMiddleware` and Gradio's prevent other sites' pages from reading a response, but not the
  request itself (`test_pages_of_other_sites_are_refused`).
- Content security policy. None sets one (`test_every_answer_has_the_security_headers`).
- Gradio's routes. `run_history`, `enable_monitoring` and `mcp_server` disable some; `_CLOSED` has those that no
  setting disables (`test_what_gradio_offers_beyond_the_page_is_closed`).
- Gradio's downloads. They refuse only private addresses, and no setting disables them
  (`test_gradio_fetches_nothing_whoever_asks_it`).
"""

from __future__ import annotations

import inspect
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piti.core.errors import UserError

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
"""What a browser may load for the studio's pages. Gradio's page uses inline scripts and styles."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_CLOSED = re.compile(
    r"/gradio_api/(proxy=|deep_link|vibe|undo-vibe|process_recording|file=(https?:|//|ftp:))|/proxy=", re.IGNORECASE
)
"""Routes of Gradio that the page does not use, and that access other servers or store visitors' data."""
_DOWNLOADS = (
    ("gradio", "async_ssrf_protected_get"),
    ("gradio", "async_ssrf_protected_download"),
    ("gradio", "ssrf_protected_download"),
    ("gradio", "save_url_to_cache"),
    ("gradio", "unsafe_download"),
    ("safehttpx", "get"),
    ("safehttpx", "async_validate_url"),
)
"""Gradio's functions for downloading files."""
_FOREIGN = (
    re.compile(r"<meta\b[^>]*\b(?:property|name)=\"(?:og|twitter):[^>]*>\s*", re.IGNORECASE),
    re.compile(r"<link rel=\"manifest\"[^>]*>\s*", re.IGNORECASE),
    re.compile(r"https://github\.com/gradio-app/[^\"\\]*/", re.IGNORECASE),
)
"""Parts of Gradio's page with addresses of Gradio's servers: metadata for other sites, and example files."""


@dataclass(frozen=True)
class Hosts:
    """The accepted host names of a studio."""

    names: frozenset[str]
    """Lower case, without a port."""
    trusted: frozenset[str] = frozenset()
    """Host names given by the user. They may be a proxy's, so pages may have another port."""
    any_address: bool = False
    """Whether all numeric addresses are accepted, since the studio listens on all of the machine's."""

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.trusted or (self.any_address and _is_address(name))


def hosts_of(host: str, more: Collection[str] = ()) -> Hosts:
    """The names of a studio that listens on `host`. more: other accepted names, with any port. Raises UserError for
    invalid names, such as an address with http://."""
    names = set(_LOOPBACK) | {host.lower().strip("[]")}
    everywhere = host in _EVERYWHERE
    if everywhere:
        names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    return Hosts(frozenset(names), frozenset(_trusted(name) for name in more), everywhere)


def _trusted(name: str) -> str:
    """A name given by the user in `Guard`'s form: lower case, without port or brackets."""
    found = _name_of(f"[{name}]" if _is_address(name) and ":" in name else name.strip())
    if not found or "*" in found:
        raise UserError(
            "is not a host name", remedy="give one such as studio.example.org", option="allow_host", value=name
        )
    return found


class Guard:
    """Refuses cross-site requests and foreign host names (ASGI middleware).

    Otherwise pages of other sites could control a studio on the same machine: by posting to it (detected by Origin), or
    by a name that resolves to 127.0.0.1 (DNS rebinding, detected by Host). Raises HTTPException: 403, and 421 for a
    host name.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return  # not used
        if scope["type"] == "http":
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name_of(host) not in self._hosts:
            words = f"'{host[:100]}' is not a host name of this studio; it can be allowed when starting the studio"
            raise HTTPException(421, words)
        if not self._is_own_page(headers, host, scope["method"]):
            raise HTTPException(403, "the request comes from a page of another site; open the studio itself")
        if _CLOSED.match(get_route_path(scope)):
            raise HTTPException(403, "this address is closed")

    def _is_own_page(self, headers: Headers, host: str, method: str) -> bool:
        """Whether a request comes from a page of this studio, or from no page at all."""
        origin = headers.get("origin")
        if origin is None:
            return method in ("GET", "HEAD") or headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        try:
            parts = urlsplit(origin)
        except ValueError:  # an unclosed bracket
            return False
        return parts.netloc.lower() == host.lower() or (parts.hostname or "") in self._hosts.trusted


class SecurityHeaders:
    """Adds headers that restrict browsers to this server (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for key, value in _HEADERS.items():
                    headers.setdefault(key, value)
            await send(message)

        await self._app(scope, receive, sent)


def clean_templates() -> None:
    """Remove other servers' addresses from Gradio's page, for the whole process."""
    from gradio.routes import templates
    from jinja2 import FunctionLoader
    from markupsafe import Markup

    environment = templates.env
    loader, as_json = environment.loader, environment.filters["toorjson"]
    if loader is None or isinstance(loader, FunctionLoader):
        return  # done before
    environment.loader = FunctionLoader(lambda name: cleaned(loader.get_source(environment, name)[0]))
    environment.filters["toorjson"] = lambda value: Markup(cleaned(as_json(value)))


def cleaned(page: str) -> str:
    """Remove matches of `_FOREIGN` from a page of Gradio, or a part of it."""
    for part in _FOREIGN:
        page = part.sub("", page)
    return page


class Fetching(UserError):
    """Gradio tried to download from another server, which the studio never does."""


def close_downloads() -> None:
    """Let Gradio's download functions raise Fetching, for the whole process.

    `BodyLimits` already refuses such messages; this is a second line of defence.
    """
    import safehttpx
    from gradio import processing_utils

    def refused(url: object, *rest: object, **more: object) -> NoReturn:
        raise Fetching(f"{str(url)[:100]}: is on another server, and the studio downloads nothing; upload the file")

    async def refused_later(url: object, *rest: object, **more: object) -> NoReturn:
        refused(url)

    for module, name in _DOWNLOADS:
        place = {"gradio": processing_utils, "safehttpx": safehttpx}[module]
        found = getattr(place, name)  # an AttributeError here means that this version of Gradio has other functions
        setattr(place, name, refused_later if inspect.iscoroutinefunction(found) else refused)


def _name_of(host: str) -> str:
    """A Host header without its port, in lower case; empty if invalid."""
    if not host or "/" in host or "@" in host:
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # an unclosed bracket
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
