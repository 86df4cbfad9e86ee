"""Draw the example masks: `python examples/draw_masks.py [FOLDER]`, into street/ beside this file if none is given.

Four streets in the colours of street/classes.json, the same at every run (seeds are fixed); in edits/ one of them
without the car in front, to edit a photograph with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from street_world import BUS, HATCHBACK, RIDER, SALOON, STANDER, VAN, WALLS, Street

from piti.conditions import ClassTable
from piti.core.images import save_png

HERE = Path(__file__).parent


PARKED = ((10.5, HATCHBACK), (19.5, SALOON), (29, VAN), (40, SALOON))


def high_street(table: ClassTable, parked: Sequence[tuple[float, list[tuple[float, float]]]] = PARKED) -> Street:
    """Shops on both sides, people, parked cars and a bus."""
    street = Street(table, seed=1, horizon=0.5, vanishing=0.5)
    street.ground(-3.2, 4.6, pavement=2.6)
    street.skyline("building", 9)
    street.terrace(-5.8, 5, 110, 7.5, vary=0.35)
    street.terrace(7.2, 7, 110, 8, vary=0.35, roof=3)
    street.tree(7.0, 62, 9, 3.4)
    for z in (17, 41, 70):
        street.lamp(-3.7, z)
    for z in (24, 52):
        street.lamp(5.1, z)
    for x, y, z in ((-5.7, 2.9, 12), (-5.7, 3.0, 19), (6.4, 3.0, 15), (6.4, 3.2, 23)):
        street.board(x, y, z, 0.8, 0.7)
    for z, kind in parked:
        street.vehicle(kind, -2.2, z)
    street.vehicle(BUS, 0.6, 34, width=2.5)
    street.vehicle(SALOON, 2.9, 19, oncoming=True)
    street.vehicle(HATCHBACK, 3.0, 44, oncoming=True)
    for x, z in (
        (5.6, 10),
        (6.1, 10.6),
        (5.3, 15),
        (6.0, 19),
        (5.5, 27),
        (-4.4, 9.5),
        (-5.0, 13),
        (-4.3, 20),
        (-4.6, 31),
    ):
        street.person(x, z, street.draws.uniform(1.6, 1.82))
    street.traffic_light(5.0, 13)
    street.sign(-3.6, 12.5)
    return street


def avenue(table: ClassTable) -> Street:
    """Trees along both pavements, houses behind gardens, a cyclist ahead."""
    street = Street(table, seed=2, horizon=0.49, vanishing=0.53)
    street.ground(-2.9, 4.2, pavement=2.4, beyond="tree")
    street.skyline("tree", 8)
    for z in range(9, 90, 15):
        street.house(-11, z, z + 10, street.draws.uniform(5.5, 6.5), 3)
        street.house(12, z + 3, z + 13, street.draws.uniform(5.5, 7), 3.2)
    street.barrier("building", -5.3, 4, 90, 0.9, WALLS)
    street.hedge(7.1, 6, 60, 1.5)
    for z in (11, 19, 30, 44, 60):
        street.tree(-4.6 + street.draws.uniform(-0.3, 0.3), z, 9.5, 3.6)
    for z in (14, 25, 38, 55):
        street.tree(6.0 + street.draws.uniform(-0.3, 0.3), z, 8.5, 3.2)
    for z, kind in ((9.5, SALOON), (17.5, HATCHBACK), (30, SALOON), (40, VAN)):
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
    street.ground(-4.6, 7.5, pavement=2.2, beyond="tree")
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
    street.terrace(-6.4, 27, 100, 8, vary=0.3)
    street.terrace(7.4, 27, 100, 7, vary=0.3)
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
    save_png(high_street(table, PARKED[1:]).mask(), folder / "edits" / "high_street_car_gone.png")


if __name__ == "__main__":
    main()
