"""Loading speed: images per second of one process from a folder, tars and HTTP, and the waiting time of training.

    python benchmarks/loading.py street --data DATA [--seconds 5] [--steps 20]
    python benchmarks/loading.py prior-scenes --shards FOLDER

DATA is packed into tars as by `piti prepare shards`; FOLDER contains tars; a local server provides them by HTTP. Each
source is read three times in turn, and the fastest counts. "in memory" is after an epoch that filled the cache of
`data.cache`, "first epoch" before that. Then a bare training loop of the recipe's network loads batches with two
workers, for the share of time spent waiting.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

import torch

from piti.conditions import Condition
from piti.data import BatchStream, FolderSpec, PairedFolder, SampleSet, loader, open_shards
from piti.diffusion.losses import diffusion_loss
from piti.diffusion.schedule import NoiseSchedule
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from piti.training import Recipe, read_recipe
from piti.training.build import build_condition, build_translator

TURNS = 3
WARM_UP = 3
WORKERS = 2


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback interface; yields its address."""
    with ThreadingTCPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def sources(spec: FolderSpec, packed: Path, address: str, cache: Path) -> dict[str, FolderSpec]:
    """The same images from three sources."""
    names = (
        ["shards.json"] if (packed / "shards.json").is_file() else sorted(path.name for path in packed.glob("*.tar"))
    )
    near = spec.model_copy(update={"shards": (str(packed),), "shard_cache": cache})
    far = near.model_copy(update={"shards": tuple(f"{address}/{name}" for name in names)})
    return ({} if spec.root is None else {"folder": spec}) | {"local tars": near, "tars over HTTP": far}


def opened(spec: FolderSpec, condition: Condition) -> SampleSet:
    """A newly opened sample set, without caches of its own."""
    return open_shards(spec, condition)[0] if spec.shards else PairedFolder(spec, condition, "train")


def rate(samples: SampleSet, batch: int, start: int, seconds: float) -> float:
    """Images per second of this process from step `start` on."""
    stream, step = BatchStream(samples, batch, 0), start
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or step == start:
        stream[step]
        step += 1
    return (step - start) * batch / (time.perf_counter() - began)


def speeds(spec: FolderSpec, condition: Condition, batch: int, seconds: float) -> dict[str, float]:
    """Images per second in the first epoch and from memory."""
    samples = opened(spec.model_copy(update={"cache": False}), condition)
    BatchStream(samples, 1, 0)[0]
    found = {"first epoch": rate(samples, batch, 1, seconds)}
    kept = opened(spec, condition)
    stream, epoch = BatchStream(kept, batch, 0), -(-len(kept) // batch)
    for step in range(epoch):
        stream[step]
    found["in memory"] = rate(kept, batch, epoch, seconds)
    return found


def waiting(recipe: Recipe, samples: SampleSet, condition: Condition, steps: int) -> dict[str, float]:
    """A bare training loop of the recipe's network on two workers: its speed, and the share of waiting time."""
    translator, schedule = build_translator(recipe, condition), NoiseSchedule(recipe.schedule)
    optimizer = torch.optim.AdamW(translator.parameters(), lr=1e-4, fused=True)
    batches = loader(BatchStream(samples, recipe.batch, 0), 0, WARM_UP + steps, WORKERS)
    began = time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            batches.waited()
            began = time.perf_counter()
        batch = next(batches)
        t = torch.randint(0, len(schedule), (recipe.batch,))
        noise = torch.randn_like(batch.image)
        x_t = schedule.q_sample(batch.image, t, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            output, variance = translator(x_t, t, condition.encode(batch.condition), None)
        variance = None if variance is None else variance.float()
        diffusion_loss(output.float(), variance, batch.image, x_t, t, noise, schedule).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return {"images a second": recipe.batch * steps / seconds, "waiting, %": 100 * batches.waited() / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", type=Path)
    either.add_argument("--shards", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--steps", type=int, default=20, help="of training; 0: none")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="change of the recipe, KEY=VALUE")
    options = parser.parse_args()
    given = f"data.root={options.data}" if options.data else f"data.shards=[{options.shards}]"
    recipe = read_recipe(options.recipe, [given, *options.changes])
    condition = build_condition(recipe)
    with tempfile.TemporaryDirectory() as place:
        packed, cache = options.shards or Path(place) / "packed", Path(place) / "cache"
        if options.data:
            conditions = recipe.data.conditions
            folders = (conditions,) if isinstance(conditions, str) else tuple(conditions.values())
            print(pack_shards(PackJob(options.data, packed, recipe.data.images, folders, shard_mib=8)))
        with served(packed) as address:
            given = sources(recipe.data, packed, address, cache)
            best: dict[str, dict[str, float]] = {name: {} for name in given}
            for _ in range(TURNS):
                for name, spec in given.items():
                    for key, value in speeds(spec, condition, recipe.batch, options.seconds).items():
                        best[name][key] = max(best[name].get(key, value), value)
            for name, spec in given.items():
                for cached in (False, True) if options.steps else ():
                    samples = opened(spec.model_copy(update={"cache": cached}), condition)
                    found = waiting(recipe, samples, condition, options.steps)
                    best[name] |= {f"{key}{', cached' * cached}": value for key, value in found.items()}
            for name, found in best.items():
                print(json.dumps({"source": name, **{key: round(value, 2) for key, value in found.items()}}))


if __name__ == "__main__":
    main()
