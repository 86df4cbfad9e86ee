"""Import and run the released networks at full size.

    python -m benchmarks.full_size [--keep FOLDER]

Writes the base (64 px) and the upsampler (256 px) of PITI in the released layout, float32, with the weights of the
recorded tensors' recipe; imports both; runs each once on one sample, without guidance. Every stage runs in its own
process, for separate peaks: memory is that of the whole process, including mapped file pages; `growth` excludes
libraries. Seconds are wall time; `processor` is the process's CPU time, for busy machines. Needs 6 GB of disk, about 4
GiB of memory, and Linux (for peaks from /proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from piti.checkpoints.convert import import_release
from piti.models import Translator
from tests.recorded import recipe_weights

NETWORKS: dict[str, dict[str, Any]] = {
    "base": {"encoder_spec": {}, "unet_spec": {}, "image_size": 64},
    "upsampler": {
        "encoder_spec": {},
        "unet_spec": {
            "channels": [192 * m for m in (1, 1, 2, 2, 4, 4)],
            "layers": 2,
            "attention": [False] * 3 + [True] * 3,
        },
        "image_size": 256,
        "low_res": 64,
    },
}


def peak() -> float:
    """Peak memory of this program in GiB; `ru_maxrss` would include its parent process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def make(folder: Path) -> dict[str, float]:
    """Write both files."""
    sizes = {}
    for name, config in NETWORKS.items():
        weights = recipe_weights(config)
        torch.save(weights, folder / f"{name}.pt")
        sizes[f"{name} parameters, M"] = sum(tensor.numel() for tensor in weights.values()) / 1e6
        sizes[f"{name} file, GiB"] = (folder / f"{name}.pt").stat().st_size / 2**30
    return sizes


def measured_import(folder: Path, target: str, *names: str) -> dict[str, float]:
    """Import these files, and compare the peak with the larger one."""
    with torch.device("meta"):
        Translator()
    paths = [folder / f"{name}.pt" for name in names]
    before, started = peak(), time.perf_counter()
    processor = time.process_time()
    import_release(paths[0], folder / target, paths[1] if len(paths) > 1 else None)
    seconds, growth = time.perf_counter() - started, peak() - before
    largest = max(path.stat().st_size for path in paths) / 2**30
    processor = time.process_time() - processor
    return {"seconds": seconds, "processor, s": processor, "growth, GiB": growth, "growth / file": growth / largest}


def import_base(folder: Path) -> dict[str, float]:
    return measured_import(folder, "base-alone", "base")


def import_both(folder: Path) -> dict[str, float]:
    return measured_import(folder, "model", "base", "upsampler")


@torch.no_grad()
def forward(folder: Path, network: str) -> dict[str, float]:
    """Load a network, encode a condition, and run the UNet once."""
    before, processor, started = peak(), time.process_time(), time.perf_counter()
    translator = Translator.from_pretrained(folder / "model" / network, torch_dtype=torch.float32).eval()
    loading = time.perf_counter() - started
    side, generator = translator.image_size, torch.Generator().manual_seed(0)
    x_t = torch.randn(1, 3, side, side, generator=generator)
    low_res = None if translator.low_res is None else torch.zeros(1, 3, translator.low_res, translator.low_res)
    started = time.perf_counter()
    tokens = translator.encode(torch.rand(1, 3, 256, 256, generator=generator))
    encoding = time.perf_counter() - started
    translator(x_t, torch.tensor([500]), tokens, low_res)
    running = time.perf_counter() - started - encoding
    processor = time.process_time() - processor
    times = {"loading, s": loading, "encoder, s": encoding, "UNet, s": running, "all, processor, s": processor}
    return times | {"growth, GiB": peak() - before}


def forward_base(folder: Path) -> dict[str, float]:
    return forward(folder, "base")


def forward_upsampler(folder: Path) -> dict[str, float]:
    return forward(folder, "upsampler")


STAGES: dict[str, Callable[[Path], dict[str, float]]] = {
    stage.__name__: stage for stage in (make, import_base, import_both, forward_base, forward_upsampler)
}


def run_all(folder: Path) -> None:
    for name in STAGES:
        command = [sys.executable, "-m", "benchmarks.full_size", "--stage", name, "--keep", str(folder)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for what, value in json.loads(output.splitlines()[-1]).items():
            print(f"{name.replace('_', ' '):20s} {what:24s} {value:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="an empty folder in which the files are kept")
    parser.add_argument("--stage", choices=list(STAGES), help="run only this stage, in the folder of --keep")
    options = parser.parse_args()
    if options.stage is not None:
        print(json.dumps(STAGES[options.stage](options.keep)))
    elif options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        run_all(options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run_all(Path(folder))


if __name__ == "__main__":
    main()
