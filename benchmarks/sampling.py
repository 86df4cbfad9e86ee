"""Sampling speed: four guided samples, ours beside the way the released code samples.

    python benchmarks/sampling.py [--model street] [--samples 4]

The released way encodes the condition at every step and runs ancestral steps over a guided batch; ours encodes
it once. Both use this package's network, in turn, and the faster of three runs counts. `first` includes loading.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from piti.pipeline import PITIPipeline

MASK = Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png"


def fastest(run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def encoding_every_step(pipeline: PITIPipeline) -> Callable[..., object]:
    """The pipeline's network with the condition encoded anew at every step, as the released code does."""
    raw = pipeline.read(MASK)
    encoded = pipeline.condition.encode(raw[None])
    null = pipeline.condition.null(1, encoded.shape[-2], encoded.shape[-1])
    real = PITIPipeline._predict

    def predict(x_t: torch.Tensor, t: torch.Tensor, tokens: object) -> object:
        half = len(x_t) // 2
        pair = torch.cat([encoded.repeat(half, 1, 1, 1), null.repeat(half, 1, 1, 1)])
        return real(pipeline, x_t, t, pipeline.base.encode(pair))

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street")
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    started = time.perf_counter()
    pipeline = PITIPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)

    def make(**settings: object) -> None:
        generator = torch.Generator().manual_seed(0)
        pipeline(MASK, num_images=options.samples, generator=generator, **settings)  # type: ignore[arg-type]

    make()
    rows = {"first": time.perf_counter() - started, "default": fastest(make)}
    for sampler in ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc"):
        for steps in (10, 20, 50):
            rows[f"{sampler} {steps}"] = fastest(lambda s=sampler, n=steps: make(sampler=s, steps=n), times=2)
    rows["250 ancestral steps"] = fastest(lambda: make(sampler="ddpm", steps=250), times=1)
    pipeline._predict = encoding_every_step(pipeline)  # type: ignore[method-assign]
    rows["250 ancestral steps, encoding every step"] = fastest(lambda: make(sampler="ddpm", steps=250), times=1)
    for name, seconds in rows.items():
        print(f"{name:42s} {seconds:7.2f} s")
    ratio = rows["250 ancestral steps, encoding every step"] / rows["default"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"the default is {ratio:.1f} times as fast as the released way; peak memory {peak:.2f} GiB")
    print(json.dumps({name: round(seconds, 3) for name, seconds in rows.items()}))


if __name__ == "__main__":
    main()
