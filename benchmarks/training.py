"""Training speed: the package's loop beside a bare PyTorch loop, same network, batch and precision.

    python benchmarks/training.py street --data DATA [--steps 40]
    python benchmarks/training.py upsampler --data DATA --stage 1 --set perceptual.weights=FILE

Both run in turn, twice, in one process; the faster of the two turns counts. The bare loop has its batches in
memory and does nothing but forward, eq. 3's loss, backward, clip and step: what it is ahead of an upsampler's stage
by is what degradation, perceptual and adversarial losses cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from piti.data.batches import BatchStream
from piti.diffusion.losses import diffusion_loss
from piti.diffusion.schedule import NoiseSchedule
from piti.training import Recipe, read_recipe, train
from piti.training.build import build_condition, build_translator, low_res_of, open_data
from piti.training.stages import Stage

WARM_UP = 5


def bare_loop(recipe: Recipe, steps: int) -> float:
    """Images a second of the bare loop."""
    condition = build_condition(recipe)
    training, _ = open_data(recipe, condition)
    batch = BatchStream(training, recipe.batch, recipe.seed, low_res=low_res_of(recipe))[0]
    translator, schedule = build_translator(recipe, condition), NoiseSchedule(recipe.schedule)
    optimizer = torch.optim.AdamW(translator.parameters(), lr=1e-4, fused=True)
    encoded = condition.encode(batch.condition)
    started = time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            started = time.perf_counter()
        t = torch.randint(0, len(schedule), (recipe.batch,))
        noise = torch.randn_like(batch.image)
        x_t = schedule.q_sample(batch.image, t, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            output, variance = translator(x_t, t, encoded, batch.low_res)
        variance = None if variance is None else variance.float()
        diffusion_loss(output.float(), variance, batch.image, x_t, t, noise, schedule).total.backward()
        torch.nn.utils.clip_grad_norm_(translator.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return recipe.batch * steps / (time.perf_counter() - started)


def at_once(stage: Stage, steps: int) -> Stage:
    """The stage with its losses on images acting from the start."""
    losses = {name: getattr(stage, name) for name in ("perceptual", "adversarial")}
    acting = {name: loss.model_copy(update={"after": 0}) for name, loss in losses.items() if loss is not None}
    return stage.model_copy(update={"steps": steps, **acting})


def our_loop(recipe: Recipe, number: int, steps: int) -> float:
    """Images a second of `piti train`, everything included but previews and checkpoints."""
    every = steps + WARM_UP
    changes = {
        "log_every": WARM_UP,
        "preview": recipe.preview.model_copy(update={"every": every, "count": 1, "steps": 1}),
        "checkpoint": recipe.checkpoint.model_copy(update={"every": every}),
        "stages": (at_once(recipe.stages[number], every),),
    }
    with tempfile.TemporaryDirectory() as folder:
        train(recipe.model_copy(update=changes), Path(folder) / "run", console=Console(quiet=True))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "seconds" in row]
    first, last = rows[0], rows[-1]
    return (last["images_seen"] - first["images_seen"]) / (last["seconds"] - first["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--stage", type=int, default=0, help="which of the recipe's stages, from 0")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="KEY=VALUE on top of the recipe")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe, [f"data.root={options.data}", *options.changes])
    rates = {"bare": 0.0, "piti": 0.0}
    for _ in range(2):
        rates["bare"] = max(rates["bare"], bare_loop(recipe, options.steps))
        rates["piti"] = max(rates["piti"], our_loop(recipe, options.stage, options.steps))
    print(json.dumps({f"{name}_images_per_second": round(rate, 1) for name, rate in rates.items()}))
    print(f"piti runs at {100 * rates['piti'] / rates['bare']:.0f}% of the bare loop's rate")


if __name__ == "__main__":
    main()
