"""Training speed of the package, compared with a bare PyTorch loop and the released trainer's operations.

    python -m benchmarks.training street --data DATA [--stage 1] [--rounds 5] [--steps 2]
    python -m benchmarks.training upsampler --data DATA --stage 1 --set perceptual.weights=FILE

`benchmarks/steps.py` describes the three; network, batch and device are the same. A round runs a few steps of each in
one process, every second round in reverse order, so that drift cancels. Prints medians of the rounds in wall time and,
on a CPU, in the process's CPU time, which other processes disturb less (loading has its own process); ratios are
medians of the rounds' ratios of images per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.steps import Bare, Ours, Released
from piti.training import read_recipe

WARM_UP = 3
Seconds = tuple[float, float]
"""Wall time and CPU time."""


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def timed(run: Callable[[], object], times: int, device: torch.device) -> Seconds:
    """Average duration of a call."""
    synchronize(device)
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - clock) / times, (time.process_time() - cpu) / times


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, steps: int, device: torch.device
) -> dict[str, list[Seconds]]:
    """Seconds per step of each way in each round."""
    for run in ways.values():
        timed(run, WARM_UP, device)
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            found[name].append(timed(ways[name], steps, device))
    return found


def table(found: dict[str, list[Seconds]], batch: int, clock: int) -> list[dict[str, float | str]]:
    """A row per way: images per second by a clock, and the package's relative speed."""
    rows: list[dict[str, float | str]] = []
    for name, rounds in found.items():
        ratios = [theirs[clock] / ours[clock] for theirs, ours in zip(rounds, found["piti"], strict=True)]
        rate = batch / statistics.median(one[clock] for one in rounds)
        rows.append(
            {"way": name, "images_per_second": round(rate, 2), "piti_beside_it": round(statistics.median(ratios), 2)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=2, help="number of steps of each way in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", type=int, default=0, help="index of the recipe's stage, from 0")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="change of the recipe, KEY=VALUE")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe, [f"data.root={options.data}", *options.changes])
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(recipe, options.stage, Path(folder) / "run")
        device = ours.trainer.device
        others = {
            "bare loop": Bare(recipe, options.stage, device),
            "released operations": Released(recipe, options.stage, device),
        }
        found = in_turn({"piti": ours, **others}, options.rounds, options.steps, device)
        del ours
    where = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch": recipe.batch,
        "precision": recipe.precision,
    }
    print(json.dumps(where | {"stage": recipe.stages[options.stage].name}))
    for clock, name in enumerate(("clock", "CPU time") if device.type == "cpu" else ("clock",)):
        print(f"\n| by {name} | images/s | piti beside it |\n|---|---:|---:|")
        for row in table(found, recipe.batch, clock):
            print(f"| {row['way']} | {row['images_per_second']:.1f} | {row['piti_beside_it']:.2f} |")


if __name__ == "__main__":
    main()
