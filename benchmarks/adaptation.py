"""Compare models of one task, such as one adapted from a prior and one trained from scratch.

    python benchmarks/adaptation.py --data DATA --referee referee.py scratch=RUN adapted=RUN [--out DIR]
        [--sheet docs/pictures/adaptation.png --masks STEM …]

DATA is a paired folder (images/, labels/, splits.json). Every base generates one sample per mask of the split, seed 0,
with the same sampler; images are kept in --out, so that interrupted runs resume. The referee is called as in
quality.py. For training runs, the logged validation losses are also printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image
from quality import AT_64, judge, links, split_of
from upsampling import translate

from piti.checkpoints.folder import ModelFolder, find_model
from piti.conditions import Condition
from piti.core.images import center_box, crop_resize, open_image, read_rgb, save_png
from piti.core.sheets import grid
from piti.data import Pair
from piti.generation.options import GenerationOptions
from piti.pipelines.pipeline import PITIPipeline

SHOWN = 128  # side of an image on the sheet


def losses_of(run: Path) -> dict[int, float]:
    """Step => validation loss from a run's log; empty for a model that is not a run."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {row["step"]: round(row["validation_loss"], 4) for row in rows if "validation_loss" in row}


def sheet(pairs: list[Pair], condition: Condition, folders: dict[str, Path]) -> Image.Image:
    """A row per pair: the mask, each model's image, the photograph."""
    rows = []
    for pair in pairs:
        mask, photograph = Path(str(pair.condition)), read_rgb(pair.image)
        preview = condition.preview(condition.squared(condition.load(mask)))
        cells = [preview.resize((SHOWN, SHOWN), Image.Resampling.NEAREST)]
        for folder in folders.values():
            cells.append(open_image(folder / f"{mask.stem}_0.png").resize((SHOWN, SHOWN), Image.Resampling.BICUBIC))
        rows.append([*cells, crop_resize(photograph, center_box(*photograph.size), SHOWN)])
    return grid(rows, headings=["mask", *folders, "photograph"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=MODEL: a bundled model, a folder, a training run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--referee", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="number of masks, evenly spread over the split")
    parser.add_argument("--sampler", default="dpm++sde")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("out/adaptation"))
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--masks", nargs="*", default=[], help="stems of the masks on the sheet")
    options = parser.parse_args()
    models = {name: model for name, _, model in (item.partition("=") for item in options.models)}
    condition = ModelFolder.open(find_model(next(iter(models.values())))).condition
    pairs = split_of(options.data, condition, options.split).pairs
    pairs = pairs[:: max(1, len(pairs) // (options.limit or len(pairs)))][: options.limit]
    settings = GenerationOptions.from_flat(
        num=1, guidance=options.guidance, steps=options.steps, sampler=options.sampler, base_only=True, square=True
    )
    folders: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as scratch:
        real = [pair.image for pair in split_of(options.data, condition, "train").pairs]
        references = links(real, Path(scratch) / "real")
        labels = links([pair.condition for pair in pairs], Path(scratch) / "labels")
        for name, model in models.items():
            pipeline = PITIPipeline.from_pretrained(model, base_only=True)
            pipeline.set_progress_bar_config(disable=True)
            folders[name] = options.out / f"{name}-{options.sampler}-{options.steps}-{options.guidance:g}"
            translate(pipeline, labels, folders[name], settings, name)
            print(f"{name:14s} {json.dumps(judge(options.referee, folders[name], labels, references, *AT_64))}")
            print(f"{'':14s} validation losses {losses_of(Path(model))}", flush=True)
    if options.sheet is not None:
        shown = [pair for pair in pairs if Path(str(pair.image)).stem in options.masks] or pairs[:5]
        save_png(sheet(shown, condition, folders), options.sheet)


if __name__ == "__main__":
    main()
