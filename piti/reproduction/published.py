"""Published numbers that stand beside ours, each with the place where it was read.

Only numbers that were read in a source are here. The tables of the paper itself (arXiv 2205.12952) were not at hand
when this was written: what another paper prints for the same methods stands in for them, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOT_AT_HAND = "not at hand"

PLACE = "Lv et al. 2024 (PLACE, arXiv 2403.01852), table 1"


@dataclass(frozen=True)
class Quote:
    """One published number."""

    table: str
    """Of ours, beside which it stands."""
    method: str
    """A row's `key`."""
    data: str
    """A data set's name in `piti.reproduction.plans.SETS`."""
    measure: str
    """As its source calls it."""
    value: float
    source: str


def _table1(method: str, ade20k: tuple[float, float], coco: tuple[float, float]) -> tuple[Quote, ...]:
    """(mIoU in %, FID) of a method on two data sets, as PLACE prints them."""
    return tuple(
        Quote("table1", method, data, measure, value, PLACE)
        for data, values in (("ade20k", ade20k), ("coco-stuff", coco))
        for measure, value in zip(("mIoU", "FID"), values, strict=True)
    )


QUOTES: tuple[Quote, ...] = (
    *_table1("pix2pixhd", (20.3, 81.8), (14.6, 111.5)),
    *_table1("spade", (38.5, 33.9), (37.4, 22.6)),
    *_table1("oasis", (48.3, 28.3), (44.1, 17.0)),
    *_table1("piti", (29.4, 27.9), (34.1, 16.1)),
)

ABOUT = {
    "table1": "Published numbers are as another paper prints them, which need not be what each method's own says: "
    + PLACE
    + f". Those of table 1 of the paper itself, 'from scratch' and the other tasks among them, are {NOT_AT_HAND}.",
    "table3a": f"The numbers of the paper's table 3a are {NOT_AT_HAND}.",
    "table3b": f"The numbers of the paper's table 3b are {NOT_AT_HAND}.",
    "table4": f"The numbers of the paper's table 4, and the shares of the data that it takes, are {NOT_AT_HAND}; the "
    "numbers of pairs here are ours.",
    "figure6": "The paper's figure 6 is a picture; it states no numbers.",
}
"""What to say of the published numbers below each table."""


def quotes(table: str, method: str, data: str | None = None) -> Sequence[Quote]:
    """What is published for a row; data: of this data set alone."""
    return [q for q in QUOTES if (q.table, q.method) == (table, method) and data in (None, q.data)]
