"""The studio's server: the application with routes and page, and its address."""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from piti import __version__
from piti.core.errors import Message, UserError, option

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from piti.studio.service.service import Studio

_CONNECTIONS = 256  # concurrent; more get status 503
_IDLE_SECONDS = 5  # between the requests of a connection
_SHUTDOWN_SECONDS = 1  # for pending responses at shutdown
_TAKEN = (errno.EADDRINUSE,)
_ABOUT = """Generates images from masks, sketches and texts, and edits photographs, with the same functions as the page.
Nothing leaves this machine. Errors are `{"error": "…", "details": []}`, in words."""


class ServerError(UserError):
    """The studio cannot listen at the given address, or be served under the given path."""


def need_ui() -> None:
    """Raises UserError if the extra `ui` is not installed."""
    try:
        import fastapi  # noqa: F401
        import fastapi_offline  # noqa: F401
        import gradio  # noqa: F401
        import threadpoolctl  # noqa: F401
    except ImportError as error:
        raise UserError(f"piti studio needs {error.name}, which is not installed: pip install 'piti[ui]'") from None


def build_app(
    studio: Studio,
    host: str = "127.0.0.1",
    allow_hosts: Collection[str] = (),
    page: bool = True,
    root_path: str = "",
) -> FastAPI:
    """Routes and page of a studio.

    host: the address to listen on. allow_hosts: other accepted host names. root_path: the path under which a proxy
    serves it, such as "/studio"; whether the proxy passes that path on or strips it makes no difference. Raises
    UserError for invalid names and paths.
    """
    from fastapi.exceptions import RequestValidationError
    from fastapi_offline import FastAPIOffline
    from starlette.exceptions import HTTPException
    from starlette.middleware.exceptions import ExceptionMiddleware
    from starlette.requests import ClientDisconnect

    from piti.studio.http.api import add_api, error_answer
    from piti.studio.http.limits import BodyLimits
    from piti.studio.http.security import Guard, SecurityHeaders, hosts_of

    handlers: dict[Any, Any] = dict.fromkeys((UserError, HTTPException, ClientDisconnect), error_answer)
    app = FastAPIOffline(
        redoc_url=None,
        title="piti studio",
        version=__version__,
        description=_ABOUT,
        exception_handlers={**handlers, RequestValidationError: error_answer, Exception: error_answer},
    )
    for route in app.routes:  # its documentation, for which FastAPI handles only GET
        getattr(route, "methods", set()).add("HEAD")
    root = checked_root(root_path)
    add_api(app, studio)
    if page:
        _add_page(app, studio, root)
    hosts = hosts_of(host, allow_hosts)
    app.add_middleware(BodyLimits, limits=studio.limits, trusted=hosts.trusted)  # the last one added is called first
    app.add_middleware(Guard, hosts=hosts)
    app.add_middleware(ExceptionMiddleware, handlers=handlers)  # for errors of these two
    app.add_middleware(SecurityHeaders)
    app.add_middleware(ProxyPath, root=root)
    return app


def check_names(host: str, allow_hosts: Collection[str], root_path: str) -> None:
    """Raises UserError for names that `build_app` would refuse, before models are loaded."""
    from piti.studio.http.security import hosts_of

    hosts_of(host, allow_hosts)
    checked_root(root_path)


def checked_root(path: str) -> str:
    """The path under which a proxy serves the studio, in ASGI's form. Raises ServerError for an invalid path."""
    plain = path.strip("/")
    if any(letter in plain for letter in "?#%:\\ ") or "//" in plain:
        raise ServerError(f"root path '{path}': is not a valid path; give one such as /studio")
    return f"/{plain}" if plain else ""


class ProxyPath:
    """Serves under the path of a proxy, whether that passes it on or strips it (ASGI middleware).

    Uvicorn's `root_path` adds it to every request, so it only works for proxies that strip it; FastAPI's is deprecated.
    """

    def __init__(self, app: ASGIApp, root: str) -> None:
        """root: as `checked_root` returns it."""
        self._app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root and scope["type"] == "http":
            path = scope["path"]
            passed_on = path == self._root or path.startswith(f"{self._root}/")
            scope = {**scope, "root_path": self._root, "path": path if passed_on else self._root + path}
        await self._app(scope, receive, send)


def _add_page(app: FastAPI, studio: Studio, root: str) -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio
    from starlette.exceptions import HTTPException

    from piti.studio.http.security import clean_templates, close_downloads
    from piti.studio.ui.page import build_page, page_options

    close_downloads()
    clean_templates()
    gradio.mount_gradio_app(
        app,
        build_page(studio),
        "/",
        root_path=root or None,
        max_file_size=studio.limits.upload_bytes,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        app_kwargs={"exception_handlers": {HTTPException: _page_error}},
        **page_options(),
    )


async def _page_error(request: Request, error: Exception) -> Response:
    """Errors for unknown addresses and methods as in the API, but in Gradio's format for the page's scripts."""
    from fastapi.exception_handlers import http_exception_handler
    from starlette._utils import get_route_path
    from starlette.exceptions import HTTPException

    from piti.studio.http.api import refusal

    assert isinstance(error, HTTPException)
    if get_route_path(request.scope).startswith("/gradio_api/"):
        return await http_exception_handler(request, error)
    return refusal(error)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address, before models are loaded. Raises ServerError."""
    if not 0 <= port <= 65535:
        raise ServerError("expected 0 (any free port) to 65535", option="port", value=port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"is not an address of this machine ({error})", remedy="use 127.0.0.1", option="host", value=host
        ) from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere this would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        what = "is in use, perhaps by another studio" if error.errno in _TAKEN else f"cannot be used ({error.strerror})"
        raise ServerError(
            f"{what} on {host}", remedy="give another, or 0 for any free port", option="port", value=port
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def warning_of(host: str) -> str:
    """A warning for a host that other machines can reach; else empty."""
    if host == "localhost":
        return ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return ""
    return Message(f"{option('host')} {host}: whoever can reach this machine can use the studio; there is no password")


def serve(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_hosts: Collection[str] = (),
    ready: Callable[[str], None] = lambda address: None,
    bound: socket.socket | None = None,
    root_path: str = "",
) -> None:
    """Serve until Ctrl-C or SIGTERM, then cancel all jobs.

    ready: called with the address when the studio is ready. bound: the socket from `listening`. allow_hosts, root_path:
    see `build_app`. Raises ServerError if it cannot listen, KeyboardInterrupt after Ctrl-C.
    """
    import uvicorn

    from piti.studio.http.lifecycle import Server, TimedProtocol

    app = build_app(studio, host, allow_hosts, root_path=root_path)
    bound = bound or listening(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=TimedProtocol,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        limit_concurrency=_CONNECTIONS,
    )
    address = address_of(bound)
    gc.collect()
    gc.freeze()  # networks and libraries are permanent: exempt them from garbage collection, which took 3 s at exit
    before = signal.signal(signal.SIGTERM, _leave)  # which uvicorn raises again after shutdown
    try:
        Server(config, lambda: ready(address), lambda: studio.close(wait=False)).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        studio.close()
        bound.close()


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)
