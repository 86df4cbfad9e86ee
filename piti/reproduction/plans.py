"""Tables and figures by name and scale, and the folders of their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from piti.core.errors import UserError, option
from piti.core.spec import choices
from piti.reproduction.paper_plans import PAPER
from piti.reproduction.rows import SETS, Plan
from piti.reproduction.small_plans import SMALL

SCALES: Mapping[str, Mapping[str, Callable[[], Plan]]] = {"small": SMALL, "paper": PAPER}
TABLES = tuple(SMALL)
"""Tables, and figures made from a table's rows."""
FIGURES = ("figure6",)
STUDIES = ("table2",)
"""Tables of votes."""


class PlanError(UserError):
    """A table or scale is unknown, or its data is not given. The message names the available ones."""


def plan_of(table: str, scale: str) -> Plan:
    """The plan of a table. Raises PlanError for an unknown one."""
    if scale not in SCALES:
        raise PlanError("unknown", remedy=choices(scale, SCALES), option="scale", value=scale)
    if table not in TABLES:
        raise PlanError(f"{table}: no such table; {choices(table, (*TABLES, *FIGURES))}")
    return SCALES[scale][table]()


def data_folders(plan_sets: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """Each data set's folder, from values of --data: one folder, or NAME=FOLDER for each.

    A single folder is the only data set, or contains a folder for each name. Raises PlanError for missing or unknown
    folders.
    """
    named = {name: Path(folder) for name, sign, folder in (value.partition("=") for value in given) if sign}
    plain = [Path(value) for value in given if "=" not in value]
    for name in named:
        if name not in plan_sets:
            raise PlanError(
                f"{option('data')} {name}=…: this table uses {', '.join(plan_sets)}", remedy="name one of them"
            )
    if len(plain) > 1:
        raise PlanError(
            f"{len(plain)} folders are given without a name",
            remedy=f"write NAME=FOLDER for {', '.join(plan_sets)}",
            option="data",
        )
    if plain and not named:
        named = {name: plain[0] if len(plan_sets) == 1 else plain[0] / name for name in plan_sets}
    elif plain:
        raise PlanError("others are named", remedy="write NAME=FOLDER for this one too", option="data", value=plain[0])
    missing = [name for name in plan_sets if name not in named]
    if missing:
        raise PlanError(f"is missing for {', '.join(missing)}", remedy=_wanted(missing), option="data")
    absent = [f"{named[name]} ({name}: {SETS[name].prepared})" for name in plan_sets if not named[name].is_dir()]
    if absent:
        raise PlanError(f"no such folder: {', '.join(absent)}", remedy="check the path", option="data")
    return {name: named[name] for name in plan_sets}


def described(name: str, folder: Path) -> str:
    """The title of a data set by its folder: that of a known one, else the folder's name and the one it replaces."""
    own = folder.resolve().name
    if own.lower() in SETS:
        return SETS[own.lower()].title
    return f"`{own}` (instead of {SETS[name].title})"


def _wanted(names: Sequence[str]) -> str:
    what = "FOLDER" if len(names) == 1 else f"{names[0]}=FOLDER and so on, or one folder that contains them"
    return f"give {option('data')} {what}; made by " + "; ".join(f"{SETS[name].prepared} ({name})" for name in names)
