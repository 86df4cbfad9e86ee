"""Generate the documentation's pictures: `python tools/pictures.py [NAME …]`, with names from `PICTURES`.

Conditions are from examples/, or the prior's captions; samples are the first ones of seed 0, as from `piti translate`.
They are written to docs/pictures/ as JPEG. `ladder` compares with Real-ESRGAN x4plus, whose weights are not in the
package: give them by REAL_ESRGAN=FILE (safetensors, keys as in `piti.baselines.rrdb`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from piti.baselines.rrdb import load_real_esrgan
from piti.conditions.sketch import city_block_distance
from piti.core.sheets import grid
from piti.data.edges import draw_lines, thinned
from piti.evaluation.sketches import NEAR, compare_lines, edges_of
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline

ROOT = Path(__file__).resolve().parent.parent
QUALITY = 86
WIDTH = 1300  # at most
SIDE = 192
SHOWN = 144
CAPTIONS = ("a photo of a forest", "a photo of the sea", "a photo of a mountain", "a photo of a glacier")
BUILT = ("a photo of a street", "a photo of buildings")


def rows_of(
    model: str,
    inputs: Sequence[Path | str],
    num: int = 4,
    square: bool = False,
    base_only: bool = False,
    steps: int | None = None,
) -> list[list[Image.Image]]:
    """A row for each file or caption: the condition, and its samples."""
    upsampler = "sketch" if model == "scenes-prior" else None
    pipeline = PITIPipeline.from_pretrained(model, upsampler=upsampler)
    pipeline.set_progress_bar_config(disable=True)
    files = [item for item in inputs if isinstance(item, Path)]
    texts = [item for item in inputs if isinstance(item, str)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        options = GenerationOptions.from_flat(num=num, square=square, base_only=base_only, steps=steps)
        translate_files(pipeline, TranslationFiles(files, out, texts=texts), options, model)
        for item in inputs:
            stem = item.stem if isinstance(item, Path) else item.replace(" ", "-")
            images = [Image.open(out / f"{stem}_{k}.png").convert("RGB") for k in range(num)]
            preview = pipeline.condition.preview(pipeline.read(item, square=square)).resize(images[0].size)
            rows.append([preview, *images])
    return rows


def examples(kind: str, *names: str) -> list[Path]:
    folder = ROOT / "examples" / kind
    return [folder / f"{name}.png" for name in names] or sorted(folder.glob("*.png"))


def tasks() -> list[list[Image.Image]]:
    """Captions, masks and sketches, all cropped to squares of one size."""
    rows = rows_of("scenes-prior", CAPTIONS[:2])
    rows += rows_of("street", examples("street", "avenue", "high_street"), square=True)
    rows += rows_of("sketch", examples("sketch", "mountain", "street"))
    return [[cell.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for cell in row] for row in rows]


def samples(model: str, conditions: Sequence[Path | str], num: int) -> list[list[Image.Image]]:
    """The first samples of seed 0 of all examples of a model, without selection: 32 or more."""
    cells = rows_of(model, conditions, num=num)
    return [[cell.resize((SHOWN * cell.width // cell.height, SHOWN)) for cell in row] for row in cells]


def hero() -> list[list[Image.Image]]:
    """Masks and sketches, each beside two samples, separated by a white column."""
    left = rows_of("street", examples("street", "avenue", "crossing"), num=2)
    right = rows_of("sketch", examples("sketch", "mountain", "street"), num=2)
    return [[*mask, Image.new("RGB", (24, 256), "white"), *sketch] for mask, sketch in zip(left, right, strict=True)]


def joined(rows: list[list[Image.Image]], height: int = 240, gap: int = 4) -> Image.Image:
    """Cells of any aspect ratio at one height, side by side; rows of equal cells one below the other."""
    scaled = [[cell.resize((round(cell.width * height / cell.height), height)) for cell in row] for row in rows]
    width = max(sum(cell.width + gap for cell in row) - gap for row in scaled)
    sheet = Image.new("RGB", (width, len(rows) * (height + gap) - gap), "white")
    for k, row in enumerate(scaled):
        left = 0
        for cell in row:
            sheet.paste(cell, (left, k * (height + gap)))
            if cell.width > height / 2 and sheet.getpixel((left, k * (height + gap))) == (255, 255, 255):
                outline = (left, k * (height + gap), left + cell.width - 1, (k + 1) * (height + gap) - gap - 1)
                ImageDraw.Draw(sheet).rectangle(outline, outline="#c5ccd3")
            left += cell.width + gap
    return sheet


def ladder() -> Image.Image:
    """The base's 64 px images enlarged in three ways: bicubic, by Real-ESRGAN x4plus, and by the upsampler of
    `street`."""
    weights = os.environ.get("REAL_ESRGAN")
    if weights is None:
        sys.exit("ladder: give the weights of Real-ESRGAN x4plus by REAL_ESRGAN=FILE")
    masks = examples("street", "avenue", "crossing")
    network = load_real_esrgan(Path(weights))
    rows = []
    for ours, (_, small) in zip(
        rows_of("street", masks, num=1), rows_of("street", masks, 1, base_only=True), strict=True
    ):
        size = ours[1].size
        other = network.enlarged(small).resize(size)
        rows.append([ours[0], small.resize(size, Image.Resampling.BICUBIC), other, ours[1]])
    return grid(rows, headings=["mask", "64 px, bicubic", "Real-ESRGAN x4plus", "street's upsampler"])


def students() -> Image.Image:
    """`street` with its twelve guided steps and with four, and `street-fast` with its four."""
    masks = examples("street", "crossing", "high_street")
    made = [rows_of("street", masks, 1), rows_of("street", masks, 1, steps=4), rows_of("street-fast", masks, 1)]
    rows = [[many[0], many[1], few[1], student[1]] for many, few, student in zip(*made, strict=True)]
    return grid(rows, headings=["mask", "street, 12 guided steps", "street, 4 guided steps", "street-fast, 4 steps"])


def pairs() -> Image.Image:
    """Contents of a folder of pairs: a photograph (here a sample of `street`), its mask, and its sketch."""
    rows = []
    for mask, photograph in rows_of("street", examples("street", "crossing", "high_street"), num=1):
        lines = _drawn(draw_lines(np.asarray(photograph)))
        rows.append([photograph, mask, lines])
    return grid(rows, headings=["images/KEY.jpg", "labels/KEY.png", "sketches/KEY.png"])


def agreement() -> Image.Image:
    """Evaluation of samples of `sketch`: the given lines, green if near an edge of the image, else red."""
    rows = []
    for sketch, sample in rows_of("sketch", examples("sketch", "mountain", "street"), num=1):
        given = thinned(torch.from_numpy(np.asarray(sketch.convert("L")) < 128))
        edges = edges_of(sample)
        kept = (city_block_distance(edges) <= NEAR) & given
        picture = np.full((*given.shape, 3), 255, np.uint8)
        picture[edges] = (200, 205, 210)
        picture[_wide(given)] = (208, 49, 45)
        picture[_wide(kept)] = (18, 130, 90)
        scores = compare_lines(edges, given, far=64)
        named = Image.fromarray(picture)
        ImageDraw.Draw(named).text((named.width / 2, 16), f"lines kept {100 * scores.kept:.0f}%", INK, _font(16), "mm")
        rows.append([sketch, sample, _drawn(edges), named])
    return grid(rows, headings=["the sketch", "a sample of it", "its edges", "both"])


def _drawn(lines: torch.Tensor) -> Image.Image:
    """Lines [h, w] in black on white."""
    return Image.fromarray(np.where(lines.numpy(), 0, 255).astype(np.uint8))


def _wide(lines: torch.Tensor) -> np.ndarray:
    """Lines [h, w] three pixels wide."""
    return (city_block_distance(lines) <= 1).numpy()


INK, FROZEN, NEW, LINE = "#1f2933", "#dbe4ee", "#cdeee6", "#7b8794"


def how() -> Image.Image:
    """A diagram from mask to photograph, and of the training stages."""
    (row,) = rows_of("street", examples("street", "crossing"), num=1)
    (small,) = rows_of("street", examples("street", "crossing"), num=1, base_only=True)
    sheet = Image.new("RGB", (2600, 900), "white")
    draw = ImageDraw.Draw(sheet)
    _picture(sheet, draw, row[0], (20, 120, 420, 300), "your condition")
    _box(draw, (500, 160, 300, 220), NEW, "encoder", "new: reads your condition")
    _box(draw, (920, 160, 440, 220), FROZEN, "denoising UNet", "pretrained prior, T steps from noise")
    _picture(sheet, draw, small[1], (1440, 165, 280, 210), "64 px")
    _box(draw, (1800, 160, 320, 220), NEW, "upsampler", "its own diffusion, 64 to 256 px")
    _picture(sheet, draw, row[1], (2180, 120, 400, 300), "photograph")
    for left, right in ((444, 496), (804, 916), (1364, 1436), (1724, 1796), (2124, 2176)):
        _arrow(draw, left, right, 270)
    draw.text((860, 222), "tokens", INK, _font(26), anchor="mm")
    stages = (
        ("1  pretrain", "captions or any condition: the UNet learns what images look like", FROZEN),
        ("2  adapt", "the UNet is frozen, the new encoder learns to speak to it", NEW),
        ("3  joint", "both are finetuned together, the condition dropped at times for guidance", NEW),
        ("4  upsample", "diffusion, then perceptual and adversarial losses on the predicted image", NEW),
    )
    for k, (name, what, colour) in enumerate(stages):
        top = 520 + 92 * k
        draw.rounded_rectangle((20, top, 330, top + 70), 14, colour, LINE, 2)
        draw.text((44, top + 35), name, INK, _font(34), anchor="lm")
        draw.text((370, top + 35), what, INK, _font(34), anchor="lm")
    return sheet.resize((1300, 450), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _box(draw: ImageDraw.ImageDraw, place: tuple[int, int, int, int], colour: str, name: str, what: str) -> None:
    left, top, width, height = place
    draw.rounded_rectangle((left, top, left + width, top + height), 24, colour, LINE, 3)
    draw.text((left + width / 2, top + height / 2), name, INK, _font(44), anchor="mm")
    draw.text((left + width / 2, top + height + 34), what, INK, _font(26), anchor="mm")


def _picture(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image, place: tuple[int, int, int, int], name: str
) -> None:
    left, top, width, height = place
    kind = Image.Resampling.NEAREST if image.width < width / 2 else Image.Resampling.LANCZOS
    sheet.paste(image.resize((width, height), kind), (left, top))
    draw.text((left + width / 2, top - 30), name, INK, _font(34), anchor="mm")


def _arrow(draw: ImageDraw.ImageDraw, left: int, right: int, height: int) -> None:
    draw.line((left, height, right - 14, height), LINE, 6)
    draw.polygon([(right, height), (right - 20, height - 13), (right - 20, height + 13)], LINE)


PICTURES = {
    "hero": lambda: joined(hero()),
    "how": how,
    "street": lambda: grid(rows_of("street", examples("street"))),
    "prior": lambda: grid(rows_of("scenes-prior", CAPTIONS)),
    "sketch": lambda: grid(rows_of("sketch", examples("sketch"))),
    "tasks": lambda: grid(tasks()),
    "ladder": ladder,
    "students": students,
    "pairs": pairs,
    "agreement": agreement,
    "samples-street": lambda: grid(samples("street", examples("street"), num=8)),
    "samples-sketch": lambda: grid(samples("sketch", examples("sketch"), num=7)),
    "samples-prior": lambda: grid(samples("scenes-prior", (*CAPTIONS, *BUILT), num=6)),
}


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        sheet = PICTURES[name]()
        sheet.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
        sheet.save(ROOT / "docs/pictures" / f"{name}.jpg", quality=QUALITY)
        print(f"docs/pictures/{name}.jpg")


if __name__ == "__main__":
    main()
