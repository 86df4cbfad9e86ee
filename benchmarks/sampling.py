"""Sampling speed: four guided samples, compared with the released code's method.

    python benchmarks/sampling.py [--model street] [--samples 4]

The released method encodes the condition at every step, and runs 250 ancestral steps on a guided batch and 27 in the
upsampler; piti encodes once. Both use this package's networks, alternating, and the fastest run counts. For runs with
several steps, a one-step upsampler is replaced by one of `recipes/upsampler.yaml` with random weights, since only time
is measured. Engines run the same settings one after the other, without the time of conversion. `first` includes
loading. Peak memory is that of the process until then.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from piti.conditions import condition_from_config
from piti.diffusion.schedulers import scheduler_of
from piti.engine import ENGINES, EngineError
from piti.models import Prediction, Translator
from piti.pipelines.canvas import fitted
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline
from piti.training import read_recipe
from piti.training.build import build_translator

UPSAMPLER_RUNS = (("ddpm", "fast27"), ("ddim", 10), ("ddim", 5), ("dpm++", 10), ("dpm++sde", 10))
MASK = Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png"


def fastest(run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def encode_every_step(pipeline: PITIPipeline) -> None:
    """Make the base encode its condition at every step, as in the released code."""
    base = pipeline.base
    assert isinstance(base, Translator)
    real = base.forward
    prepared = pipeline.prepare(MASK, SamplingOptions(square=True))
    encoded = pipeline.condition.encode(fitted(pipeline.condition, prepared.raw, prepared.canvas, base)[None])
    null = pipeline.condition.null(1, encoded.shape[-2], encoded.shape[-1])

    def forward(x_t: torch.Tensor, t: torch.Tensor, *_: object) -> Prediction:
        half = len(x_t) // 2
        pair = torch.cat([encoded.repeat(half, 1, 1, 1), null.repeat(half, 1, 1, 1)])
        return real(x_t, t, base.encode(pair))

    base.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def with_several_steps(pipeline: PITIPipeline) -> PITIPipeline:
    """The same base with a multi-step upsampler with random weights."""
    recipe = read_recipe("upsampler")
    upsampler = build_translator(recipe, condition_from_config(recipe.condition)).eval()
    made = PITIPipeline(pipeline.base, pipeline.scheduler, pipeline.condition, upsampler, scheduler_of(recipe.schedule))
    made.set_progress_bar_config(disable=True)
    return made


def engines(pipeline: PITIPipeline, make: Callable[[], np.ndarray]) -> dict[str, float]:
    """Seconds of the default with every installed engine; prints the difference to torch's images."""
    rows, wanted = {}, make()
    for name in ENGINES:
        if name == "auto":
            continue
        try:
            pipeline.use_engine(name)
        except EngineError as error:
            print(error)
            continue
        error = np.square(make() - wanted).mean()
        rows[f"default, {name}"] = fastest(make)
        print(f"{name}: {10 * np.log10(255**2 / error) if error else np.inf:.1f} dB from torch's images")
    pipeline.use_engine("torch")
    return rows


def peak() -> float:
    """Peak memory of the process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street")
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    started = time.perf_counter()
    pipeline = PITIPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)

    several = pipeline
    if pipeline.upsampler is not None and pipeline.upsampler.one_step:
        several = with_several_steps(pipeline)

    def make(pipeline: PITIPipeline = pipeline, **settings: object) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        made = pipeline(MASK, num_images=options.samples, generator=generator, square=True, **settings)  # type: ignore[arg-type]
        return np.stack([np.asarray(image, np.float64) for image in made.images])

    make()
    rows = {"first": time.perf_counter() - started, "default": fastest(make)}
    memory = {"default": peak()}
    rows["base only"] = fastest(lambda: make(base_only=True))
    for sampler in ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc"):
        for steps in (10, 20, 50):
            rows[f"base {sampler} {steps}"] = fastest(
                lambda s=sampler, n=steps: make(sampler=s, steps=n, base_only=True), 2
            )
    for sampler, steps in UPSAMPLER_RUNS:
        settings = {"upsampler_sampler": sampler, "upsampler_steps": steps}
        rows[f"cascade, upsampler {sampler} {steps}"] = fastest(lambda s=settings: make(several, **s), 2)
    released = {"sampler": "ddpm", "steps": 250, "upsampler_sampler": "ddpm", "upsampler_steps": "fast27"}
    rows["250 + 27 ancestral steps"] = fastest(lambda: make(several, **released), 1)
    rows |= engines(pipeline, make)
    encode_every_step(several)
    rows["the same, encoding every step"] = fastest(lambda: make(several, **released), 1)
    for name, seconds in rows.items():
        print(f"{name:42s} {seconds:7.2f} s")
    ratio = rows["the same, encoding every step"] / rows["default"]
    each = rows["default"] / options.samples
    print(f"the default takes {each:.2f} s an image and is {ratio:.1f} times as fast as the released way")
    print(f"peak memory {memory['default']:.2f} GiB")
    print(json.dumps({name: round(seconds, 3) for name, seconds in rows.items()}))


if __name__ == "__main__":
    main()
