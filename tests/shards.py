"""Shards for tests, and a local server that provides or refuses them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

import numpy as np
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.data import ShardSet
from piti.data.archives import index_shard
from piti.data.batches import BatchStream, loader

MASK = MaskCondition(ClassTable(names=("a", "b"), ids=(0, 1), colours=((1, 1, 9), (2, 2, 9))))


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A photograph whose pixels depend on the seed."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def mask(seed: int, size: tuple[int, int] = (12, 10), most: int = 2) -> bytes:
    """Class ids below `most`."""
    return encoded(np.random.default_rng(seed).integers(0, most, size[::-1], dtype=np.uint8))


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def packed(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def photographs(path: Path, count: int, first: int = 0) -> Path:
    """A shard of photographs alone, with the keys `first` and on."""
    return packed(path, {f"{k}.png": png(k) for k in range(first, first + count)})


def pairs(path: Path, count: int, first: int = 0, **others: bytes) -> Path:
    """A shard of photographs with masks. others: contents by name, `__` for a dot, in the place of what is there."""
    files = {}
    for k in range(first, first + count):
        files |= {f"{k}.jpg": png(k), f"{k}.labels.png": mask(k)}
    return packed(path, files | {name.strip("_").replace("__", "."): content for name, content in others.items()})


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(folder: Path, *answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server of a folder's files: its address, and the paths that were asked for.

    answers: to the first requests, in the place of the files.
    """
    asked: list[str] = []
    waiting = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if waiting:
                waiting.pop(0)(self)
                return
            file = folder / self.path.lstrip("/").partition("?")[0]
            if not file.is_file():
                self.send_error(404)
                return
            respond(self, file.read_bytes())

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingTCPServer):  # http.server's own asks for its host's name, which may take seconds
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def respond(handler: BaseHTTPRequestHandler, body: bytes, length: int | None = None) -> None:
    """Answer with a body, perhaps promising more than there is."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def failing(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def manifest_of(folder, shards, **others):
    """A manifest of these tars; others: what it says besides."""
    entries = [
        {
            "name": path.name,
            "samples": len(index_shard(path.open("rb"), "x").samples),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in shards
    ]
    path = folder / "shards.json"
    path.write_text(json.dumps({"version": 1, "splits": {"train": entries}} | others))
    return path


def keys_of(samples: ShardSet, steps: range, batch: int = 3, world: int = 1, workers: int = 0) -> list[str]:
    """The keys that all ranks see."""
    streams = [BatchStream(samples, batch, 5, rank, world) for rank in range(world)]
    return [key for stream in streams for one in loader(stream, steps.start, steps.stop, workers) for key in one.keys]


def validating(tmp_path) -> tuple[str, ...]:
    return (str(pairs(tmp_path / "val" / "v.tar", 1)),)
