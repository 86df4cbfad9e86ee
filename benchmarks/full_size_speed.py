"""CPU-seconds per image of the released networks at full size: the released code's method, the engine, and few steps.

    python -m benchmarks.full_size_speed [--rounds 3] [--json FILE]

Weights are random: they do not affect time, and quality cannot be evaluated without the released ones. Each network has
its own process, in which one step in float32 with torch and one in OpenVINO alternate for several rounds; medians of
the process's CPU-seconds are used, so that other work has little influence. All steps cost the same, so an image costs
its number of steps times that, plus the encoder. The released method encodes the condition at every step, and runs 250
guided steps (a batch of two) in the base and 27 in the upsampler. Decibels compare outputs of networks, and images
sampled in few steps, between the engine and float32. Needs 6 GiB of memory and the extra `cpu`; about four minutes on
two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size import NETWORKS, peak
from piti.diffusion.guidance import Guidance, conditioned, guided
from piti.diffusion.samplers import sample
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.engine.openvino import OpenVinoEngine, computes_bfloat16
from piti.models import Prediction, Tokens, Translator
from piti.models.translator import NetworkStep

FEW = {"base": 4, "upsampler": 2}
WAYS: dict[str, tuple[str, int, str, int]] = {
    "released: float32, 250 guided + 27, encoding every step": ("released", 250, "released", 27),
    "float32, 250 guided + 27, encoding once": ("float32", 250, "float32", 27),
    "engine, 250 guided + 27": ("engine", 250, "engine", 27),
    "engine, 20 guided + 10": ("engine", 20, "engine", 10),
    "engine, 20 guided + 5": ("engine", 20, "engine", 5),
    "engine, 20 guided + 2": ("engine", 20, "engine", 2),
    "engine, distilled: 4 with guidance built in + 2": ("engine, alone", 4, "engine", 2),
}
"""Kind and number of steps of the base, and of the upsampler."""


def processor(run: Callable[[], Any]) -> float:
    """CPU-seconds of a call, of all threads."""
    before = time.process_time()
    run()
    return time.process_time() - before


def decibels(made: Tensor, wanted: Tensor) -> float:
    """PSNR over the range of `wanted`."""
    error = (made.double() - wanted.double()).square().mean()
    return float(10 * torch.log10((wanted.double().max() - wanted.double().min()) ** 2 / error)) if error else math.inf


@torch.no_grad()
def measured(network: str, rounds: int) -> dict[str, float]:
    """CPU-seconds per step of a network in each way, decibels, and GiB."""
    torch.manual_seed(0)
    translator = Translator(**NETWORKS[network]).eval().requires_grad_(False)
    step, side = OpenVinoEngine(computes_bfloat16()).step(translator), translator.image_size
    given = torch.rand(1, 3, 256, 256).repeat(2, 1, 1, 1)
    low_res = None if translator.low_res is None else torch.rand(1, 3, translator.low_res, translator.low_res) * 2 - 1
    x_T, guided_pair = torch.randn(1, 3, side, side), network == "base"
    one, two = translator.encode(given[:1]), translator.encode(given)
    rows = 2 if guided_pair else 1
    x, tokens, t = x_T.repeat(rows, 1, 1, 1), two if guided_pair else one, torch.tensor([500])

    def torchs(tokens: Tokens) -> Prediction:
        return translator(x, t, tokens, low_res)

    runs: dict[str, Callable[[], Any]] = {
        "released": lambda: torchs(translator.encode(given[:rows])),
        "float32": lambda: torchs(tokens),
        "engine": lambda: translator(x, t, tokens, low_res, step=step),
        "engine, alone": lambda: translator(x_T, t, one, low_res, step=step),
        "encoder": lambda: translator.encode(given[:rows]),
    }
    found: dict[str, float] = {"converting, s": processor(runs["engine"]), "dB of a step": math.inf}
    runs["engine, alone"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(processor(run))
    for at in (5, 250, 500, 999):
        t = torch.tensor([at])
        found["dB of a step"] = min(found["dB of a step"], decibels(runs["engine"]().output, runs["float32"]().output))
    images = [few(translator, x_T, one, low_res, FEW[network], computed) for computed in (step, None)]
    found["dB of images"] = decibels(*images)
    return found | {name: statistics.median(values) for name, values in times.items()} | {"peak, GiB": peak()}


def few(
    translator: Translator, x_T: Tensor, tokens: Tokens, low_res: Tensor | None, steps: int, step: NetworkStep | None
) -> Tensor:
    """Images [1, 3, H, W] sampled in few steps without guidance."""
    schedule = NoiseSchedule(ScheduleSpec())

    def predict(x_t: Tensor, t: Tensor, given: Tokens) -> Prediction:
        return translator(x_t, t, given, low_res, step=step)

    denoise = guided(conditioned(predict, tokens, None, schedule), Guidance(w=0.0), schedule)
    return sample(denoise, x_T, schedule, "ddim", steps, [torch.Generator()])


def table(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row per way: CPU-seconds per image, and the factor to the released method's."""
    base, upsampler = found["base"], found["upsampler"]
    rows: list[dict[str, Any]] = []
    for way, (first, steps, second, more) in WAYS.items():
        seconds = steps * base[first] + more * upsampler[second]
        if first != "released":
            seconds += base["encoder"] + upsampler["encoder"]
        rows.append({"way": way, "CPU-seconds": round(seconds, 1), "times fewer": 0.0})
    for row in rows:
        row["times fewer"] = round(rows[0]["CPU-seconds"] / row["CPU-seconds"], 1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", choices=list(NETWORKS), help="measure only this network, and print JSON")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.network is not None:
        print(json.dumps(measured(options.network, options.rounds)))
        return
    found: dict[str, dict[str, float]] = {}
    for network in NETWORKS:
        command = [sys.executable, "-m", "benchmarks.full_size_speed", "--network", network]
        output = subprocess.run(
            [*command, "--rounds", str(options.rounds)], stdout=subprocess.PIPE, text=True, check=True
        )
        found[network] = json.loads(output.stdout.splitlines()[-1])
        for name, value in found[network].items():
            print(f"{network:10s} {name:16s} {value:8.2f}", flush=True)
    rows = table(found)
    print("| way | CPU-seconds an image | times fewer |\n|---|---:|---:|")
    for row in rows:
        print(f"| {row['way']} | {row['CPU-seconds']:,.1f} | {row['times fewer']:.1f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"networks": found, "ways": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
