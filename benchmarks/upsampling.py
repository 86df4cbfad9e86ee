"""Contribution of each part of the upsampler's training: bicubic, then several trained upsamplers, on the same masks.

    python benchmarks/upsampling.py --data DATA --referee referee.py --model street \\
        plain=RUN +degradation=RUN +perceptual=RUN +adversarial=RUN [--out DIR] [--sheet docs/pictures/upsampler.png] \\
        [--real-esrgan realesrgan_x4plus.safetensors]

DATA is a paired folder (images/, labels/, splits.json). All upsamplers enlarge the same 64 px images of `--model`'s
base (seed 0, one per validation mask). The referee is called as `referee.py GENERATED --labels LABELS --real REAL` and
prints one line of JSON; REAL are the training photographs. --real-esrgan adds the external Real-ESRGAN x4plus (weights
with the keys of `piti.baselines.rrdb`). Images are kept in --out, so that interrupted runs resume.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from quality import judge, links, split_of

from piti.baselines.rrdb import load_real_esrgan
from piti.conditions import Condition
from piti.core.images import center_box, crop_resize, open_image, read_rgb, save_png
from piti.core.sheets import grid
from piti.data.pairs import Pair
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline

SIDE = 256


def enlarge(small: Path, target: Path) -> None:
    """Enlarge the base's images by bicubic interpolation."""
    for path in sorted(small.glob("*_0.png")):
        save_png(open_image(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC), target / path.name)


def enlarge_by_real_esrgan(weights: Path, small: Path, target: Path) -> float:
    """Enlarge the base's images by Real-ESRGAN x4plus, one at a time; returns seconds per image."""
    network, files = load_real_esrgan(weights), sorted(small.glob("*_0.png"))
    started = time.perf_counter()
    for path in files:
        save_png(network.enlarged(read_rgb(path)), target / path.name)
    return (time.perf_counter() - started) / len(files)


def translate(pipeline: PITIPipeline, labels: Path, out: Path, settings: GenerationOptions, name: str) -> float:
    """Generate one image per mask; returns seconds per image."""
    started = time.perf_counter()
    made = translate_files(pipeline, TranslationFiles([labels], out), settings, name).made
    (out / "sheet.png").unlink()
    return (time.perf_counter() - started) / max(1, len(made))


def side_by_side(
    folders: dict[str, Path], masks: list[Path], photographs: list[Path], pipeline: PITIPipeline
) -> Image.Image:
    """A row per mask: the mask, each result, the photograph."""
    rows = []
    for mask, photograph in zip(masks, photographs, strict=True):
        preview = pipeline.condition.preview(pipeline.read(mask, square=True))
        cells = [preview.resize((SIDE, SIDE), Image.Resampling.NEAREST)]
        cells += [open_image(folder / f"{mask.stem}_0.png") for folder in folders.values()]
        real = read_rgb(photograph)
        rows.append([*cells, crop_resize(real, center_box(*real.size), SIDE)])
    return grid(rows, headings=["mask", *folders, "photograph"])


@dataclass(frozen=True)
class Masks:
    """The validation masks to translate, and the reference photographs."""

    pairs: list[Pair]
    labels: Path
    held_out: Path
    """The masks' photographs."""
    references: Path
    """The training photographs."""


def masks_of(data: Path, condition: Condition, limit: int | None, scratch: Path) -> Masks:
    """The first `limit` validation pairs of DATA, linked into folders of `scratch`."""
    chosen = split_of(data, condition, "val").pairs[:limit]
    training = split_of(data, condition, "train").pairs
    return Masks(
        chosen,
        labels=links([pair.condition for pair in chosen], scratch / "labels"),
        held_out=links([pair.image for pair in chosen], scratch / "held-out"),
        references=links([pair.image for pair in training], scratch / "real"),
    )


def compare(options: argparse.Namespace, base: PITIPipeline, masks: Masks) -> dict[str, Path]:
    """Generate and evaluate the images of every method; returns their folders by name."""

    def show(name: str, folder: Path, note: str = "") -> None:
        found = judge(options.referee, folder, masks.labels, masks.references)
        print(f"{name:16s} {json.dumps(found)}  {note}", flush=True)

    show("photographs", masks.held_out)
    small = options.out / "base"
    plain = GenerationOptions.from_flat(num=1, base_only=True, square=True)
    translate(base, masks.labels, small, plain, options.model)
    folders = {"bicubic": options.out / "bicubic"}
    enlarge(small, folders["bicubic"])
    show("bicubic", folders["bicubic"])
    if options.real_esrgan:
        folders["Real-ESRGAN"] = options.out / "real-esrgan"
        seconds = enlarge_by_real_esrgan(options.real_esrgan, small, folders["Real-ESRGAN"])
        show("Real-ESRGAN", folders["Real-ESRGAN"], f"{seconds:.2f} s an image")
    settings = GenerationOptions.from_flat(
        num=1, upsampler_sampler=options.sampler, upsampler_steps=options.steps, square=True
    )
    for entry in options.runs:
        name, _, run = entry.partition("=")
        pipeline = PITIPipeline.from_pretrained(options.model, upsampler=run)
        pipeline.set_progress_bar_config(disable=True)
        folders[name] = options.out / name.strip("+")
        seconds = translate(pipeline, masks.labels, folders[name], settings, options.model)
        show(name, folders[name], f"{seconds:.2f} s an image")
    return folders


def parsed() -> argparse.Namespace:
    """Parse the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=RUN")
    parser.add_argument("--model", default="street")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--referee", type=Path, required=True)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/upsampling"))
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--real-esrgan", type=Path)
    parser.add_argument("--shown", type=int, nargs="*", default=[0, 10, 20, 30])
    return parser.parse_args()


def main() -> None:
    options = parsed()
    base = PITIPipeline.from_pretrained(options.model, base_only=True)
    base.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as scratch:
        masks = masks_of(options.data, base.condition, options.limit, Path(scratch))
        folders = compare(options, base, masks)
        if options.sheet:
            shown = [masks.pairs[k] for k in options.shown if k < len(masks.pairs)]
            conditions = [Path(str(pair.condition)) for pair in shown]
            photographs = [Path(str(pair.image)) for pair in shown]
            save_png(side_by_side(folders, conditions, photographs, base), options.sheet)


if __name__ == "__main__":
    main()
