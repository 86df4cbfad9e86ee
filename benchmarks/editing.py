"""Editing: reconstruction of images by inversion and sampling, duration of edits, and a picture of examples.

    python benchmarks/editing.py [--data DATA] [--count 4] [--steps 50 100 250] [--refinements 0 1 2 3] \\
        [--threads 2] [--upsampler MODEL] [--edits] \\
        [--picture docs/pictures/editing.jpg]

Images are samples of `street` for its example masks, and with --data (a folder of images, labels and splits.json, of
one size) held-out photographs too. base: the 64 px image alone; cascade: the 256 px image, inverted through base and
upsampler, each in that many steps, and sampled back by both, with the base's result as the upsampler's input; all with
their own masks without guidance. The bundled one-step upsamplers cannot invert: --upsampler names a model or run with a
multi-step upsampler; without it the cascade is omitted. PSNR in dB of 8-bit images, mean and minimum over the images,
"exact" if all pixels are equal. Seconds are for the inversion alone, per image, with all inverted at once. --edits:
seconds of one edit with its defaults. --picture: four uses, written as JPEG.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from sampling import fastest
from torch import Tensor

from piti.conditions import MaskCondition
from piti.core.connected_components import connected
from piti.core.images import quantized, read_rgb
from piti.core.sheets import grid
from piti.data import FolderSpec, PairedFolder
from piti.diffusion.inversion import SAMPLER
from piti.editing import EditSettings, edit
from piti.editing.run import on_canvas, psnr, reduced
from piti.editing.trajectory import UNGUIDED, Progress, Walk
from piti.pipelines.cascade import Batch, Network, NetworkSampling, Prepared
from piti.pipelines.pipeline import PITIPipeline

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "street"
SCENES = ("avenue", "crossing", "high_street", "ring_road")
SILENT = Progress(None, 0)


def example(pipeline: PITIPipeline, name: str, seed: int) -> tuple[Tensor, Image.Image]:
    """A raw example mask, and a sample for it."""
    raw = pipeline.read(EXAMPLES / f"{name}.png")
    return raw, pipeline(raw, generator=torch.Generator().manual_seed(seed)).images[0]


def photographs(pipeline: PITIPipeline, data: Path, count: int) -> list[tuple[Tensor, Image.Image]]:
    """Held-out photographs, evenly spread, and their masks."""
    pairs = PairedFolder(FolderSpec(root=data, cache=False), pipeline.condition, "val").pairs
    chosen = pairs[:: max(1, len(pairs) // count)][:count]
    return [(pipeline.read(Path(str(pair.condition))), read_rgb(Path(str(pair.image)))) for pair in chosen]


def walk(network: Network, images: Tensor, conditions: list[Prepared], steps: int, refinements: int) -> Walk:
    """Trajectories of all images with their own masks."""
    tokens, _ = network.encode(Batch(conditions, list(range(len(conditions))), []), with_null=False)
    settings = NetworkSampling(UNGUIDED, steps, SAMPLER)
    return Walk(network, settings, refinements, 0.0, images, None, (tokens, None), (tokens, None))


@torch.no_grad()
def returns(pipeline: PITIPipeline, pairs: list[tuple[Tensor, Image.Image]], steps: int, refinements: int) -> str:
    """A row: PSNR of the reconstruction at both sizes, and seconds."""
    conditions = [pipeline.prepare(raw) for raw, _ in pairs]
    canvas = conditions[0].canvas
    large = torch.cat([on_canvas(image, canvas) for _, image in pairs])
    small = torch.cat([reduced(image[None], canvas.scale) for image in large])
    base, upsampler = pipeline.base_network(), pipeline.upsampler_network()
    assert isinstance(base, Network)
    down = walk(base, small, conditions, steps, refinements)
    started = time.perf_counter()
    small_noise = down.invert(SILENT)
    of_base = (time.perf_counter() - started) / len(conditions)
    back = quantized(small_noise.back(SILENT))
    found = [(back, small, of_base)]
    if upsampler is not None and not upsampler.translator.one_step:
        up = walk(upsampler, large, conditions, steps, refinements)
        started = time.perf_counter()
        large_noise = up.invert(SILENT, small)
        of_both = of_base + (time.perf_counter() - started) / len(conditions)
        found.append((quantized(large_noise.back(SILENT, back)), large, of_both))
    cells = []
    for made, want, seconds in found:
        each = [psnr(canvas.crop(one), canvas.crop(other)) for one, other in zip(made, want, strict=True)]
        mean, least = (f"{value:.1f}" if math.isfinite(value) else "exact" for value in (fmean(each), min(each)))
        cells.append(f"{mean} ({least}) | {seconds:.1f}")
    return f"| {steps} | {refinements} | {' | '.join(cells)} |"


# The picture


def largest(raw: Tensor, index: int) -> Tensor:
    """The largest region [h, w] of a class."""
    numbers = connected((raw[0] == index).long())
    inside = numbers[raw[0] == index]
    return numbers == inside.mode().values


def uses(pipeline: PITIPipeline) -> list[tuple[str, Image.Image, Tensor, Tensor]]:
    """(name, image, its mask, the changed mask) of each example."""
    condition = pipeline.condition
    assert isinstance(condition, MaskCondition)
    index = {name: k for k, name in enumerate(condition.classes.names)}
    high, of_high = example(pipeline, "high_street", 2)
    avenue, of_avenue = example(pipeline, "avenue", 1)
    ring, of_ring = example(pipeline, "ring_road", 3)
    crossing, of_crossing = example(pipeline, "crossing", 1)
    removed, composed, other, grown = high.clone(), avenue.clone(), ring.clone(), crossing.clone()
    removed[0][largest(high, index["car"])] = index["road"]
    composed[0][largest(crossing, index["car"])] = index["car"]
    other[0][largest(ring, index["building"])] = index["tree"]
    taller = largest(crossing, index["building"])
    for rows in range(1, 70):
        taller[:-rows] |= largest(crossing, index["building"])[rows:]
    grown[0][taller & (crossing[0] == index["sky"])] = index["building"]
    return [
        ("removal", of_high, high, removed),
        ("composition", of_avenue, avenue, composed),
        ("class", of_ring, ring, other),
        ("shape", of_crossing, crossing, grown),
    ]


def picture(pipeline: PITIPipeline, out: Path, width: int = 240, height: int = 180) -> None:
    """Four examples: mask, image, changed mask, region, the edit without new noise, and two with it."""
    rows = []
    for name, image, before, after in uses(pipeline):
        still = edit(pipeline, image, after, before, settings=EditSettings.from_flat(variety=0.0))
        result = edit(pipeline, image, after, before, num_images=2, generator=torch.Generator().manual_seed(0))
        print(f"{name}: {100 * result.share:.1f}% repainted, outside {result.outside} dB", flush=True)
        masks = [pipeline.condition.preview(raw) for raw in (before, after)]
        cells = [masks[0], image, masks[1], result.region, still.images[0], *result.images]
        rows.append([cell.convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for cell in cells])
    words = ["its mask", "image", "changed mask", "region", "variety 0", "variety 0.7", "variety 0.7"]
    grid(rows, headings=words).save(out, quality=82)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="*", default=[50, 100, 250])
    parser.add_argument("--refinements", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--upsampler", help="a model with a multi-step upsampler")
    parser.add_argument("--edits", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = PITIPipeline.from_pretrained("street", upsampler=options.upsampler)
    pipeline.set_progress_bar_config(disable=True)
    sets = {"samples": [example(pipeline, name, k) for k, name in enumerate(SCENES[: options.count])]}
    if options.data is not None:
        sets["photographs"] = photographs(pipeline, options.data, options.count)
    for name, pairs in sets.items():
        print(f"{len(pairs)} {name}\n| steps | refinements | base | s | cascade | s |")
        for steps in options.steps:
            for refinements in options.refinements:
                print(returns(pipeline, pairs, steps, refinements), flush=True)
    if options.edits:
        _, image, before, after = uses(pipeline)[0]
        for count in (1, 4):
            seconds = fastest(lambda count=count: edit(pipeline, image, after, before, num_images=count))
            print(f"an edit, {count} images: {seconds:.1f} s with {torch.get_num_threads()} threads", flush=True)
    if options.picture is not None:
        picture(pipeline, options.picture)


if __name__ == "__main__":
    main()
