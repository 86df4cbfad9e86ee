"""Sampling and training speed on the available device, in at most --minutes, as JSON and a table.

    python -m benchmarks.gpu [--minutes 8] [--out out/gpu] [--device cuda]
    python -m benchmarks.gpu --tiny        # a test with tiny networks on the CPU, under two minutes

Rows are the bundled `street` and the paper's size with random weights, sampled and trained, in float32 (TF32 on CUDA),
bfloat16 and float16, compiled (`--compile`) and not; for comparison, on the same networks, a plain loop with diffusers'
DDIM and guidance, and a bare training loop (`benchmarks/steps.py`). Rates are from medians of calls after the first,
which is reported separately, since it includes compilation. The device is synchronised before and after each call. Peak
memory is allocated by torch on a GPU; none is given for a CPU. Rows that do not fit into the remaining time are
skipped, and those that run out of memory or fail are recorded. `gpu.json` and `gpu.md` are rewritten atomically after
every row.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import piti
from benchmarks.gpu_cases import BARE, PLAIN, Case, Scale, cases
from benchmarks.training import synchronize
from piti.core.devices import usable_device
from piti.core.errors import UserError
from piti.core.files import whole_file

STARTED = time.perf_counter()
FIRST_GUESS = {True: 90.0, False: 25.0}
"""Assumed seconds of a row, compiled or not, without similar measurements."""
MARGIN = 20.0
"""Seconds reserved for start and end: imports, and ending processes."""
GRACE = 5.0
"""Seconds after which a process that does not stop is killed."""


class OutOfTime(BaseException):
    """The run's time is over. No `Exception`: compilers catch those."""


@dataclass
class Row:
    """A case and its result."""

    case: Case
    status: str = "not reached"
    first_seconds: float | None = None
    seconds: float | None = None
    """Median of the calls after the first."""
    calls: int = 0
    peak_gib: float | None = None
    took: float = 0.0
    """Total seconds, including setup."""

    @property
    def rate(self) -> float | None:
        """Images per second."""
        return self.case.images / self.seconds if self.seconds else None


def measured(row: Row, run: Callable[[], object], device: torch.device, scale: Scale) -> None:
    """Call once, then until there are enough calls or seconds."""
    times: list[float] = []
    while len(times) <= scale.calls and (len(times) < 2 or sum(times[1:]) < scale.seconds):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    row.first_seconds, row.seconds, row.calls = times[0], statistics.median(times[1:]), len(times) - 1


def attempt(row: Row, device: torch.device, scale: Scale, folder: Path) -> None:
    """Build and measure a case; errors become its status. Raises OutOfTime."""
    started = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        measured(row, row.case.make(row.case, scale, device, folder), device, scale)
        row.status = "measured"
    except torch.OutOfMemoryError:
        row.status = "out of memory"
    except UserError as error:
        row.status = f"not here: {first_line(error)}"
    except (RuntimeError, ValueError) as error:
        full = "out of memory" in str(error).lower()
        row.status = "out of memory" if full else f"failed: {first_line(error)}"
    finally:
        if device.type == "cuda":
            row.peak_gib = torch.cuda.max_memory_allocated(device) / 2**30
        row.took = time.perf_counter() - started
        freed(device, row.case.compile)


def first_line(error: Exception) -> str:
    """First line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def freed(device: torch.device, compiled: bool) -> None:
    """Free a case's memory."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def guess(case: Case, rows: list[Row], scale: Scale) -> float:
    """Expected seconds of a case, from others with the same network."""
    alike = [row.took for row in rows if row.status == "measured" and row.case.what == case.what]
    known = max(alike, default=0.0)
    compiling = scale.share * FIRST_GUESS[True] if case.compile else 0.0
    return known + compiling if known else scale.share * FIRST_GUESS[case.compile]


@contextlib.contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after these seconds; a process that does not respond is killed a little later."""

    def stop(*_: object) -> None:
        raise OutOfTime

    watchdog = threading.Timer(seconds + GRACE, lambda: os._exit(3))
    watchdog.daemon = True
    watchdog.start()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watchdog.cancel()


def run_all(chosen: list[Case], device: torch.device, scale: Scale, out: Path, minutes: float) -> list[Row]:
    """Measure the cases in order while there is time; files are written after each."""
    end = STARTED + 60 * minutes - MARGIN
    rows = [Row(case) for case in chosen]
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            left, needed = end - time.perf_counter(), guess(row.case, rows[:number], scale)
            if left < needed:
                row.status = f"skipped: {max(0, left):.0f} s left, about {needed:.0f} s needed"
            else:
                try:
                    with ending(left):
                        attempt(row, device, scale, Path(folder) / str(number))
                except OutOfTime:
                    row.status = "stopped: out of time"
            print(f"{row.case.name}: {row.status if row.rate is None else f'{row.rate:.2f} images/s'}", flush=True)
            write(out, rows, device, minutes)
    return rows


def beside(row: Row, rows: list[Row], **changes: Any) -> float | None:
    """Speed relative to the row whose case differs in these fields; None for itself, or if not measured."""
    other = replace(row.case, **changes)
    rates = [one.rate for one in rows if one.case == other and one is not row]
    return None if not rates or row.rate is None or rates[0] is None else row.rate / rates[0]


def ratios(row: Row, rows: list[Row]) -> dict[str, float | None]:
    """Ratios in the table: to the uncompiled plain loop, and to the same row uncompiled in float32."""
    plain = {"sampling": PLAIN, "training": BARE}[row.case.task]
    return {
        "beside_the_plain_loop": beside(row, rows, by=plain, compile=False),
        "beside_float32": beside(row, rows, dtype="fp32", compile=False),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Facts of the machine."""
    found: dict[str, Any] = {
        "device": str(device), "torch": torch.__version__, "piti": piti.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return found


def write(out: Path, rows: list[Row], device: torch.device, minutes: float) -> None:
    """Write both files atomically."""
    seconds = time.perf_counter() - STARTED
    plain = [
        {**{k: v for k, v in asdict(row.case).items() if k != "make"}, "status": row.status,
         "first_seconds": row.first_seconds, "seconds": row.seconds, "calls": row.calls,
         "images_per_second": row.rate, "peak_gib": row.peak_gib, "took": row.took, **ratios(row, rows)}
        for row in rows
    ]  # fmt: skip
    found = {"machine": machine(device), "minutes": minutes, "seconds": seconds, "rows": plain}
    texts = {"gpu.json": json.dumps(found, indent=1) + "\n", "gpu.md": table(rows, device, seconds)}
    for name, text in texts.items():
        with whole_file(out / name, overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")


def table(rows: list[Row], device: torch.device, seconds: float) -> str:
    """The rows in Markdown, followed by cases that were not measured, with reasons."""
    where = ", ".join(f"{key} {value}" for key, value in machine(device).items())
    lines = [f"{where}; {seconds:.0f} s.", ""]
    lines += ["| what | by | numbers | compiled | first call, s | images/s | peak GiB | × plain loop | × float32 |"]
    lines += ["|---|---|---|---|---:|---:|---:|---:|---:|"]
    for row in (row for row in rows if row.status == "measured"):
        case, both = row.case, ratios(row, rows)
        numbers = [row.first_seconds, row.rate, row.peak_gib, *both.values()]
        cells = ["–" if value is None else f"{value:.2f}" for value in numbers]
        names = [case.what, case.by, case.dtype, "yes" if case.compile else "no"]
        lines.append(f"| {' | '.join([*names, *cells])} |")
    left_out = [f"- {row.case.name}: {row.status}" for row in rows if row.status != "measured"]
    return "\n".join([*lines, *(["", "Not measured:", "", *left_out] if left_out else [])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="largest duration, 8 by default, 2 with --tiny")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--device", help="by default the fastest available")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU")
    options = parser.parse_args()
    device = usable_device("cpu" if options.tiny else options.device)
    scale = Scale.tiny() if options.tiny else Scale()
    options.out.mkdir(parents=True, exist_ok=True)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # also where there is a GPU
    elif device.type == "cuda":
        torch.cuda.set_device(device)
    rows = run_all(cases(scale), device, scale, options.out, options.minutes or (2 if options.tiny else 8))
    print(f"{sum(row.status == 'measured' for row in rows)} of {len(rows)} rows measured: {options.out / 'gpu.md'}")


if __name__ == "__main__":
    main()
