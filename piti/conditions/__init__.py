"""Conditions, the user's input: each kind defines its channels, file formats, null condition and preview."""

from piti.conditions.base import (
    CONDITIONS,
    Condition,
    ConditionError,
    Files,
    Given,
    Handed,
    NoCondition,
    condition_from_config,
    register,
)
from piti.conditions.class_table import ClassTable, bit_colours
from piti.conditions.composite import SeveralCondition
from piti.conditions.geometry import GeometryCondition
from piti.conditions.mask import MaskCondition
from piti.conditions.palette import PaletteCondition, coco_stuff
from piti.conditions.picture import PictureCondition
from piti.conditions.sketch import SketchCondition
from piti.conditions.text import TextCondition

__all__ = [
    "CONDITIONS",
    "ClassTable",
    "Condition",
    "ConditionError",
    "Files",
    "GeometryCondition",
    "Given",
    "Handed",
    "MaskCondition",
    "NoCondition",
    "PaletteCondition",
    "PictureCondition",
    "SeveralCondition",
    "SketchCondition",
    "TextCondition",
    "bit_colours",
    "coco_stuff",
    "condition_from_config",
    "register",
]
