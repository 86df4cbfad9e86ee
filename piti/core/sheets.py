"""Contact sheets: rows of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from piti.core.images import ImageError

_HEADING_SIZE = 12
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_LINE = 16
"""Line height of headings in pixels."""


def grid(
    rows: Sequence[Sequence[Image.Image]],
    gap: int = 4,
    background: str | tuple[int, int, int] = "white",
    headings: Sequence[str] | None = None,
) -> Image.Image:
    """A contact sheet: rows of images, each centred in its cell, with `gap` pixels around every cell.

    headings: text above each column, wrapped to its width. Rows may differ in length, and images in size.
    """
    if not any(rows):
        raise ImageError("a sheet needs at least one image")
    columns = max(len(row) for row in rows)
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max((image.height for image in row), default=0) for row in rows]
    font = ImageFont.load_default(_HEADING_SIZE) if headings else None
    written = [_lines(words, width, font) for words, width in zip(headings or [], widths, strict=False) if font]
    y = gap + (_LINE * max(1, *map(len, written)) if font else 0)
    size = (sum(widths) + gap * (columns + 1), y + sum(heights) + gap * len(rows))
    sheet = Image.new("RGB", size, background)
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for image, width in zip(row, widths, strict=False):
            corner = (x + (width - image.width) // 2, y + (height - image.height) // 2)
            sheet.paste(image.convert("RGB"), corner)
            x += width + gap
        y += height + gap
    if font is not None:
        _write_headings(sheet, written, widths, gap, font)
    return sheet


def zoomed(image: Image.Image, side: int) -> Image.Image:
    """Enlarge an image for display by the largest integer factor that keeps its longer side at most `side`, by nearest
    neighbour; larger images are unchanged."""
    factor = max(1, side // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _lines(words: str, width: int, font: _Font) -> list[str]:
    """Wrap a heading to a column's width; longer words are shortened."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while word and font.getlength(word) > width:
            word = word[:-2] + "…" if len(word) > 2 else ""
        lines.append(word)
    return lines


def _write_headings(
    sheet: Image.Image, headings: Sequence[Sequence[str]], widths: Sequence[int], gap: int, font: _Font
) -> None:
    """Draw headings above the columns, aligned to the images, dark on light or light on dark."""
    draw = ImageDraw.Draw(sheet)
    colour = "black" if np.asarray(sheet.crop((0, 0, 1, 1))).mean() > 127 else "white"
    most, x = max(map(len, headings), default=0), gap
    for lines, width in zip(headings, widths, strict=False):
        for number, line in enumerate(lines, most - len(lines)):
            draw.text((x + width / 2, gap + _LINE * number), line, fill=colour, font=font, anchor="ma")
        x += width + gap
