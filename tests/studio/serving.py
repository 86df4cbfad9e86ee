"""A running studio in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from piti.studio.http.app import address_of, build_app, listening
from piti.studio.service.service import Studio


@contextmanager
def answering(studio: Studio, allow_hosts: Sequence[str] = ()) -> Iterator[str]:
    """Its address, without its page."""
    import uvicorn

    from piti.studio.http.lifecycle import TimedProtocol

    bound = listening("127.0.0.1", 0)
    app = build_app(studio, allow_hosts=allow_hosts, page=False)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", ws="none", http=TimedProtocol, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield address_of(bound)
    finally:
        server.should_exit = True
        thread.join()
        studio.close()
