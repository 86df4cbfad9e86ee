"""The paper's own numbers for comparison, each with its table and cell (`published.json`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Quote:
    """One published number."""

    table: str
    """The table here that quotes it."""
    method: str
    """A row's `key`."""
    data: str
    """A data set's name in `piti.reproduction.rows.SETS`."""
    measure: str
    """Name of the measure in its source."""
    value: float
    source: str
    """The paper, its table, and the cell."""


@cache
def all_quotes() -> tuple[Quote, ...]:
    """Every number of the paper's tables."""
    text = resources.files("piti.reproduction").joinpath("published.json").read_text(encoding="utf-8")
    values = json.loads(text)
    return tuple(
        Quote(
            **{key: cell[key] for key in ("table", "method", "data", "measure", "value")},
            source=f"{values['source']}, {cell['table'].replace('table', 'table ')}, {cell['cell']}",
        )
        for cell in values["cells"]
    )


def quotes(table: str, method: str, data: Sequence[str]) -> Sequence[Quote]:
    """Published numbers for a row on these data sets."""
    return [q for q in all_quotes() if (q.table, q.method) == (table, method) and q.data in data]


_PAPER = "Published numbers are the paper's own (Wang et al. 2022, arXiv 2205.12952), at 256 px"
ABOUT = {
    "table1": f"{_PAPER}: its table 1. FID-C is the Fréchet distance on CLIP's features.",
    "table2": f"{_PAPER}: its table 2, from 3,000 votes of 20 raters on COCO's masks.",
    "table3a": f"{_PAPER}: its table 3a, on ADE20K. It has no row from scratch; table 1 states 16.3 for it.",
    "table3b": (
        f"{_PAPER}: its table 3b, on ADE20K. It has four rows, whose marks are read as in its talk (two rows have the "
        "same marks in the text), and does not state their guidance; normalised guidance is a separate row only here."
    ),
    "table4": f"{_PAPER}: its table 4, on 5,000, 10,000 and 20,000 images of ADE20K (25, 50 and 100%).",
    "table5": f"{_PAPER}: its table 5. FID-I uses Inception's features, FID-C CLIP's.",
    "figure5": "The paper's figure 5 shows images without numbers.",
    "figure6": "The paper's figure 6 shows images without numbers.",
}
"""Notes on the published numbers below each table."""
