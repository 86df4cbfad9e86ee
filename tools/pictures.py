"""The README's pictures of the bundled models, made anew: `python tools/pictures.py [street | prior | sketch | tasks]`.

Conditions are those of examples/, or the prior's captions; the samples are the first ones of seed 0, as `piti
translate` makes them. They are written into docs/ as JPEG.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from piti.core.images import grid
from piti.generation.options import GenerationOptions
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline

ROOT = Path(__file__).resolve().parent.parent
QUALITY = 86
WIDTH = 1300  # at most
SIDE = 192
CAPTIONS = ("a photo of a forest", "a photo of the sea", "a photo of a mountain", "a photo of a glacier")


def rows_of(model: str, inputs: Sequence[Path | str], num: int = 4, square: bool = False) -> list[list[Image.Image]]:
    """For each file or caption a row: the condition, and its samples."""
    upsampler = "sketch" if model == "scenes-prior" else None
    pipeline = PITIPipeline.from_pretrained(model, upsampler=upsampler)
    pipeline.set_progress_bar_config(disable=True)
    files = [item for item in inputs if isinstance(item, Path)]
    texts = [item for item in inputs if isinstance(item, str)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        translate_files(pipeline, files, out, GenerationOptions.from_flat(num=num, square=square), model, texts=texts)
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
    """Captions, masks and sketches, all cropped to squares and alike in size."""
    rows = rows_of("scenes-prior", CAPTIONS[:2])
    rows += rows_of("street", examples("street", "avenue", "high_street"), square=True)
    rows += rows_of("sketch", examples("sketch", "mountain", "street"))
    return [[cell.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for cell in row] for row in rows]


PICTURES = {
    "street": lambda: rows_of("street", examples("street")),
    "prior": lambda: rows_of("scenes-prior", CAPTIONS),
    "sketch": lambda: rows_of("sketch", examples("sketch")),
    "tasks": tasks,
}


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        sheet = grid(PICTURES[name]())
        sheet.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
        sheet.save(ROOT / "docs" / f"{name}.jpg", quality=QUALITY)
        print(f"docs/{name}.jpg")


if __name__ == "__main__":
    main()
