"""Contact sheets: rows of pictures on one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from piti.core.images import ImageError

_HEADING_SIZE = 12


def grid(
    rows: Sequence[Sequence[Image.Image]],
    gap: int = 4,
    background: str | tuple[int, int, int] = "white",
    headings: Sequence[str] | None = None,
) -> Image.Image:
    """A contact sheet: rows of pictures, each centred in its cell, `gap` pixels around every cell.

    headings: a word above each column. Rows may differ in length and pictures in size.
    """
    if not any(rows):
        raise ImageError("a sheet needs at least one picture")
    columns = max(len(row) for row in rows)
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max((image.height for image in row), default=0) for row in rows]
    y = gap + (_HEADING_SIZE + gap if headings else 0)
    size = (sum(widths) + gap * (columns + 1), y + sum(heights) + gap * len(rows))
    sheet = Image.new("RGB", size, background)
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for image, width in zip(row, widths, strict=False):
            corner = (x + (width - image.width) // 2, y + (height - image.height) // 2)
            sheet.paste(image.convert("RGB"), corner)
            x += width + gap
        y += height + gap
    _write_headings(sheet, headings or [], widths, gap)
    return sheet


def _write_headings(sheet: Image.Image, headings: Sequence[str], widths: Sequence[int], gap: int) -> None:
    """Words above the columns, shortened to their width, dark on light or light on dark."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_HEADING_SIZE)
    colour = "black" if np.asarray(sheet.crop((0, 0, 1, 1))).mean() > 127 else "white"
    x = gap
    for word, width in zip(headings, widths, strict=False):
        while word and draw.textlength(word, font) > width:
            word = word[:-2] + "…" if len(word) > 2 else ""
        draw.text((x + width / 2, gap), word, fill=colour, font=font, anchor="ma")
        x += width + gap
