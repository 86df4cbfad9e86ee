"""Access to shards: local ones in place, remote ones prefetched into a bounded cache, each with its index."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import io
import json
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from piti.core.system import WINDOWS
from piti.data.archives import ShardIndex, ShardSample, index_shard
from piti.data.problems import DataError
from piti.data.shards.fetch import Expected, fetch
from piti.data.shards.sources import is_remote, name_of, shown

_GIB = 2**30
_FETCHED = re.compile(r".*-[0-9a-f]{20}\.tar")  # names of `ShardCache.path_of`
_AT_ONCE = 4  # parallel downloads of a process


@dataclass(frozen=True)
class Shard:
    """A tar, with its manifest entry."""

    address: str
    samples: int | None = None
    expected: Expected | None = None
    index_sha256: str | None = None
    """Hash of its index, if its samples were counted without a manifest."""

    @property
    def name(self) -> str:
        """Its name, the prefix of its samples' keys."""
        return name_of(self.address)

    @property
    def remote(self) -> bool:
        """Whether it must be downloaded."""
        return is_remote(self.address)

    @property
    def sha256(self) -> str | None:
        """Hash of its contents in the manifest, or else of its index; None if neither is known."""
        return self.index_sha256 if self.expected is None else self.expected.sha256

    def __str__(self) -> str:
        return shown(self.address)


@dataclass(frozen=True)
class OpenShard:
    """A readable shard, even after its file was removed from the cache."""

    shard: Shard
    handle: io.BufferedReader
    index: ShardIndex


class ShardCache:
    """A cache folder of bounded size, shared by all processes of a machine.

    Files under a shard's name are complete. A shard is downloaded by one process at a time; the others wait.
    """

    def __init__(self, folder: Path | None, gib: float, timeout: float) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / f"piti-shards-{_user()}"
        self.most, self.timeout = int(gib * _GIB), timeout
        self._own = folder is None

    def path_of(self, shard: Shard) -> Path:
        """The path of a shard in the cache; the name depends on the manifest's checksums."""
        if not shard.remote:
            return Path(shard.address)
        mark = hashlib.sha256(f"{shard.address}\n{shard.expected}".encode()).hexdigest()[:20]
        return self.folder / f"{shard.name[:80]}-{mark}.tar"

    def opened(self, shard: Shard) -> io.BufferedReader:
        """The shard's file, downloaded if necessary. Raises DataError."""
        path = self.path_of(shard)
        if not shard.remote:
            try:
                return path.open("rb")
            except OSError as error:
                raise DataError(f"{path}: cannot be opened ({error.strerror}); check data.shards") from None
        self.make()
        with self._locked(path.with_suffix(".lock")):
            fetched = False
            while True:
                try:
                    handle = path.open("rb")
                    break
                except FileNotFoundError:  # missing, or evicted by another thread before it was opened
                    fetch(shard.address, path, self.timeout, shard.expected)
                    self._index_path(shard).unlink(missing_ok=True)  # of an earlier file, which may differ
                    fetched = True
            with contextlib.suppress(FileNotFoundError):  # evicted since; the handle is still readable
                os.utime(path)
            if fetched:
                self._evict(path)
            return handle

    def index_of(self, shard: Shard, handle: io.BufferedReader | None = None) -> ShardIndex:
        """The cached index of a shard. handle: its open file, if available. Raises DataError."""
        kept = self._index_path(shard)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _index_from(json.loads(kept.read_bytes()))
        with contextlib.nullcontext(handle) if handle else self.opened(shard) as file:
            index = index_shard(file, str(shard))
        with contextlib.suppress(OSError, DataError):  # caching only saves time
            self.make()
            partial = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
            partial.write_text(json.dumps(_index_to(index)), encoding="utf-8")
            os.replace(partial, kept)
        return index

    def knows(self, shard: Shard) -> bool:
        """Whether a shard's index is cached."""
        return self._index_path(shard).is_file()

    def _index_path(self, shard: Shard) -> Path:
        """The path of a shard's cached index; the name changes with the local file."""
        path = self.path_of(shard).absolute()
        state = ""
        if not shard.remote:
            with contextlib.suppress(OSError):
                state = f"\n{path.stat().st_size}\n{path.stat().st_mtime_ns}"
        return self.folder / f"index-{hashlib.sha256(f'{path}{state}'.encode()).hexdigest()[:24]}.json"

    def make(self) -> None:
        """Create the folder. Raises DataError if that fails, or if it belongs to another user."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._own and not WINDOWS and self.folder.stat().st_uid != os.getuid():
                raise PermissionError(0, "it belongs to another user")
        except OSError as error:
            raise self._unusable(error) from None

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold a lock in the folder. Raises DataError if it is not writable."""
        try:
            held = FileLock(path).acquire()
        except OSError as error:
            raise self._unusable(error) from None
        with held:
            yield

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.folder}: cannot hold fetched shards ({error.strerror}); set data.shard_cache to another folder"
        )

    def _evict(self, but: Path) -> None:
        """Remove the least recently used shards until the rest fits, and leftovers of killed processes; keep other
        files."""
        with self._locked(self.folder / ".lock"):
            for partial in self.folder.glob("*.partial"):
                if _FETCHED.fullmatch(partial.stem):
                    _remove_unlocked(partial)
            found = []
            for path in (path for path in self.folder.glob("*.tar") if _FETCHED.fullmatch(path.name)):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self.most:
                    break
                if path != but and _removed(path):
                    total -= size


class ShardStore:
    """The shards of a set, opened on demand and prefetched.

    Belongs to one process: it is reset after a fork, and in a copy in another process.
    """

    def __init__(self, shards: Sequence[Shard], cache: ShardCache, keep: int) -> None:
        self.shards, self.cache, self.keep = list(shards), cache, keep
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, Future[OpenShard]] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(_AT_ONCE)

    def __getstate__(self) -> dict[str, object]:
        return {"shards": self.shards, "cache": self.cache, "keep": self.keep}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def opened(self, number: int) -> OpenShard:
        """Shard `number`, downloaded if necessary. Raises DataError."""
        return self._future(number).result()

    def expect(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """Start downloading the shards needed now, then the next ones, and keep these."""
        for number in (*now, *soon):
            self._future(number)

    def _future(self, number: int) -> Future[OpenShard]:
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            future = self._open.get(number)
            if future is None or (future.done() and future.exception() is not None):
                future = self._open[number] = Future()
                threading.Thread(target=self._work, args=(number, future), name="shards", daemon=True).start()
            self._open.move_to_end(number)
            while len(self._open) > self.keep:
                self._open.popitem(last=False)
            return future

    def _work(self, number: int, future: Future[OpenShard]) -> None:
        """Runs in a daemon thread."""
        try:
            with self._turns:
                shard = self.shards[number]
                handle = self.cache.opened(shard)
                future.set_result(OpenShard(shard, handle, self.cache.index_of(shard, handle)))
        except BaseException as error:  # noqa: BLE001  for who asks for the result
            future.set_exception(error)


def _index_to(index: ShardIndex) -> dict[str, object]:
    return {"damage": index.damage, "samples": [[one.key, one.files, one.twice] for one in index.samples]}


def _index_from(values: dict[str, Any]) -> ShardIndex:
    damage: object = values["damage"]
    samples = [
        ShardSample(key, {name: (place[0], place[1]) for name, place in files.items()}, tuple(twice))
        for key, files, twice in values["samples"]
    ]
    return ShardIndex(samples, None if damage is None else str(damage))


def _user() -> int | str:
    """An identifier of the user in a shared temporary folder."""
    return getpass.getuser() if WINDOWS else os.getuid()


def _removed(path: Path) -> bool:
    """Remove a shard. False if it is open and the system refuses, as on Windows."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if not WINDOWS:
            raise
        return False
    return True


def _remove_unlocked(partial: Path) -> None:
    """Remove an abandoned partial download."""
    lock = partial.with_name(partial.name.removesuffix(".tar.partial") + ".lock")
    with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
        partial.unlink(missing_ok=True)
