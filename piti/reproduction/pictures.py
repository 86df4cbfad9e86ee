"""Samples side by side: a row per condition, with its preview, its photograph, and a sample of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from piti.core.files import whole_file
from piti.core.images import Box, center_box, crop_resize, open_image, read_rgb
from piti.core.sheets import grid
from piti.data.pairs import key_hash
from piti.reproduction.files import DatasetFiles

ROWS = 6
SIDE = 160
QUALITY = 90


def samples(
    chosen: DatasetFiles, columns: Sequence[tuple[str, Path]], rows: int = ROWS, side: int = SIDE
) -> Image.Image:
    """The first samples of some conditions, squares of `side` pixels. columns: a heading and a folder of images each.
    Conditions are chosen by the lowest hashes of their keys, to avoid cherry-picking.
    """
    stems = sorted(sorted(chosen.stems, key=key_hash)[:rows])
    shown = [_row(chosen, stem, [folder for _, folder in columns], side) for stem in stems]
    return grid(shown, headings=[chosen.kind, "photograph", *(heading for heading, _ in columns)])


def _row(chosen: DatasetFiles, stem: str, folders: Sequence[Path], side: int) -> list[Image.Image]:
    photograph = square(read_rgb(chosen.photograph(stem)), side)
    return [
        preview_of(chosen, stem, side),
        photograph,
        *(_sample(folder / f"{stem}_0.png", side) for folder in folders),
    ]


def preview_of(chosen: DatasetFiles, stem: str, side: int) -> Image.Image:
    """The centre square of a condition's preview."""
    raw = chosen.condition.squared(chosen.condition.load(chosen.conditioned(stem)))
    return chosen.condition.preview(raw).resize((side, side), Image.Resampling.NEAREST)


def _sample(path: Path, side: int) -> Image.Image:
    """A result, or grey if it is missing."""
    return square(open_image(path), side) if path.is_file() else Image.new("RGB", (side, side), (128, 128, 128))


def square(image: Image.Image, side: int) -> Image.Image:
    """The centre square at `side` pixels."""
    box: Box = center_box(*image.size)
    return crop_resize(image, box, side)


def save_jpeg(image: Image.Image, path: Path) -> Path:
    """Write a picture for documents atomically."""
    with whole_file(path, overwrite=True) as partial, partial.open("wb") as file:
        image.convert("RGB").save(file, "JPEG", quality=QUALITY)
    return path
