"""Response times and memory of the studio: start-up, first preview, results, growth, many requests at once.

python benchmarks/studio.py [--model street] [--generations 100] [--mask examples/street/high_street.png]

Runs `piti studio` in its own process (start-up, memory), and the same service in this one (previews).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

_MASK = Path("examples/street/high_street.png")


@contextmanager
def running(models: list[str]) -> Iterator[tuple[str, int, float]]:
    """A studio's address, its process, and its start-up time in seconds."""
    begun = time.perf_counter()
    named = [part for model in models for part in ("--model", model)]
    process = subprocess.Popen(
        [sys.executable, "-m", "piti", "studio", "--port", "0", *named], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "the studio did not start"
        httpx.get(f"{found[0]}healthz").raise_for_status()
        yield found[0], process.pid, time.perf_counter() - begun
    finally:
        process.terminate()
        ended = time.perf_counter()
        process.wait()
        print(f"ended in {time.perf_counter() - ended:.1f} s")


def resident(pid: int) -> float:
    """Resident memory of a process in MB (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1000


def ask(address: str, model: str, mask: bytes, **fields: object) -> float:
    """Seconds of a request."""
    begun = time.perf_counter()
    files = {"condition": ("mask.png", mask)}
    values = {"model": model} | {key: str(value) for key, value in fields.items()}
    httpx.post(f"{address}api/translate", data=values, files=files, timeout=600).raise_for_status()
    return time.perf_counter() - begun


def previews(model: str, mask: Path) -> None:
    """Times to the first preview and the result, cost of a step in the queue's thread, and time to a live preview."""
    from piti.pipelines.computing import Computing
    from piti.studio.service.schema import TranslateRequest
    from piti.studio.service.service import Studio

    studio = Studio((model,), computing=Computing())
    raw = studio.read_condition(model, mask, mask.name)
    request = TranslateRequest.parse({"model": model, "num": 4}, "benchmark")

    async def seen() -> tuple[float, float]:
        begun, first = time.perf_counter(), 0.0
        job = studio.translate(request, raw)
        async for snapshot in job.changes(0.02):
            if snapshot.preview and not first:
                first = time.perf_counter() - begun
        await job.result()
        return first, time.perf_counter() - begun

    async def previewed() -> float:
        begun = time.perf_counter()
        await studio.live(model, raw, 0).result()
        return time.perf_counter() - begun

    asyncio.run(seen())
    for _ in range(3):
        first, whole = asyncio.run(seen())
        print(f"click to first preview {first:.2f} s, to four 256 px results {whole:.2f} s")
    print(f"a live preview {asyncio.run(previewed()):.2f} s, {asyncio.run(previewed()):.2f} s")
    pipeline = studio.model(model).pipeline
    begun = time.perf_counter()
    pipeline(raw, num_images=4)
    print(f"the same pipeline in the main thread, without previews: {time.perf_counter() - begun:.2f} s")
    studio.close()


def growth(address: str, model: str, pid: int, mask: bytes, generations: int) -> None:
    """Memory after 10 generations and at the end."""
    after_10 = 0.0
    for k in range(1, generations + 1):
        ask(address, model, mask, num=4, seed=k)
        if k == 10:
            after_10 = resident(pid)
            print(f"memory after 10 generations of 4: {after_10:.0f} MB")
    last = resident(pid)
    print(f"memory after {generations}: {last:.0f} MB ({100 * (last / after_10 - 1):+.1f}%)")


def crowd(address: str, model: str, pid: int, mask: bytes, count: int = 20) -> None:
    """Send `count` requests at once."""
    peak, over = [resident(pid)], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], resident(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, begun = resident(pid), time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        took = sorted(pool.map(lambda k: ask(address, model, mask, num=1, seed=k), range(count)))
    over.set()
    watcher.join()
    print(f"{count} at once: all answered after {time.perf_counter() - begun:.1f} s, the first after {took[0]:.1f} s; ")
    print(f"memory at most {peak[0]:.0f} MB, {before:.0f} MB before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street", help="a mask model")
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--mask", type=Path, default=_MASK)
    options = parser.parse_args()
    mask = options.mask.read_bytes()
    with running([options.model, "sketch"]) as (address, pid, seconds):
        print(f"start-up {seconds:.1f} s, memory {resident(pid):.0f} MB")
        first, second = (ask(address, options.model, mask, num=4) for _ in range(2))
        print(f"four 256 px results over HTTP: {first:.2f} s the first time, then {second:.2f} s")
        growth(address, options.model, pid, mask, options.generations)
        crowd(address, options.model, pid, mask)
    previews(options.model, options.mask)


if __name__ == "__main__":
    main()
