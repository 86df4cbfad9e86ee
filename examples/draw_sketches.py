"""Draw the example sketches: `python examples/draw_sketches.py [FOLDER]`, into sketch/ beside this file by default.

Five scenes in dark pen on white, lines a little unsteady as a hand's are, the same at every run (seeds are fixed).
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw

from piti.conditions.sketch import INK
from piti.core.images import save_png

HERE = Path(__file__).parent
SIDE = 512
FINER = 2  # drawn so many times as large, then reduced
WIDTH = 5.0  # of the pen, in pixels

Point = tuple[float, float]


class Pen:
    """Draws on a square page whose corners are (0, 0) and (1, 1), y downwards."""

    def __init__(self, seed: int) -> None:
        self.draws = random.Random(seed)
        self.page = Image.new("RGB", (SIDE * FINER, SIDE * FINER), "white")
        self._draw = ImageDraw.Draw(self.page)

    def line(self, *points: Point, unsteady: float = 0.004) -> None:
        """Straight strokes from point to point that waver a little."""
        path = [points[0]]
        for (x0, y0), (x1, y1) in pairwise(points):
            count = max(2, round(math.hypot(x1 - x0, y1 - y0) / 0.03))
            path += [
                (x0 + (x1 - x0) * k / count + self._waver(unsteady), y0 + (y1 - y0) * k / count + self._waver(unsteady))
                for k in range(1, count + 1)
            ]
        self._stroke(path)

    def curve(self, function: Callable[[float], Point], start: float = 0, end: float = 1) -> None:
        """A path given by its parameter."""
        points = [function(start + (end - start) * k / 60) for k in range(61)]
        self._stroke([(x + self._waver(0.0015), y + self._waver(0.0015)) for x, y in points])

    def ridge(self, points: Sequence[Point], rough: float = 0.03, depth: int = 4) -> list[Point]:
        """A mountain's outline: midpoints displaced again and again. Returns its points."""
        path = list(points)
        for level in range(depth):
            finer: list[Point] = []
            for (x0, y0), (x1, y1) in pairwise(path):
                shift = self._waver(rough / 2**level)
                finer += [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2 + shift)]
            path = [*finer, path[-1]]
        self._stroke(path)
        return path

    def _waver(self, amount: float) -> float:
        return self.draws.uniform(-amount, amount)

    def _stroke(self, points: Sequence[Point]) -> None:
        scale, radius = SIDE * FINER, WIDTH * FINER / 2
        placed = [(x * scale, y * scale) for x, y in points]
        self._draw.line(placed, fill=INK, width=round(2 * radius), joint="curve")
        for x, y in (placed[0], placed[-1]):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=INK)

    def finished(self) -> Image.Image:
        return self.page.resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("L")


def mountain() -> Image.Image:
    """Two peaks with snow, and a ridge before them."""
    pen = Pen(1)
    pen.ridge([(0, 0.62), (0.16, 0.4), (0.3, 0.2), (0.46, 0.46), (0.58, 0.36), (0.72, 0.27), (1, 0.58)])
    pen.ridge([(0.3, 0.2), (0.33, 0.36), (0.28, 0.5), (0.34, 0.62)], 0.02)
    pen.ridge([(0.72, 0.27), (0.7, 0.42), (0.76, 0.58)], 0.02)
    pen.ridge([(0, 0.72), (0.3, 0.66), (0.6, 0.72), (1, 0.64)], 0.03)
    return pen.finished()


def coast() -> Image.Image:
    """A level horizon, a headland on the left, waves running in."""
    pen = Pen(2)
    pen.line((0.34, 0.42), (1, 0.42), unsteady=0.001)
    pen.ridge([(0, 0.24), (0.12, 0.26), (0.26, 0.33), (0.36, 0.42)], 0.02)
    pen.ridge([(0.36, 0.42), (0.24, 0.5), (0.1, 0.56), (0, 0.6)], 0.02)
    for x, y, length in ((0.4, 0.68, 0.5), (0.1, 0.78, 0.6), (0.3, 0.9, 0.65)):
        pen.curve(lambda s, x=x, y=y, w=length: (x + w * s, y + 0.012 * math.sin(9 * s + 8 * x)))
    return pen.finished()


def forest() -> Image.Image:
    """Trunks from the ground up, near and far, and a path."""
    pen = Pen(3)
    trunks = (
        (0.1, 0.07, 0.92),
        (0.3, 0.04, 0.74),
        (0.46, 0.03, 0.66),
        (0.64, 0.035, 0.7),
        (0.86, 0.08, 0.95),
    )
    for x, width, foot in trunks:
        lean = pen.draws.uniform(-0.02, 0.02)
        pen.line((x - width / 2, foot), (x - width / 3 + lean, 0), unsteady=0.006)
        pen.line((x + width / 2, foot), (x + width / 3 + lean, 0), unsteady=0.006)
    pen.curve(lambda s: (0.36 + 0.18 * s**2 - 0.28 * s, 0.68 + 0.32 * s))
    pen.curve(lambda s: (0.56 + 0.2 * s - 0.05 * s**2, 0.68 + 0.32 * s))
    return pen.finished()


def street() -> Image.Image:
    """Houses on both sides of a street that runs to a point."""
    pen = Pen(4)
    point = (0.5, 0.56)

    def toward(start: Point, share: float) -> Point:
        return (start[0] + (point[0] - start[0]) * share, start[1] + (point[1] - start[1]) * share)

    for x, top, foot in ((0.0, 0.02, 0.92), (1.0, 0.1, 0.9)):
        for start in ((x, top), (x, foot)):
            pen.line(start, toward(start, 0.8), unsteady=0.002)
        for share in (0.3, 0.55, 0.8):
            pen.line(toward((x, top), share), toward((x, foot), share), unsteady=0.002)
        for level in (0.3, 0.5):
            y = top + (foot - top) * level
            for near in (0.06, 0.34):
                a, b = near, near + 0.13
                corners = [toward((x, y), a), toward((x, y), b), toward((x, y + 0.1), b), toward((x, y + 0.1), a)]
                pen.line(*corners, corners[0], unsteady=0.001)
    pen.line(toward((0.22, 1.0), 0.05), toward((0.22, 1.0), 0.75))
    pen.line(toward((0.8, 1.0), 0.05), toward((0.8, 1.0), 0.75))
    return pen.finished()


def tower() -> Image.Image:
    """A tall building with rows of windows, seen from a corner, under an empty sky."""
    pen = Pen(5)
    left, edge, right = 0.2, 0.55, 0.8
    pen.line((left, 0.95), (left, 0.2), (edge, 0.1), (right, 0.22), (right, 0.95))
    pen.line((edge, 0.1), (edge, 0.97))
    for row in range(6):
        for a, b, first, last in ((left, edge, 0.2, 0.1), (edge, right, 0.1, 0.22)):
            for k in range(3):
                x0, x1 = a + (b - a) * (0.14 + 0.28 * k), a + (b - a) * (0.3 + 0.28 * k)
                y = first + (last - first) * (0.2 + 0.28 * k) + 0.07 + 0.115 * row
                pen.line((x0, y), (x1, y), (x1, y + 0.06), (x0, y + 0.06), (x0, y), unsteady=0.001)
    pen.line((0, 0.93), (left, 0.95))
    pen.line((right, 0.95), (1, 0.92))
    return pen.finished()


SCENES = (mountain, coast, forest, street, tower)


def main() -> None:
    """Draw every scene into sketch/ beside this file, or into the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "sketch"
    for scene in SCENES:
        save_png(scene(), folder / f"{scene.__name__}.png")


if __name__ == "__main__":
    main()
