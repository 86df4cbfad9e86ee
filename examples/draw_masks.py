"""Draw the street masks of this folder: `python examples/draw_masks.py [FOLDER]`.

A small world in metres (x right, y up, z ahead of a driver's eyes) is projected onto the picture and
painted from far to near in the colours of street/classes.json. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from piti.conditions import ClassTable
from piti.images import save_png

HERE = Path(__file__).parent
WIDTH, HEIGHT = 480, 360
NEAR = 1.6  # metres; what is closer is cut off

BACKDROP, BUILDINGS, VERGES, TREES, FENCES, THINGS = range(6)  # painted in this order, each from far to near

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

    def __init__(self, table: ClassTable, seed: int, horizon: float, vanishing: float = 0.5, focal: float = 400) -> None:
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
        for _, _, paint in sorted(self.painted, key=lambda item: item[:2]):
            paint()
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        shifts = [np.rint(1.1 * self.noise((8, 3))).astype(int) for _ in range(2)]
        indices = np.asarray(self.canvas)
        shaken = indices[(y + shifts[0]).clip(0, HEIGHT - 1), (x + shifts[1]).clip(0, WIDTH - 1)]
        return Image.fromarray(np.array(self.table.colours, np.uint8)[shaken])

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

    def ground(self, left: float, right: float, pavement: float = 2.5) -> None:
        """A road from `left` to `right` with pavements on both sides, and what lies beyond them."""
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
                self.polygon(name, [(x, 0, distance), (x, top, distance), (x + width, top, distance), (x + width, 0, distance)])
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
            self.polygon(name, [(left, y, z), (left, y + height, z), (left, y + height, z + depth), (left, y, z + depth)])
        self.polygon(name, [(x, y, z), (x, y + height, z), (x + width, y + height, z), (x + width, y, z)])

    def block(self, name: str, corner: Point, size: Point, layer: int = BUILDINGS) -> None:
        self.add(layer, corner[2], lambda: self.box(name, corner, size))

    def barrier(self, name: str, x: float, start: float, end: float, height: float) -> None:
        """A fence, wall or hedge along the road."""
        corners = [(x, 0, start), (x, height, start), (x, height, end), (x, 0, end)]
        self.add(FENCES, start, lambda: self.polygon(name, corners))

    # Trees

    def tree(self, x: float, z: float, height: float, spread: float, trunk: float = 0.3) -> None:
        """A trunk, and a crown with an edge of leaves and twigs."""
        middle = height - spread * 0.95

        def paint() -> None:
            self.polygon("tree", [(x - trunk / 2, 0, z), (x - trunk / 3, middle, z), (x + trunk / 3, middle, z), (x + trunk / 2, 0, z)])
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
        self.barrier("tree", x, start, end, height * 0.55)

    def paint_where(self, name: str, where: np.ndarray) -> None:
        self.canvas.paste(self.index(name), mask=Image.fromarray(where.astype(np.uint8) * 255))

    # Things on the road and on the pavement

    def vehicle(self, profile: Sequence[tuple[float, float]], x: float, z: float, width: float = 1.75, oncoming: bool = False) -> None:
        """A car, van or bus: its side view swept over its width. x, z: middle of its near end."""
        length = profile[-1][0]

        def paint() -> None:
            side = [(along if oncoming else length - along, up) for along, up in profile]
            for (a, up_a), (b, up_b) in zip(side, side[1:] + side[:1], strict=True):
                left, right = x - width / 2, x + width / 2
                self.polygon("car", [(left, up_a, z + a), (left, up_b, z + b), (right, up_b, z + b), (right, up_a, z + a)])
            for left in (x - width / 2, x + width / 2):
                self.polygon("car", [(left, up, z + a) for a, up in side])
            for along in (0.17 * length, 0.8 * length):
                for wheel in (x - width / 2, x + width / 2 - 0.25):
                    self.box("car", (wheel, 0.0, z + along - 0.25), (0.25, 0.5, 0.5))

        self.add(THINGS, z, paint)

    def crossing_vehicle(self, profile: Sequence[tuple[float, float]], x: float, z: float, rightward: bool = True) -> None:
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
        self.add(VERGES, z, lambda: self.box("sign", (x, y, z), (width, height, 0.1)))


def high_street(table: ClassTable) -> Street:
    """Shops on both sides, people, parked cars and a bus."""
    street = Street(table, seed=1, horizon=0.5, vanishing=0.5)
    street.ground(-3.2, 4.6, pavement=2.6)
    street.skyline("building", 9)
    street.terrace(-5.8, 5, 110, 7.5)
    street.terrace(7.2, 7, 110, 8.5, roof=3)
    street.tree(7.0, 62, 9, 3.4)
    for z in (17, 41, 70):
        street.lamp(-3.7, z)
    for z in (24, 52):
        street.lamp(5.1, z)
    for x, y, z in ((-5.7, 2.9, 12), (-5.7, 3.0, 19), (6.4, 3.0, 15), (6.4, 3.2, 23)):
        street.board(x, y, z, 0.8, 0.7)
    for z, kind in ((10.5, HATCHBACK), (16.5, SALOON), (22.5, HATCHBACK), (29, VAN), (36, SALOON)):
        street.vehicle(kind, -2.2, z)
    street.vehicle(BUS, 0.6, 34, width=2.5)
    street.vehicle(SALOON, 2.9, 19, oncoming=True)
    street.vehicle(HATCHBACK, 3.0, 44, oncoming=True)
    for x, z in ((5.6, 10), (6.1, 10.6), (5.3, 15), (6.0, 19), (5.5, 27), (-4.4, 9.5), (-5.0, 13), (-4.3, 20), (-4.6, 31)):
        street.person(x, z, street.draws.uniform(1.6, 1.82))
    street.traffic_light(5.0, 13)
    street.sign(-3.6, 12.5)
    return street


def avenue(table: ClassTable) -> Street:
    """Trees along both pavements, houses behind gardens, a cyclist ahead."""
    street = Street(table, seed=2, horizon=0.49, vanishing=0.53)
    street.ground(-2.9, 4.2, pavement=2.4)
    street.skyline("tree", 8)
    for z in np.arange(9, 90, 15):
        street.house(-11, z, z + 10, street.draws.uniform(5.5, 6.5), 3)
        street.house(12, z + 3, z + 13, street.draws.uniform(5.5, 7), 3.2)
    street.barrier("building", -5.3, 4, 90, 0.9)
    street.hedge(7.1, 6, 60, 1.5)
    for z in (11, 19, 30, 44, 60):
        street.tree(-4.6 + street.draws.uniform(-0.3, 0.3), z, 9.5, 3.6)
    for z in (14, 25, 38, 55):
        street.tree(6.0 + street.draws.uniform(-0.3, 0.3), z, 8.5, 3.2)
    for z, kind in ((9, SALOON), (15, HATCHBACK), (21, HATCHBACK), (27.5, SALOON), (40, VAN)):
        street.vehicle(kind, 3.3, z, oncoming=True)
    street.vehicle(HATCHBACK, -0.6, 26)
    street.vehicle(SALOON, -0.4, 55)
    street.person(-1.6, 9.5, 1.75, RIDER)
    street.person(-3.7, 13, outline=STANDER)
    street.person(5.2, 17)
    street.lamp(-3.3, 23)
    street.lamp(4.6, 33)
    street.sign(-3.2, 15.5, round_=False)
    return street


def ring_road(table: ClassTable) -> Street:
    """A wide road under an open sky: railings, distant houses, traffic both ways."""
    street = Street(table, seed=3, horizon=0.53, vanishing=0.46)
    street.ground(-4.6, 7.5, pavement=2.2)
    street.skyline("building", 7, 120)
    street.skyline("tree", 5, 100, (-60, -12))
    for x, z, height in ((-13, 38, 6), (-12, 55, 7), (-11, 75, 6)):
        street.house(x, z, z + 12, height, 3, 12)
    street.block("building", (13.5, 0, 30), (26, 9, 25))
    street.block("building", (17.0, 0, 29), (8, 11, 20))
    for x, z, height, spread in ((-10, 22, 8.5, 3.8), (-12, 30, 9, 4), (12.5, 46, 8, 3.3), (14, 60, 9, 4)):
        street.tree(x, z, height, spread)
    street.barrier("fence", -6.8, 3, 60, 1.2)
    street.barrier("fence", 7.7, 5, 26, 1.05)
    street.barrier("building", 9.8, 26, 70, 1.3)
    street.vehicle(SALOON, 4.9, 11.5, oncoming=True)
    street.vehicle(HATCHBACK, 4.8, 24, oncoming=True)
    street.vehicle(VAN, 5.0, 42, oncoming=True, width=2.0)
    street.vehicle(VAN, -2.6, 17, width=2.0)
    street.vehicle(HATCHBACK, 0.2, 31)
    street.vehicle(SALOON, -2.8, 46)
    for z in (13, 29, 48, 70):
        street.lamp(-5.2, z, 9)
        street.lamp(8.2, z + 7, 9)
    street.sign(-4.9, 9.5, 3.0, round_=False)
    street.sign(8.0, 17)
    street.person(8.6, 13.5)
    return street


def crossing(table: ClassTable) -> Street:
    """A junction: a street crosses ahead, people walk over it, lights on both sides."""
    street = Street(table, seed=4, horizon=0.48, vanishing=0.5)
    street.ground(-3.4, 4.4, pavement=3.2)
    street.strip("road", -90, 90, 15, 24)
    street.strip("pavement", -90, -5.2, 24, 27)
    street.strip("pavement", 6.2, 90, 24, 27)
    street.skyline("building", 8)
    street.terrace(-6.4, 27, 100, 8)
    street.terrace(7.4, 27, 100, 7)
    street.block("building", (-40, 0, 27.5), (30, 6.5, 8))
    street.house(-7.4, 2, 13.5, 6.5, 0)
    street.house(9.8, 3, 12, 5, 2.5)
    street.tree(9.5, 29, 10, 4.6)
    street.tree(14.5, 30, 9, 4.4)
    street.tree(-5.6, 48, 8, 3)
    street.barrier("fence", 5.1, 8, 13.5, 1.05)
    street.crossing_vehicle(SALOON, 3.0, 20.5)
    street.crossing_vehicle(VAN, -11.5, 18, rightward=False)
    street.vehicle(HATCHBACK, 2.6, 30, oncoming=True)
    street.vehicle(SALOON, -1.6, 34)
    street.vehicle(HATCHBACK, -1.5, 9.5)
    for x, z in ((-0.4, 14.2), (0.7, 14.5), (2.2, 14.0), (-4.4, 13), (-5.2, 12.2), (6.2, 14.2)):
        street.person(x, z, street.draws.uniform(1.6, 1.8))
    street.person(1.4, 11.5, 1.75, RIDER)
    for x, z in ((-3.8, 12.8), (4.8, 14), (-4.2, 25), (5.4, 25)):
        street.traffic_light(x, z)
    street.lamp(-4.0, 27.5)
    street.lamp(5.3, 40)
    street.sign(5.6, 10.5)
    return street


SCENES = (high_street, avenue, ring_road, crossing)


def main() -> None:
    """Draw every scene into street/ beside this file, or into the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "street"
    table = ClassTable.read(HERE / "street" / "classes.json")
    for scene in SCENES:
        save_png(scene(table).mask(), folder / f"{scene.__name__}.png")


if __name__ == "__main__":
    main()
