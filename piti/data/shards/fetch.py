"""Downloading shards by HTTP or from a command's output, with retries, checks and atomic results."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import logging
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from piti.core.system import WINDOWS
from piti.data.problems import DataError
from piti.data.shards.sources import PIPE, shown

log = logging.getLogger(__name__)

PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each further attempt."""

_CHUNK = 1 << 20
_AT_ONCE = 1.0  # a command that fails within so many seconds without output is assumed to be wrong
_TRANSIENT = frozenset({408, 421, 425, 429})  # besides 5xx: temporary HTTP errors


class FetchFailed(Exception):
    """An attempt failed. final: retrying is useless. early: it failed immediately, before any data."""

    def __init__(self, reason: str, final: bool = False, early: bool = False) -> None:
        super().__init__(reason)
        self.final, self.early = final, early


@dataclass(frozen=True)
class Expected:
    """A file's size and hash in a manifest; None: unknown."""

    bytes: int | None = None
    sha256: str | None = None


def fetch(address: str, target: Path, timeout: float, expected: Expected | None = None) -> None:
    """Download an address to the file `target`, atomically.

    timeout: seconds without data after which an attempt fails. Raises DataError after the last attempt, or immediately
    if retrying is useless (HTTP 404, no such command, no space), naming address, cause and remedy. A command that fails
    twice immediately without output is not retried.
    """
    partial = target.with_name(target.name + ".partial")
    failures: list[FetchFailed] = []
    try:
        for pause in (*PAUSES, None):
            try:
                _attempt(address, partial, timeout, expected or Expected())
                os.replace(partial, target)
                return
            except FetchFailed as failure:
                failures.append(failure)
                if failure.final or sum(one.early for one in failures) > 1:
                    break
            if pause is not None:
                log.warning("%s: %s; trying again in %g s", shown(address), failures[-1], pause)
                time.sleep(pause)
    finally:
        partial.unlink(missing_ok=True)
    times = f" after {len(failures)} attempts" if len(failures) > 1 else ""
    raise DataError(
        f"{shown(address)}: cannot be downloaded{times}: {failures[-1]}; check the address and the connection, "
        "or copy the shards to this machine and give their paths in data.shards"
    )


def read_small(address: str, timeout: float) -> bytes:
    """Download an address into memory; for manifests. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "fetched"
        fetch(address, target, timeout)
        return target.read_bytes()


def _attempt(address: str, partial: Path, timeout: float, expected: Expected) -> None:
    """Write the file and verify it. Raises FetchFailed."""
    digest, size = hashlib.sha256(), 0
    chunks = _from_pipe(address, timeout) if address.startswith(PIPE) else _from_http(address, timeout)
    try:
        file = partial.open("wb", buffering=0)  # closing flushes, and may fail again
    except OSError as error:
        raise _unwritable(partial, error) from None
    with contextlib.closing(chunks), file:
        for chunk in chunks:
            try:
                _write(file, chunk)
            except OSError as error:
                raise _unwritable(partial, error) from None
            digest.update(chunk)
            size += len(chunk)
    if not size:
        raise FetchFailed("nothing was received")
    if expected.bytes is not None and size != expected.bytes:
        raise FetchFailed(f"{size} bytes were received, the manifest says {expected.bytes}")
    if expected.sha256 is not None and digest.hexdigest() != expected.sha256:
        raise FetchFailed(f"its sha256 is {digest.hexdigest()}, the manifest says {expected.sha256}")


def _write(file: io.FileIO, chunk: bytes) -> None:
    """Write all data, since a full disk accepts only a part."""
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _unwritable(partial: Path, error: OSError) -> FetchFailed:
    return FetchFailed(f"{partial.parent} cannot be written ({error.strerror}); change data.shard_cache", final=True)


def _from_http(address: str, timeout: float) -> Generator[bytes, None, None]:
    """The complete body of a response. Raises FetchFailed."""
    request = urllib.request.Request(address, headers={"User-Agent": "piti", "Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length, size = response.headers.get("Content-Length"), 0
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                yield chunk
            if length is not None and size != int(length):
                raise FetchFailed(f"the connection ended after {size} of {length} bytes")
    except urllib.error.HTTPError as error:
        final = error.code < 500 and error.code not in _TRANSIENT
        raise FetchFailed(f"HTTP {error.code} {error.reason}", final) from None
    except TimeoutError:
        raise FetchFailed(f"nothing was received for {timeout:g} s (data.shard_timeout)") from None
    except (OSError, http.client.HTTPException) as error:
        raise FetchFailed(str(getattr(error, "reason", "") or error or type(error).__name__)) from None
    except ValueError as error:
        raise FetchFailed(f"not a valid HTTP address ({error})", final=True) from None


def _from_pipe(address: str, timeout: float) -> Generator[bytes, None, None]:
    """The output of a shell command, if it succeeds. Raises FetchFailed."""
    shell = _shell(address.removeprefix(PIPE))
    began, came = time.monotonic(), False
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_let_through if _blocked() else None,
        )
        try:
            assert process.stdout is not None
            for chunk in _chunks(process.stdout, timeout):
                came = True
                yield chunk
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise FetchFailed(f"the command closed its output and did not exit within {timeout:g} s") from None
        finally:
            _end(process)
        said = f"the command ended with exit code {code}{_last_line(errors)}"
        early = not came and time.monotonic() - began < _AT_ONCE
        if code:
            raise FetchFailed(said, final=code in (126, 127), early=early)
        if not came:
            raise FetchFailed(f"nothing was received; {said}", early=early)


def _blocked() -> bool:
    """Whether this thread blocks SIGTERM, as in a data loading worker; commands would inherit this, so that `timeout`
    could not end them."""
    return not WINDOWS and signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _shell(command: str) -> list[str] | str:
    """The shell for a command: bash, which detects failures within a pipeline, or the system's shell."""
    if WINDOWS:
        return f'cmd /d /s /c "{command}"'
    bash = shutil.which("bash")
    return [bash, "-o", "pipefail", "-c", command] if bash else ["/bin/sh", "-c", command]


def _chunks(output: IO[bytes], timeout: float) -> Iterator[bytes]:
    read = _polled if hasattr(select, "poll") else _read_beside
    for chunk in read(output, timeout):
        if chunk is None:
            raise FetchFailed(f"the command wrote nothing for {timeout:g} s (data.shard_timeout)")
        if not chunk:
            return
        yield chunk


def _polled(output: IO[bytes], timeout: float) -> Iterator[bytes | None]:
    """The output in pieces, the last one empty; None after a timeout."""
    poll = select.poll()
    poll.register(output, select.POLLIN | select.POLLHUP)
    while True:
        yield os.read(output.fileno(), _CHUNK) if poll.poll(timeout * 1000) else None


def _read_beside(output: IO[bytes], timeout: float) -> Iterator[bytes | None]:
    """The same if pipes cannot be polled, as on Windows: with a thread, which `_end` releases."""
    reader = ThreadPoolExecutor(1)
    try:
        while True:
            piece = reader.submit(os.read, output.fileno(), _CHUNK)
            try:
                yield piece.result(timeout)
            except TimeoutError:
                yield None
    finally:
        reader.shutdown(wait=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a running command and its children."""
    if process.poll() is None:
        if WINDOWS:  # before its output is closed, which waits for its reader
            subprocess.run(["taskkill", "/f", "/t", "/pid", str(process.pid)], capture_output=True, check=False)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _last_line(errors: IO[bytes]) -> str:
    """The last line of a command's error output."""
    errors.seek(0)
    lines = errors.read()[-2000:].decode(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
