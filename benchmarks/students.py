"""Sampling time of a distilled model and its teacher, alternating in one process.

    python benchmarks/students.py STUDENT [--model street] [--samples 4] [--rounds 5]

Both generate samples of one mask with their default settings, for each installed engine; the first round is a warm-up.
Prints medians and their ratio. For image quality, use `piti evaluate model`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from piti.engine import ENGINES, EngineError
from piti.pipelines.pipeline import PITIPipeline

MASK = Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png"


def seconds(pipeline: PITIPipeline, samples: int) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    pipeline(MASK, num_images=samples, generator=torch.Generator().manual_seed(0), square=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("--model", default="street")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pipelines = {name: PITIPipeline.from_pretrained(name) for name in (options.model, options.student)}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    for engine in ENGINES:
        if engine == "auto":
            continue
        try:
            for pipeline in pipelines.values():
                pipeline.use_engine(engine)
        except EngineError as error:
            print(error)
            continue
        found: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(options.rounds + 1):
            for name, pipeline in pipelines.items():
                found[name].append(seconds(pipeline, options.samples))
        medians = {name: statistics.median(each[1:]) for name, each in found.items()}
        for name, median in medians.items():
            spread = f"{min(found[name][1:]):.2f} to {max(found[name][1:]):.2f}"
            print(f"{engine:10s} {name:40s} {median:6.2f} s ({spread})")
        print(f"{engine:10s} ratio {medians[options.model] / medians[options.student]:.2f}")


if __name__ == "__main__":
    main()
