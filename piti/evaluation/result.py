"""What an evaluation found: measures with their intervals, the facts that it takes to repeat it, and warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from piti.core.errors import UserError, option
from piti.core.files import whole_file
from piti.evaluation.intervals import Interval

FORMAT = 1
"""Of the JSON file; raised when a reader of older files would misread it."""


@dataclass(frozen=True)
class MetricKind:
    """A kind of measure, for tables."""

    title: str
    unit: str
    better: str
    """ "low" or "high"; empty where neither is."""


KINDS: Mapping[str, MetricKind] = {
    "fd": MetricKind("Fréchet distance", "", "low"),
    "kid": MetricKind("kernel distance (KID)", "× 1000", "low"),
    "kid_spread": MetricKind("… its spread over subsets", "× 1000", ""),
    "cmmd": MetricKind("CMMD", "× 1000", "low"),
    "precision": MetricKind("precision", "share", "high"),
    "recall": MetricKind("recall", "share", "high"),
    "spread": MetricKind("spread of samples", "in features", "high"),
    "diversity": MetricKind("diversity of samples", "perceptual", "high"),
    "photograph_distance": MetricKind("distance to its photograph", "perceptual", "low"),
    "object_distance": MetricKind("objects of a class: distance of colours in an image", "levels", ""),
    "object_distance_across": MetricKind("… in different samples", "levels", ""),
    "object_ratio": MetricKind("… in an image, by that in different samples", "", "high"),
    "real_object_distance": MetricKind("photographs: distance of objects of a class", "levels", ""),
    "nearest": MetricKind("distance to the nearest training photograph", "", "high"),
    "real_nearest": MetricKind("… of held-out photographs", "", ""),
    "nearer": MetricKind("nearer to training than a held-out photograph", "%", "low"),
    "miou": MetricKind("mIoU", "%", "high"),
    "pixel_accuracy": MetricKind("pixel accuracy", "%", "high"),
    "iou": MetricKind("IoU", "%", "high"),
    "small_regions": MetricKind("small objects", "number", ""),
    "small_recall": MetricKind("small objects: pixel accuracy", "%", "high"),
    "small_iou": MetricKind("small objects: mIoU", "%", "high"),
    "small_found": MetricKind("small objects: half of it right", "%", "high"),
    "line_distance": MetricKind("chamfer distance of lines", "% of diagonal", "low"),
    "line_distance_px": MetricKind("chamfer distance of lines", "px", "low"),
    "lines_to_edges_px": MetricKind("… from given lines to edges", "px", "low"),
    "edges_to_lines_px": MetricKind("… from edges to given lines", "px", "low"),
    "lines_kept": MetricKind("lines kept", "%", "high"),
    "edges_meant": MetricKind("edges on a line", "%", "high"),
    "depth_error": MetricKind("depth error", "AbsRel", "low"),
    "depth_rmse_log": MetricKind("depth error", "RMSE, log", "low"),
    "depth_close": MetricKind("depth within 25%", "%", "high"),
    "real_miou": MetricKind("photographs: mIoU", "%", ""),
    "real_pixel_accuracy": MetricKind("photographs: pixel accuracy", "%", ""),
    "real_small_recall": MetricKind("photographs: small objects, pixel accuracy", "%", ""),
    "real_small_found": MetricKind("photographs: small objects, half of it right", "%", ""),
    "real_line_distance": MetricKind("photographs: chamfer distance", "% of diagonal", ""),
    "real_depth_error": MetricKind("photographs: depth error", "AbsRel", ""),
}
"""Every measure by the name that it has in JSON; those that are not here are shown by their names."""


class ResultError(UserError):
    """A result cannot be made, written or read. The message names the measure or the file."""


@dataclass(frozen=True)
class Measure:
    """One number."""

    name: str
    """A key of `KINDS`."""
    value: float
    low: float | None = None
    """The ends of its 95% interval, where there is one."""
    high: float | None = None
    of: str = ""
    """The feature network, the class, or the judge."""
    unit: str = ""

    @classmethod
    def taken(cls, name: str, value: float, interval: Interval | None = None, of: str = "") -> Measure:
        """With the unit of its kind, and the ends of its interval where there is one."""
        ends = (interval.low, interval.high) if interval else (None, None)
        return cls(name, value, *ends, of, KINDS[name].unit if name in KINDS else "")

    def __post_init__(self) -> None:
        numbers = [self.value, *(end for end in (self.low, self.high) if end is not None)]
        if not all(math.isfinite(number) for number in numbers):
            raise ResultError(f"{self.label} came out as {numbers}; look at the images and the network's weights")

    @property
    def label(self) -> str:
        """What it is of what, for a person."""
        kind = KINDS.get(self.name)
        title = kind.title if kind else self.name
        return f"{title}, {self.of}" if self.of else title

    def row(self) -> dict[str, str]:
        """For a table."""
        interval = "" if self.low is None or self.high is None else f"{rounded(self.low)} … {rounded(self.high)}"
        return {
            "measure": KINDS[self.name].title if self.name in KINDS else self.name,
            "of": self.of,
            "value": rounded(self.value),
            "95% interval": interval,
            "unit": self.unit,
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found."""

    measures: tuple[Measure, ...]
    facts: dict[str, Any]
    """Counts, sizes, networks with their hashes, settings: plain data, enough to repeat the evaluation."""
    notes: tuple[str, ...] = ()
    """Warnings: what the numbers do not show."""

    def value(self, name: str, of: str = "") -> float:
        """A measure's value. Raises ResultError where it was not taken."""
        return self.measure(name, of).value

    def measure(self, name: str, of: str = "") -> Measure:
        """A measure by name; `of` may be left out where there is one alone. Raises ResultError."""
        named = [measure for measure in self.measures if measure.name == name]
        found = [measure for measure in named if measure.of == of] or (named if not of else [])
        if len(found) != 1:
            there = ", ".join(f"{one.name} of {one.of}" if one.of else one.name for one in self.measures)
            raise ResultError(f"no measure '{name}'{f' of {of!r}' if of else ''} alone; there are: {there or 'none'}")
        return found[0]

    def rows(self) -> list[dict[str, str]]:
        """A table's rows."""
        return [measure.row() for measure in self.measures]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` makes an equal evaluation."""
        return {
            "format": FORMAT,
            "measures": [asdict(measure) for measure in self.measures],
            "facts": self.facts,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> Evaluation:
        """What `to_dict` gave. Raises ResultError that names `source`."""
        try:
            if values["format"] != FORMAT:
                raise ResultError(f"{source}: format {values['format']}, and this version reads {FORMAT}")
            measures = tuple(Measure(**measure) for measure in values["measures"])
            return cls(measures, dict(values["facts"]), tuple(values["notes"]))
        except (KeyError, TypeError) as error:
            raise ResultError(f"{source}: is no result of piti evaluate ({error})") from None

    def write(self, path: Path, overwrite: bool = False) -> None:
        """Write JSON, whole or not at all. Raises OutputError."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        with whole_file(path, overwrite, option("json")) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote. Raises ResultError."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{path}: cannot be read ({error}); evaluate again") from None
        if not isinstance(values, Mapping):
            raise ResultError(f"{path}: is no result of piti evaluate")
        return cls.from_dict(values, str(path))


def rounded(value: float) -> str:
    """A number with four significant digits, for a table."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
