"""The studio as a server: its routes, its page, and the address where both are."""

from __future__ import annotations

import asyncio
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
from piti.core.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from piti.studio.service.service import Studio

_GRACE = 0.5  # seconds that answers under way have when the server ends; then streams are ended
_PATIENCE = 5  # seconds until whatever does not end is left alone
_KEEP_ALIVE = 5  # seconds that a connection may stay open with nothing asked
_CONNECTIONS = 256  # at once; more are told to come again
_TAKEN = (errno.EADDRINUSE,)
_ABOUT = """Masks, sketches and texts to photographs, and photographs edited; what the page does goes through the same
functions. Nothing leaves this machine. Errors are `{"error": "…", "details": []}`, in words."""


class ServerError(UserError):
    """The studio cannot listen where it was told to. The message names the flag."""


def need_ui() -> None:
    """Raises UserError where the extra `ui` is not installed."""
    try:
        import fastapi  # noqa: F401
        import fastapi_offline  # noqa: F401
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"piti studio needs {error.name}, which is not installed: pip install 'piti[ui]'") from None


def build_app(studio: Studio, host: str = "127.0.0.1", allow_hosts: Collection[str] = (), page: bool = True) -> FastAPI:
    """Routes and page of a studio. host: where it will listen; allow_hosts: other names that it answers to."""
    from fastapi_offline import FastAPIOffline

    from piti.studio.http.errors import InWords
    from piti.studio.http.limits import BodyLimits
    from piti.studio.http.routes import add_api
    from piti.studio.http.security import Guard, Sealed, hosts_of

    app = FastAPIOffline(redoc_url=None, title="piti studio", version=__version__, description=_ABOUT)
    add_api(app, studio)
    if page:
        app = _with_page(app, studio)
    app.add_middleware(InWords)  # the last that is added stands first
    app.add_middleware(BodyLimits, limits=studio.limits)
    app.add_middleware(Guard, hosts=hosts_of(host, allow_hosts))
    app.add_middleware(Sealed)
    return app


def _with_page(app: FastAPI, studio: Studio) -> FastAPI:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio

    from piti.studio.http.security import shut_downloads
    from piti.studio.ui.page import build_page, page_options

    shut_downloads()
    options: dict[str, Any] = {"max_file_size": studio.limits.upload_bytes, "run_history": False} | page_options()
    return gradio.mount_gradio_app(app, build_page(studio), "/", **options)


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, so that nothing is loaded in vain. Raises ServerError."""
    if not 0 <= port <= 65535:
        raise ServerError(f"--port {port}: ports are 0 (any that is free) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ServerError(f"--host {host}: is no address here ({error}); 127.0.0.1 always is") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere this would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        what = "is taken, by another studio perhaps" if error.errno in _TAKEN else f"cannot be used ({error.strerror})"
        raise ServerError(f"--port {port} of {host}: {what}; give another --port, or 0 for any that is free") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """What to open in a browser."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def warning_of(host: str) -> str:
    """What to say of a host that others can reach; else nothing."""
    if host == "localhost":
        return ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return ""
    return f"--host {host}: whoever can reach this machine can use the studio; there is no password"


def serve(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_hosts: Collection[str] = (),
    ready: Callable[[str], None] | None = None,
    bound: socket.socket | None = None,
) -> None:
    """Answer until Ctrl-C or SIGTERM, then cancel every job.

    ready: told the address when the studio answers. bound: what `listening` returned for host and port.
    Raises ServerError where it cannot listen, KeyboardInterrupt after Ctrl-C.
    """
    import uvicorn

    from piti.studio.http.lifecycle import Ending, Patient

    ended = asyncio.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and ready is not None and sockets:
                ready(address_of(sockets[0]))

        def handle_exit(self, sig: int, frame: Any) -> None:
            studio.close(wait=False)  # so that whoever waits for a picture is told at once
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().call_later(_GRACE, ended.set)
            await super().shutdown(sockets)

    bound = bound or listening(host, port)
    app = build_app(studio, host, allow_hosts)
    config = uvicorn.Config(
        Ending(app, ended),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=Patient,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_PATIENCE,
        limit_concurrency=_CONNECTIONS,
    )
    gc.collect()
    gc.freeze()  # networks and libraries stay: nothing looks through them again, not even at the end, which took 3 s
    before = signal.signal(signal.SIGTERM, _leave)  # which uvicorn sends again when it has ended
    try:
        Server(config).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        studio.close()
        bound.close()


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)
