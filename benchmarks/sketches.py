"""Agreement of a sketch model's samples with their lines, and their distance to photographs.

    python benchmarks/sketches.py --model sketch --data DATA --features SQUEEZENET.safetensors \\
        [--count 190] [--runs dpm++sde:20:2 ddpm:50:1] [--sheet SHEET.png]

DATA is a folder from `piti prepare sketch`. One sample for each of `count` sketches (held out, unless --split is
given), seed 0, at sampler:steps:guidance, evaluated at the base's size. Lines of samples come from the built-in
extractor. kept: the share of the given lines' pixels that have one of these within 2 pixels; meant: the share of these
that have a given line within 2 pixels; chamfer: mean distance between both sets of lines in both directions, in pixels,
each distance clipped at 16. Photographs of the same sketches and of others are upper and chance references. fd as in
prior.py, to training photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from prior import features, frechet
from torch import Tensor

from piti.conditions.sketch import SketchCondition
from piti.core.images import save_png, to_pil, to_tensor
from piti.core.sheets import grid
from piti.data import FolderSpec, PairedFolder
from piti.data.crops import Sample
from piti.data.edges import thinned
from piti.evaluation.sketches import compare_lines, edges_of
from piti.models.perceptual import PerceptualSpec, load_perceptual
from piti.pipelines.pipeline import PITIPipeline

FAR = 16  # pixels


def agreement(image: Tensor, given: Tensor) -> tuple[float, float, float]:
    """kept, meant and chamfer, see above, of an image [3, s, s] in [-1, 1] and lines [s, s]."""
    scores = compare_lines(edges_of(to_pil(image)), given, FAR)
    return scores.kept, scores.meant, scores.chamfer


def row(name: str, images: Sequence[Tensor], lines: Sequence[Tensor], fd: float) -> str:
    found = [agreement(image, given) for image, given in zip(images, lines, strict=True) if given.any()]
    kept, meant, chamfer = (sum(column) / len(found) for column in zip(*found, strict=True))
    return f"{name:24s} kept {100 * kept:5.1f}  meant {100 * meant:5.1f}  chamfer {chamfer:5.2f}  fd {fd:7.1f}"


def sheet_of(condition: SketchCondition, samples: Sequence[Sample], images: Sequence[Image.Image]) -> Image.Image:
    """A row per sketch, for about twelve: the sketch, its sample, its photograph."""
    rows = [
        [condition.preview(samples[k].condition), images[k], to_pil(samples[k].image[None])[0]]
        for k in range(0, len(samples), max(1, len(samples) // 12))
    ]
    return grid([[cell.resize((128, 128)) for cell in row] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sketch")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--conditions", default="sketches")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--count", type=int, default=190)
    parser.add_argument("--split", default="val", help="split of the sketches; use train to choose settings")
    parser.add_argument("--only", default="", help="only sketches whose key has this prefix")
    parser.add_argument("--limit", type=int, default=2000, help="number of training photographs to use")
    parser.add_argument("--runs", nargs="*", default=["dpm++sde:20:2"])
    parser.add_argument("--sheet", type=Path, help="file for a picture of some samples")
    options = parser.parse_args()
    pipeline = PITIPipeline.from_pretrained(options.model, base_only=True)
    pipeline.set_progress_bar_config(disable=True)
    condition, size = pipeline.condition, pipeline.base.image_size
    assert isinstance(condition, SketchCondition)
    network = load_perceptual(PerceptualSpec(network="squeezenet1_1", weights=str(options.features)))
    spec = FolderSpec(root=options.data, conditions=options.conditions, size=size, cache=False)
    train, judged = (PairedFolder(spec, condition, split) for split in ("train", options.split))
    step = max(1, len(train) // options.limit)
    references = features(network, (train.center(k).image for k in range(0, len(train), step)))
    places = [k for k, pair in enumerate(judged.pairs) if pair.key.startswith(options.only)]
    chosen = [judged.center(k) for k in places[:: max(1, len(places) // options.count)][: options.count]]
    lines = [thinned(sample.condition[0] > 0) for sample in chosen]
    photographs = [sample.image for sample in chosen]
    fd = frechet(features(network, photographs), references)
    print(row("their photographs", photographs, lines, fd), f" ({len(chosen)} sketches)", flush=True)
    print(row("others' photographs", photographs[1:] + photographs[:1], lines, fd), flush=True)
    for run in options.runs:
        sampler, steps, guidance = run.split(":")
        generator = torch.Generator().manual_seed(0)
        raws = [sample.condition for sample in chosen]
        given = {"guidance": float(guidance), "steps": int(steps), "sampler": sampler, "batch_size": 32}
        images = pipeline(raws, generator=generator, **given).images
        made = [to_tensor(image) for image in images]
        print(row(run, made, lines, frechet(features(network, made), references)), flush=True)
        if options.sheet is not None:
            name = f"{options.sheet.stem}-{run.replace(':', '-')}.png"
            save_png(sheet_of(condition, chosen, images), options.sheet.with_name(name))


if __name__ == "__main__":
    main()
