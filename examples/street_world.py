"""A small world in metres, seen by a driver: what draw_masks.py composes its streets of.

x is right, y up, z ahead. Everything is projected onto the picture and painted from far to near.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from piti.conditions import ClassTable

WIDTH, HEIGHT = 480, 360
NEAR = 1.6  # metres; what is closer is cut off

BACKDROP, BUILDINGS, WALLS, TREES, FENCES, THINGS = range(6)  # painted in this order, each from far to near

Point = tuple[float, float, float]

# Side views, (metres along, metres up), front of the vehicle first
HATCHBACK = [(0.0, 0.3), (0.0, 0.75), (0.9, 0.95), (1.7, 1.45), (3.3, 1.48), (3.9, 1.0), (4.0, 0.3)]
SALOON = [(0.0, 0.3), (0.0, 0.7), (1.1, 0.9), (1.9, 1.4), (3.1, 1.42), (3.8, 1.0), (4.5, 0.95), (4.5, 0.3)]
VAN = [(0.0, 0.35), (0.0, 1.0), (0.7, 1.2), (1.4, 2.1), (4.8, 2.15), (4.9, 0.35)]
BUS = [(0.0, 0.35), (0.0, 2.0), (0.3, 4.1), (9.8, 4.2), (10.0, 0.35)]

# Outlines of standing people, (share of the height to the right, share up)
WALKER = [
    (-0.17, 0.0), (-0.06, 0.02), (0.0, 0.28), (0.07, 0.0), (0.19, 0.03), (0.1, 0.3), (0.12, 0.5), (0.17, 0.47),
    (0.16, 0.74), (0.06, 0.84), (-0.06, 0.84), (-0.14, 0.76), (-0.18, 0.45), (-0.11, 0.5), (-0.1, 0.26),
]  # fmt: skip
STANDER = [
    (-0.1, 0.0), (0.1, 0.0), (0.1, 0.45), (0.15, 0.46), (0.15, 0.75), (0.06, 0.84), (-0.06, 0.84), (-0.15, 0.75),
    (-0.15, 0.46), (-0.1, 0.45),
]  # fmt: skip
RIDER = [
    (-0.025, 0.0), (0.025, 0.0), (0.025, 0.25), (0.1, 0.22), (0.08, 0.4), (0.11, 0.52), (0.17, 0.6), (0.13, 0.8),
    (0.05, 0.87), (-0.05, 0.87), (-0.13, 0.8), (-0.17, 0.6), (-0.11, 0.52), (-0.08, 0.38), (-0.1, 0.18), (-0.025, 0.22),
]  # fmt: skip


class Street:
    """A street seen by a driver: things are added in any order, `mask` paints them."""

    def __init__(
        self, table: ClassTable, seed: int, horizon: float, vanishing: float = 0.5, focal: float = 400
    ) -> None:
        self.table = table
        self.draws = np.random.default_rng(seed)
        self.horizon, self.vanishing, self.focal = horizon * HEIGHT, vanishing * WIDTH, focal
        self.eye = 1.4  # metres above the road
        self.painted: list[tuple[int, float, Callable[[], None]]] = []
        self.canvas = Image.new("L", (WIDTH, HEIGHT), self.index("sky"))
        self.pen = ImageDraw.Draw(self.canvas)

    def index(self, name: str) -> int:
        return self.table.names.index(name)

    def project(self, point: Point) -> tuple[float, float]:
        x, y, z = point
        scale = self.focal / max(z, NEAR)
        return self.vanishing + x * scale, self.horizon + (self.eye - y) * scale

    def polygon(self, name: str, points: Sequence[Point]) -> None:
        self.pen.polygon([self.project(point) for point in points], fill=self.index(name))

    def add(self, layer: int, z: float, paint: Callable[[], None]) -> None:
        self.painted.append((layer, -z, paint))

    def mask(self) -> Image.Image:
        """The picture in the classes' colours, its outlines a little unsteady like a person's."""
        for layers, tremble in (((BACKDROP, FENCES), 1.2), ((THINGS, THINGS), 0.6)):
            chosen = [item for item in self.painted if layers[0] <= item[0] <= layers[1]]
            for _, _, paint in sorted(chosen, key=lambda item: item[:2]):
                paint()
            self.shake(tremble)
        return Image.fromarray(np.array(self.table.colours, np.uint8)[np.asarray(self.canvas)])

    def shake(self, pixels: float) -> None:
        """Move every outline by a few pixels, here so and there so."""
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        down, right = (np.rint(pixels * self.noise((8, 3))).astype(int) for _ in range(2))
        shaken = np.asarray(self.canvas)[(y + down).clip(0, HEIGHT - 1), (x + right).clip(0, WIDTH - 1)]
        self.canvas.paste(Image.fromarray(shaken))

    def noise(self, scales: Sequence[float]) -> np.ndarray:
        """Smooth random heights over the picture, about -1 to 1; scales in pixels."""
        total = np.zeros((HEIGHT, WIDTH))
        for scale in scales:
            cells = self.draws.normal(size=(int(HEIGHT / scale) + 2, int(WIDTH / scale) + 2)).astype(np.float32)
            total += np.asarray(Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        return total / (1.5 * len(scales) ** 0.5)

    # Ground: strips along the road

    def strip(self, name: str, left: float, right: float, start: float = 0, end: float = 400, up: float = 0) -> None:
        corners = [(left, up, start), (left, up, end), (right, up, end), (right, up, start)]
        self.polygon(name, corners)

    def ground(self, left: float, right: float, pavement: float = 2.5, beyond: str = "pavement") -> None:
        """A road from `left` to `right` with pavements on both sides, and what lies beyond them."""
        self.strip(beyond, -400, 400)
        self.strip("pavement", left - pavement, right + pavement)
        self.strip("road", left, right)

    # Behind the pavements

    def skyline(self, name: str, height: float, distance: float = 140, across: tuple[float, float] = (-70, 70)) -> None:
        """What closes the view: roofs or trees of varying height."""

        def paint() -> None:
            x = across[0]
            while x < across[1]:
                width = self.draws.uniform(3, 14)
                top = height * self.draws.uniform(0.45, 1.0)
                self.polygon(
                    name, [(x, 0, distance), (x, top, distance), (x + width, top, distance), (x + width, 0, distance)]
                )
                peak = top + self.draws.uniform(0, 0.35) * height
                self.polygon(name, [(x, top, distance), (x + width / 2, peak, distance), (x + width, top, distance)])
                x += width

        self.add(BACKDROP, distance, paint)

    def house(self, x: float, start: float, end: float, height: float, roof: float = 2.5, depth: float = 9) -> None:
        """A house whose front stands along the road at `x`; its gable end looks at the driver."""
        away = np.sign(x)
        ridge = x + away * depth / 2
        stack = self.draws.uniform(start, end - 1)

        def paint() -> None:
            back = x + away * depth
            gable = [(x, 0), (x, height), (ridge, height + roof), (back, height), (back, 0)]
            self.polygon("building", [(px, py, start) for px, py in gable])
            self.polygon("building", [(x, 0, start), (x, height, start), (x, height, end), (x, 0, end)])
            slope = [(x, height, start), (ridge, height + roof, start), (ridge, height + roof, end), (x, height, end)]
            self.polygon("building", slope)
            if roof > 0:
                self.box("building", (ridge - 0.5, height + roof - 0.8, stack), (1.0, 2.0, 1.0))

        self.add(BUILDINGS, start, paint)

    def terrace(self, x: float, start: float, end: float, height: float, vary: float = 0.2, roof: float = 2.5) -> None:
        """Houses wall to wall; every one has its own height and stands a little forward or back."""
        z = start
        while z < end:
            length = self.draws.uniform(6, 13)
            tall = height * self.draws.uniform(1 - vary, 1 + vary)
            pitch = roof * self.draws.choice([0.0, 0.6, 1.0, 1.3])
            self.house(x + self.draws.uniform(-0.3, 0.3), z, min(z + length, end), tall, pitch)
            z += length

    def box(self, name: str, corner: Point, size: Point) -> None:
        """An upright box, by its near lower left corner: the near face and the two sides."""
        (x, y, z), (width, height, depth) = corner, size
        for left in (x, x + width):
            self.polygon(
                name, [(left, y, z), (left, y + height, z), (left, y + height, z + depth), (left, y, z + depth)]
            )
        self.polygon(name, [(x, y, z), (x, y + height, z), (x + width, y + height, z), (x + width, y, z)])

    def block(self, name: str, corner: Point, size: Point, layer: int = BUILDINGS) -> None:
        self.add(layer, corner[2], lambda: self.box(name, corner, size))

    def barrier(self, name: str, x: float, start: float, end: float, height: float, layer: int = FENCES) -> None:
        """A fence, wall or hedge along the road; in layer WALLS it stands behind the trees."""
        corners = [(x, 0, start), (x, height, start), (x, height, end), (x, 0, end)]
        self.add(layer, start, lambda: self.polygon(name, corners))

    # Trees

    def tree(self, x: float, z: float, height: float, spread: float, trunk: float = 0.3) -> None:
        """A trunk, and a crown with an edge of leaves and twigs."""
        middle = height - spread * 0.95

        def paint() -> None:
            self.polygon(
                "tree",
                [(x - trunk / 2, 0, z), (x - trunk / 3, middle, z), (x + trunk / 3, middle, z), (x + trunk / 2, 0, z)],
            )
            centre_x, centre_y = self.project((x, middle, z))
            radius = spread * self.focal / z
            py, px = np.mgrid[:HEIGHT, :WIDTH]
            away = np.hypot((px - centre_x) / 1.05, (py - centre_y) * np.where(py > centre_y, 1.35, 1.0)) / radius
            leaves = 0.2 * self.noise((radius / 2, radius / 5)) + 0.12 * self.noise((max(2, radius / 16), 2.5))
            self.paint_where("tree", away + leaves < 0.92)

        self.add(TREES, z, paint)

    def hedge(self, x: float, start: float, end: float, height: float) -> None:
        """Shrubs along the road, uneven at the top."""
        for z in np.arange(end, start, -1.6):
            tall = height * self.draws.uniform(0.8, 1.25)
            self.tree(x + self.draws.uniform(-0.3, 0.3), float(z), tall, tall * 0.75, trunk=0.6)
        self.barrier("tree", x, start, end, height * 0.55, WALLS)

    def paint_where(self, name: str, where: np.ndarray) -> None:
        self.canvas.paste(self.index(name), mask=Image.fromarray(where.astype(np.uint8) * 255))

    # Things on the road and on the pavement

    def vehicle(
        self, profile: Sequence[tuple[float, float]], x: float, z: float, width: float = 1.75, oncoming: bool = False
    ) -> None:
        """A car, van or bus: its side view swept over its width. x, z: middle of its near end."""
        length = profile[-1][0]

        def paint() -> None:
            side = [(along if oncoming else length - along, up) for along, up in profile]
            for (a, up_a), (b, up_b) in zip(side, side[1:] + side[:1], strict=True):
                left, right = x - width / 2, x + width / 2
                self.polygon(
                    "car", [(left, up_a, z + a), (left, up_b, z + b), (right, up_b, z + b), (right, up_a, z + a)]
                )
            for left in (x - width / 2, x + width / 2):
                self.polygon("car", [(left, up, z + a) for a, up in side])
            for along in (0.17 * length, 0.8 * length):
                for wheel in (x - width / 2, x + width / 2 - 0.25):
                    self.box("car", (wheel, 0.0, z + along - 0.25), (0.25, 0.5, 0.5))

        self.add(THINGS, z, paint)

    def crossing_vehicle(
        self, profile: Sequence[tuple[float, float]], x: float, z: float, rightward: bool = True
    ) -> None:
        """A vehicle seen from its side. x: its left end."""
        length = profile[-1][0]

        def paint() -> None:
            side = [(x + (length - along if rightward else along), up, z) for along, up in profile]
            self.polygon("car", side)
            for along in (0.19 * length, 0.79 * length):
                self.disc("car", (x + along, 0.32, z), 0.32)

        self.add(THINGS, z, paint)

    def person(self, x: float, z: float, height: float = 1.72, outline: Sequence[tuple[float, float]] = WALKER) -> None:
        """A pedestrian, or a cyclist seen from behind."""
        name = "bicyclist" if outline is RIDER else "pedestrian"
        mirror = self.draws.choice([-1, 1])

        def paint() -> None:
            self.polygon(name, [(x + mirror * u * height, v * height, z) for u, v in outline])
            self.disc(name, (x, 0.92 * height, z), 0.075 * height)

        self.add(THINGS, z, paint)

    def disc(self, name: str, centre: Point, radius: float) -> None:
        x, y = self.project(centre)
        r = max(radius * self.focal / max(centre[2], NEAR), 1.0)
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=self.index(name))

    def post(self, x: float, z: float, height: float, thick: float = 0.12) -> None:
        """A post at least two pixels wide."""
        bottom, top = self.project((x, 0, z)), self.project((x, height, z))
        width = max(2, round(thick * self.focal / z))
        self.pen.line([bottom, top], fill=self.index("pole"), width=width)

    def lamp(self, x: float, z: float, height: float = 7.5) -> None:
        """A street lamp whose arm reaches over the road."""
        reach = -np.sign(x) * 1.4

        def paint() -> None:
            self.post(x, z, height, 0.14)
            ends = [self.project((x, height, z)), self.project((x + reach, height + 0.25, z))]
            self.pen.line(ends, fill=self.index("pole"), width=2 if z > 10 else 3)

        self.add(THINGS, z, paint)

    def traffic_light(self, x: float, z: float) -> None:
        def paint() -> None:
            self.post(x, z, 2.6)
            self.box("sign", (x - 0.2, 2.1, z), (0.4, 1.1, 0.2))

        self.add(THINGS, z, paint)

    def sign(self, x: float, z: float, height: float = 2.6, round_: bool = True) -> None:
        """A traffic sign: a disc, or a triangle above a plate."""

        def paint() -> None:
            self.post(x, z, height, 0.09)
            if round_:
                self.disc("sign", (x, height, z), 0.33)
            else:
                self.polygon("sign", [(x - 0.42, height - 0.1, z), (x + 0.42, height - 0.1, z), (x, height + 0.65, z)])
                self.box("sign", (x - 0.3, height - 0.55, z), (0.6, 0.38, 0.1))

        self.add(THINGS, z, paint)

    def board(self, x: float, y: float, z: float, width: float, height: float) -> None:
        """A sign on a wall or above a shop."""
        self.add(WALLS, z, lambda: self.box("sign", (x, y, z), (width, height, 0.1)))
