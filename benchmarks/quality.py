"""Quality and speed of every sampler at 10, 20 and 50 steps, evaluated by an external script.

    python benchmarks/quality.py --model street --data DATA --referee referee.py [--split val] [--out DIR]

DATA is a paired folder (images/, labels/, splits.json). The referee is called as `referee.py GENERATED --labels LABELS
--real REAL --no-256 --shrink 64` and prints one line of JSON. One sample per mask, seed 0; images are kept in --out, so
that interrupted runs resume. Fréchet distances of few images are large: compare them with that of as many real
photographs, which is printed first. Only the base is evaluated; for the upsampler see upsampling.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from piti.conditions import Condition
from piti.data import FolderSpec, PairedFolder
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline

AT_64 = ("--no-256", "--shrink", "64")


def judge(referee: Path, generated: Path, labels: Path, real: Path, *options: str) -> dict[str, float]:
    """The referee's result for a folder of images; options: more arguments, such as `AT_64`."""
    command = [sys.executable, str(referee), str(generated), "--labels", str(labels), "--real", str(real), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"the referee failed: {run.stderr}")
    return json.loads(run.stdout)


def links(paths: Iterable[object], folder: Path) -> Path:
    """A folder of links to these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, map(str, paths)):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def split_of(data: Path, condition: Condition, split: str) -> PairedFolder:
    return PairedFolder(FolderSpec(root=data, cache=False), condition, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--referee", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--runs", nargs="*", help="runs such as ddpm:50; all by default")
    options = parser.parse_args()
    pipeline = PITIPipeline.from_pretrained(options.model, base_only=True)
    pipeline.set_progress_bar_config(disable=True)
    samplers = ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc")
    runs = options.runs or [f"{name}:{steps}" for name in samplers for steps in (10, 20, 50)] + ["ddpm:250"]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = split_of(options.data, pipeline.condition, options.split).pairs[: options.limit]
        real = [pair.image for pair in split_of(options.data, pipeline.condition, "train").pairs]
        references = links(real, Path(scratch) / "real")
        labels = links([pair.condition for pair in chosen], Path(scratch) / "labels")
        held_out = links([pair.image for pair in chosen], Path(scratch) / "held-out")
        print(
            f"{'photographs':14s} {json.dumps(judge(options.referee, held_out, labels, references, *AT_64))}",
            flush=True,
        )
        for run in runs:
            sampler, _, steps = run.partition(":")
            settings = GenerationOptions.from_flat(
                num=1, seed=0, guidance=options.guidance, steps=int(steps), sampler=sampler, batch=8, square=True
            )
            out = options.out / run.replace(":", "-")
            started = time.perf_counter()
            made = translate_files(pipeline, TranslationFiles([labels], out), settings, options.model).made
            seconds = (time.perf_counter() - started) / max(1, len(made))
            (out / "sheet.png").replace(options.out / f"{out.name}-sheet.png")
            print(
                f"{run:14s} {json.dumps(judge(options.referee, out, labels, references, *AT_64))}  {seconds:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
