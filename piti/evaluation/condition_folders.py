"""Folders of the images' conditions, each with its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from piti.conditions import ClassTable, Condition, GeometryCondition, MaskCondition, SeveralCondition, SketchCondition
from piti.core.errors import UserError, option
from piti.evaluation.pairing import PairingError


def condition_folders(
    labels: Path | None = None,
    classes: Path | None = None,
    sketches: Path | None = None,
    geometry: Path | None = None,
) -> dict[str, tuple[Path, Condition]]:
    """The given folders with their kinds of condition, by argument name.

    labels: masks; classes: their table, by default classes.json in that folder or beside it. sketches: images of lines;
    geometry: depth files. Raises PairingError if there is no table.
    """
    found: dict[str, tuple[Path, Condition]] = {}
    if labels is not None:
        found["labels"] = labels, _masks(labels, classes)
    if sketches is not None:
        found["sketches"] = sketches, SketchCondition()
    if geometry is not None:
        found["geometry"] = geometry, GeometryCondition()
    return found


def combined(
    folders: Mapping[str, tuple[Path, Condition]],
) -> tuple[Path | dict[str, Path] | None, Condition | None]:
    """The folders and their condition as arguments of `evaluate_files`: several kinds form one condition of parts."""
    if len(folders) > 1:
        parts = {name: condition for name, (_, condition) in folders.items()}
        return {name: folder for name, (folder, _) in folders.items()}, SeveralCondition(parts)
    return next(iter(folders.values()), (None, None))


def only_one(folders: Mapping[str, tuple[Path, Condition]]) -> tuple[Path | None, Condition | None]:
    """The folder and its condition, for a study. Raises UserError for several."""
    if len(folders) > 1:
        raise UserError(
            f"{' and '.join(map(option, folders))}: a study displays one kind of condition",
            remedy="give only one of them",
        )
    return next(iter(folders.values()), (None, None))


def _masks(labels: Path, classes: Path | None) -> MaskCondition:
    """Masks with the given table, or the one in their folder or its parent. Raises PairingError."""
    places = [classes] if classes else [labels / "classes.json", labels.resolve().parent / "classes.json"]
    found = [place for place in places if place.is_file()]
    if not found:
        raise PairingError(
            "no such file",
            remedy=f"name the masks' classes with {option('classes')} FILE (a classes.json)",
            source=places[0],
        )
    return MaskCondition(ClassTable.read(found[0]))
